"""Builds small datasets on disk and runs ingest on them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import EXCLUDED, SCANS
from neurofoundry.contracts.tables import read_table
from neurofoundry.ingest.params import IngestParams
from neurofoundry.ingest.run import ingest
from neurofoundry.runtime import tracking
from neurofoundry.runtime.experiment import TrackingParams
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import parse_task

AFFINE = np.diag([4.5, 4.5, 4.5, 1.0])
ALL_PRETRAIN = {"pretrain": 1, "train": 0, "val": 0, "test": 0}
EVERY_SPLIT = {"pretrain": 0.3, "train": 0.3, "val": 0.2, "test": 0.2}
SEX = {"kind": "classification", "column": "sex", "classes": ["F", "M"]}
DIAGNOSIS = {"from": ["diagnosis"], "values": {"CN": ["CN"], "AD": ["AD"]}}


def head(seed: int = 0) -> NDArray[np.int16]:
    """Make a ball of noise, 40³ voxels."""
    axes = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    noise = np.random.default_rng(seed).normal(800, 90, (40, 40, 40))
    return (noise * (np.linalg.norm(axes, axis=0) < 0.8)).astype(np.int16)


def write_scan(
    path: Path, voxels: NDArray[Any] | int = 0, affine: NDArray[np.float64] = AFFINE
) -> Path:
    """Write an image, or the head of a seed."""
    if isinstance(voxels, int):
        voxels = head(voxels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def bids(
    root: Path, subjects: int | list[str], table: str | bytes | None = "", seed: int = 0
) -> Path:
    """Write a dataset with one T1w per subject.

    ``table`` is participants.tsv: '' for ages and sexes that can be read, None for none at all.
    """
    labels = (
        [f"{number:02d}" for number in range(1, subjects + 1)]
        if isinstance(subjects, int)
        else subjects
    )
    for number, label in enumerate(labels):
        name = f"sub-{label}"
        write_scan(root / name / "anat" / f"{name}_T1w.nii.gz", seed * 10_000 + number + 1)
    if table == "":
        table = "participant_id\tage\tsex\n" + "".join(
            f"sub-{label}\t{30 + number % 50}\t{'FM'[number % 2]}\n"
            for number, label in enumerate(labels)
        )
    if table is not None:
        content = table if isinstance(table, bytes) else table.encode()
        (root / "participants.tsv").write_bytes(content)
    return root


@dataclass(frozen=True)
class Outcome:
    """What ingest wrote."""

    folder: Path
    work: Workspace

    @property
    def scans(self) -> pd.DataFrame:
        return read_table(self.folder / "scans.tsv", SCANS).set_index("scan_id")

    @property
    def excluded(self) -> dict[str, str]:
        """The reasons by path."""
        table = read_table(self.folder / "excluded.tsv", EXCLUDED)
        assert table["path"].is_unique
        return dict(zip(table["path"], table["reason"], strict=True))

    @property
    def notes(self) -> str:
        return (self.folder / "notes.tsv").read_text()

    def bytes(self) -> bytes:
        """The bytes of all tables."""
        return b"".join(file.read_bytes() for file in sorted(self.folder.glob("*.tsv")))


def run(
    data: Path,
    out: Path,
    *,
    tasks: Mapping[str, Any] | None = None,
    seed: int = 1,
    workers: int = 2,
    **params: Any,
) -> Outcome:
    """Run ingest; everybody goes to pretrain unless told otherwise."""
    values = IngestParams.model_validate({"splits": ALL_PRETRAIN, **params})
    parsed = {name: parse_task(task) for name, task in (tasks or {}).items()}
    out.mkdir(parents=True, exist_ok=True)
    quiet = TrackingParams(mode="disabled")
    with tracking.run(quiet, stage="ingest", key="0" * 16, group="g", config={}) as tracker:
        work = Workspace(dir=out, earlier=(), tracker=tracker, data_version="")
        ingest(work, data=data, params=values, tasks=parsed, seed=seed, workers=workers)
    return Outcome(out, work)


@contextmanager
def as_nobody() -> Iterator[Path]:
    """Yield a folder that anybody may write to; nothing that is closed to others can be read."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        try:
            if root:
                os.seteuid(65534)
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
