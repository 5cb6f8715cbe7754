"""A cohort of known truth: heads painted straight on a coarse grid of MNI space.

No error of masks or registration, and a fraction of the time: what `learning.py` learns from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, VolumesRecord, write_record, write_volume
from neurofoundry.phantom.anatomy import Subject, sample_subject
from neurofoundry.phantom.atlas import Atlas, build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head_on_grid
from neurofoundry.preprocess.intensity import zscore
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.progress import Progress

GRID = Grid(spacing=6.0)

FAMILIAR = ("pretrain", "train", "val", "test")
"""Splits of the three familiar sites; the fourth site is all of ood."""

LABELLED_FROM = 55.0
"""Years from which diagnoses are made: all labelled persons are older, so that every task has as
many of them."""


@dataclass(frozen=True)
class Counts:
    """Persons of each split."""

    pretrain: int
    train: int
    val: int
    test: int
    ood: int


def persons(params: PhantomParams, counts: Counts) -> Iterator[tuple[str, Subject]]:
    """Yield so many subjects of each split."""
    left = {split: getattr(counts, split) for split in (*FAMILIAR, "ood")}
    for index in range(params.subjects):
        subject = sample_subject(params, index)
        labelled = subject.age > LABELLED_FROM
        if SITES[subject.site].external:
            split = "ood" if labelled and left["ood"] else None
        else:
            # Labelled splits first, in turn: each then has the labels of all in like shares.
            open_ = [each for each in FAMILIAR[1:] if labelled and left[each]]
            split = max(open_, key=lambda each: left[each] / getattr(counts, each), default=None)
            split = split or ("pretrain" if left["pretrain"] else None)
        if split:
            left[split] -= 1
            yield split, subject
    if any(left.values()):
        raise ValueError(f"{params.subjects} subjects do not fill the splits: {left} are missing")


def paint(
    folder: Path,
    params: PhantomParams,
    counts: Counts,
    grid: Grid = GRID,
    dataset: str = "phantom",
) -> pd.DataFrame:
    """Write a folder of volumes, as preprocess does; return the true volumes by scan_id.

    Heads that are there already are kept: a killed run resumes. ``dataset`` is part of the names of
    persons: those of one cohort are not those of another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atlas = build_atlas(2)
    members = list(persons(params, counts))
    rows = []
    with Progress("painting heads", len(members), unit="persons") as progress:
        for split, subject in members:
            for session, age in subject.sessions:
                if session == "1" or split in ("test", "ood"):
                    head = _head(folder, subject, session, atlas, grid)
                    rows.append(_scan(head, dataset, split, subject, session, age))
            progress.advance()
    table = pd.DataFrame([row for row, _ in rows])
    truth = pd.DataFrame([volumes for _, volumes in rows], index=table["scan_id"])
    write_record(folder, VolumesRecord(grid=grid.describe(), params={}))
    write_table(truth.reset_index(), folder / "truth.tsv")
    write_table(table, folder / "scans.tsv", VOLUMES)
    return truth


def _head(folder: Path, subject: Subject, session: str, atlas: Atlas, grid: Grid) -> Path:
    """Paint one session unless it is there; return its volume, which true sizes lie beside."""
    path = folder / f"{subject.participant}_ses-{session}.nii"
    if not path.with_suffix(".json").exists():
        site = SITES[subject.site_of(session)]
        head = head_on_grid(subject, session, site, atlas, grid.affine, grid.shape)
        write_volume(path, zscore(head.image, head.brain), head.brain, grid)
        pd.Series(head.volumes_ml).to_json(path.with_suffix(".json"))
    return path


def _scan(
    head: Path, dataset: str, split: str, subject: Subject, session: str, age: float
) -> tuple[dict[str, object], dict[str, float]]:
    """Return the rows of a session in scans.tsv and in truth.tsv."""
    site = SITES[subject.site_of(session)]
    row = {
        "scan_id": head.stem,
        "dataset": f"{dataset}-external" if site.external else dataset,
        "subject": subject.participant,
        "session": session,
        "person": f"{dataset}/{subject.participant}",
        "source": "bids",
        "path": f"{head.stem}_T1w.nii.gz",
        "sha256": hash_file(head),
        "split": split,
        "age": age,
        "sex": subject.sex,
        "site": site.name,
        "scanner": site.model,
        "field_strength": site.field_tesla,
        "diagnosis": subject.diagnosis,
        "stroke": subject.stroke,
        "usable": True,
        "reason": None,
        "volume": head.name,
        "volume_sha256": hash_file(head),
    }
    return row, dict(pd.read_json(head.with_suffix(".json"), typ="series"))
