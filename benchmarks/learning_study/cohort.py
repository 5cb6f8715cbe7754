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


def paint(folder: Path, params: PhantomParams, counts: Counts) -> pd.DataFrame:
    """Write a folder of volumes, as preprocess does; return the true volumes by scan_id.

    Heads that are there already are kept: a killed run resumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atlas = build_atlas(2)
    members = list(persons(params, counts))
    rows = []
    with Progress("painting heads", len(members), unit="persons") as progress:
        for split, subject in members:
            for session, age in subject.sessions:
                if session == "1" or split in ("test", "ood"):
                    rows.append(_scan(folder, split, subject, session, age, atlas))
            progress.advance()
    table = pd.DataFrame([row for row, _ in rows])
    truth = pd.DataFrame([volumes for _, volumes in rows], index=table["scan_id"])
    write_record(folder, VolumesRecord(grid=GRID.describe(), params={}))
    write_table(truth.reset_index(), folder / "truth.tsv")
    write_table(table, folder / "scans.tsv", VOLUMES)
    return truth


def _scan(
    folder: Path, split: str, subject: Subject, session: str, age: float, atlas: Atlas
) -> tuple[dict[str, object], dict[str, float]]:
    """Paint one session; return its rows of scans.tsv and of truth.tsv."""
    site = SITES[subject.site_of(session)]
    name = f"{subject.participant}_ses-{session}"
    path = folder / f"{name}.nii"
    known = path.with_suffix(".json")
    if not known.exists():
        head = head_on_grid(subject, session, site, atlas, GRID.affine, GRID.shape)
        write_volume(path, zscore(head.image, head.brain), head.brain, GRID)
        pd.Series(head.volumes_ml).to_json(known)
    row = {
        "scan_id": name,
        "dataset": "phantom-external" if site.external else "phantom",
        "subject": subject.participant,
        "session": session,
        "person": f"phantom/{subject.participant}",
        "source": "bids",
        "path": f"{name}_T1w.nii.gz",
        "sha256": hash_file(path),
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
        "volume": path.name,
        "volume_sha256": hash_file(path),
    }
    return row, dict(pd.read_json(known, typ="series"))
