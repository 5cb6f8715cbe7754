"""Ingest: from folders of raw MRI to the cohort.

Every file is looked at. What can be used becomes a row of scans.tsv with the split of the person
it shows; what cannot goes to excluded.tsv with the reason, and the run goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import write_table
from neurofoundry.ingest import bids, dicom, labels, report, sources, splits, table
from neurofoundry.ingest.choose import choose
from neurofoundry.ingest.image import look
from neurofoundry.ingest.params import Dataset, IngestParams
from neurofoundry.ingest.scan import Findings, Scan, UnusableError, each
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Task


def ingest(
    work: Workspace,
    *,
    data: Path,
    params: IngestParams,
    tasks: Mapping[str, Task],
    seed: int,
    workers: int | None = None,
) -> None:
    """Write scans.tsv, excluded.tsv, notes.tsv and splits.tsv about the scans below ``data``.

    Raises UsageError when parameters do not fit the data, DataError when no cohort can be made of
    it; excluded.tsv and notes.tsv are written even then.
    """
    # Each worker holds one image: more of them cost memory and gain nothing on a shared disk.
    workers = workers or min(len(os.sched_getaffinity(0)), 16)
    _clear(work.dir)
    labels.check_classes(params.columns, tasks)
    found = Findings(data)
    datasets = sources.find(params.datasets, found)
    for dataset in datasets:
        read_dataset(
            dataset,
            datasets,
            found,
            age_columns=params.columns["age"].from_,
            nifti=work.dir / "nifti",
            workers=workers,
        )

    found.scans = splits.name_persons(found.scans, params.shared_subjects)
    splits.check_names(params, found.scans, {dataset.name for dataset in datasets})
    scans = splits.without_unknown_splits(params, found)
    scans = choose(look_at(scans, found, workers), found)
    rows = labels.table(scans, columns=params.columns, tasks=tasks, found=found)
    rows["split"] = splits.deal(rows, scans, params=params, seed=seed)

    report.write_remarks(found, work.dir)
    problems, not_estimable = report.gaps(rows, tasks)
    report.show(datasets, rows, found, tasks, not_estimable)
    if problems:
        raise report.no_cohort(problems, rows, found, work.dir)
    guard_leaks(rows)

    _remove_unused(work.dir / "nifti", scans)
    write_table(rows, work.dir / "scans.tsv", SCANS)
    write_table(splits.balance(rows, tasks), work.dir / "splits.tsv")
    work.data_version = _data_version(scans, found)
    work.summary |= {
        "scans": len(rows),
        "persons": rows["person"].nunique(),
        "excluded": len(set(found.excluded)),
        "by_split": rows.groupby("split")["person"].nunique().to_dict(),
        "not_estimable": not_estimable,
    }


def read_dataset(
    dataset: Dataset,
    datasets: Sequence[Dataset],
    found: Findings,
    *,
    age_columns: Iterable[str],
    nifti: Path,
    workers: int,
) -> None:
    """Add what ``dataset``, one of ``datasets``, offers to ``found``; DICOM is converted."""
    if dataset.kind == "bids":
        bids.read(dataset, found, age_columns=age_columns)
    elif dataset.kind == "table":
        table.read(dataset, found)
    else:
        others = {found.data / other.path for other in datasets if other is not dataset}
        skip = {place.parent if place.is_file() else place for place in others}
        dicom.read(dataset, found, skip=skip, out=nifti, workers=workers)


def look_at(scans: Sequence[Scan], found: Findings, workers: int) -> list[Scan]:
    """The scans whose image can be used, with their hashes."""
    usable = []
    for scan, seen in each(
        lambda scan: look(scan.file), scans, what="looking at images", workers=workers
    ):
        if isinstance(seen, UnusableError):
            found.exclude(scan.dataset, scan.origin, seen)
        else:
            usable.append(replace(scan, sha256=seen.sha256, content=seen.content))
    return usable


def _data_version(scans: Sequence[Scan], found: Findings) -> str:
    """Hash of everything that was used: images, tables, sidecars, and facts from DICOM headers."""
    used = [(scan.path, scan.sha256) for scan in scans] + list(found.read.items())
    used += [(scan.path, repr(scan.header)) for scan in scans if scan.source == "dicom"]
    lines = "".join(f"{path}\0{content}\n" for path, content in sorted(used))
    return hashlib.sha256(lines.encode()).hexdigest()


def _clear(folder: Path) -> None:
    """Remove what a run that was killed, or that failed, has left."""
    shutil.rmtree(folder / "nifti", ignore_errors=True)
    for name in ("scans.tsv", "splits.tsv", "excluded.tsv", "notes.tsv"):
        (folder / name).unlink(missing_ok=True)


def _remove_unused(nifti: Path, scans: Sequence[Scan]) -> None:
    used = {scan.file for scan in scans}
    for file in nifti.glob("*"):
        if file not in used:
            file.unlink()
