"""Volumes to pretrain on, and what runs the stage on them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, write_volume
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.run import pretrain
from neurofoundry.runtime.experiment import TrackingParams
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.stage import SCHEMA_VERSION, Workspace
from neurofoundry.runtime.tracking import run as tracking_run

GRID = Grid(spacing=6.0)

SMALL: dict[str, Any] = {"encoder": {"stem_stride": 2, "width": 0.125}, "batch_size": 4}
CONTRAST = {"simclr": {"projection": 16}}


def params_of(**values: object) -> PretrainParams:
    return PretrainParams.model_validate({**SMALL, **CONTRAST, **values})


def run_stage(
    volumes: Path,
    work_dir: Path,
    method: str = "simclr",
    rate: float | None = None,
    **values: object,
) -> Workspace:
    """Run the stage's body alone, in this process; at a ``rate`` that params.yaml could not say."""
    work_dir.mkdir(exist_ok=True)
    with tracking_run(
        TrackingParams(mode="disabled"), stage="pretrain", key="0" * 16, group="g", config={}
    ) as tracker:
        work = Workspace(dir=work_dir, earlier=(), tracker=tracker, data_version="v1")
        params = (
            params_of(**values)
            if rate is None
            else params_of(**values).model_copy(update={"learning_rate": rate})
        )
        pretrain(work, volumes=volumes, method=method, params=params, seed=7)
    return work


def last_step(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint; 0 when there is none."""
    return max((int(path.name[5:14]) for path in checkpoints.glob("step-*.pt")), default=0)


def wait_for_step(checkpoints: Path, step: int, *processes: BaseProcess) -> None:
    """Wait for a checkpoint of this step or a later one, while all processes live."""
    while last_step(checkpoints) < step:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.002)


def batch_of(persons: Iterable[str]) -> pd.DataFrame:
    """Return one scan of each person."""
    return pd.DataFrame([{"scan_id": f"sub-{each}", "person": each} for each in persons])


def write_head(path: Path, *, person: int, session: int) -> None:
    """A bright ellipsoid whose texture is the person's, and whose noise is the session's."""
    axes = (np.arange(n) * 2 / n - 1 for n in GRID.shape)
    x, y, z = np.meshgrid(*axes, indexing="ij")
    mask = (x / 0.7) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2 < 1
    own = np.random.default_rng(person)
    volume = sum(
        np.sin(own.uniform(2, 6, 3) @ [x.ravel(), y.ravel(), z.ravel()] + own.uniform(0, 6))
        for _ in range(4)
    ).reshape(GRID.shape)
    volume = volume + 0.1 * np.random.default_rng((person, session)).standard_normal(GRID.shape)
    write_volume(path, (volume - volume[mask].mean()) / volume[mask].std(), mask, GRID)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preprocess leaves: 14 scans of 12 persons to pretrain on, 10 to train, and others."""
    folder = tmp_path_factory.mktemp("preprocess") / "volumes"
    folder.mkdir()
    splits = ["pretrain"] * 12 + ["train", "val"] * 10 + ["test", "ood"]
    rows = []
    for person, split in enumerate(splits):
        for session in range(2 if person < 3 else 1):
            scan_id = f"sub-{person:02d}_ses-{session}"
            write_head(folder / f"{scan_id}.nii", person=person, session=session)
            rows.append(
                {
                    "scan_id": scan_id,
                    "dataset": "heads",
                    "subject": f"{person:02d}",
                    "session": str(session),
                    "person": f"heads/{person:02d}",
                    "source": "bids",
                    "path": f"{scan_id}_T1w.nii.gz",
                    "sha256": f"{len(rows):064x}",
                    "split": split,
                    "age": 50.0 + person,
                    "sex": "FM"[person // 2 % 2],
                    "site": "a",
                    "scanner": None,
                    "field_strength": 3.0,
                    "usable": True,
                    "reason": None,
                    "volume": f"{scan_id}.nii",
                    "volume_sha256": hash_file(folder / f"{scan_id}.nii"),
                }
            )
    # A scan that quality control refused has no volume.
    rows[0].update(usable=False, reason="the brain was not found", volume=None, volume_sha256=None)
    (folder / f"{rows[0]['scan_id']}.nii").unlink()
    write_table(pd.DataFrame(rows), folder / "scans.tsv", VOLUMES)
    (folder / "grid.json").write_text(json.dumps({"grid": GRID.describe(), "params": {}}))
    record = {
        "stage": "preprocess",
        "schema_version": SCHEMA_VERSION,
        "contents": {},
        "data_version": "v1",
    }
    (folder / "stage.json").write_text(json.dumps(record))
    return folder
