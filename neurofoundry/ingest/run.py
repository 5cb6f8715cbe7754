"""Ingest: from folders of raw MRI to the cohort.

Every file is inspected. What can be used becomes a row of scans.tsv with the split of its person;
what cannot goes to excluded.tsv with the reason, and the run goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from neurofoundry.contracts import labels as label_tables
from neurofoundry.contracts.cohort import ALTERNATES, SCANS
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import write_table
from neurofoundry.ingest import (
    bids,
    dicom,
    label_images,
    labels,
    report,
    sessions,
    sources,
    splits,
    table,
)
from neurofoundry.ingest.choose import choose
from neurofoundry.ingest.image import inspect_image
from neurofoundry.ingest.params import Column, Dataset, IngestParams
from neurofoundry.ingest.scan import Findings, Scan, UnusableError, map_in_threads
from neurofoundry.runtime import machine
from neurofoundry.runtime.experiment import data_reference
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Labelled


def ingest(
    work: Workspace,
    *,
    data: Path,
    params: IngestParams,
    tasks: Mapping[str, Labelled],
    seed: int,
    workers: int | None = None,
) -> None:
    """Write scans.tsv, excluded.tsv, notes.tsv and splits.tsv about the scans below ``data``.

    ``data`` is a folder, or a table of paths in the folder that is the root of the data.
    Raises UsageError when parameters do not fit the data, DataError when it gives no cohort;
    excluded.tsv and notes.tsv are written even then.
    """
    # Each worker holds one image: more of them cost memory and gain nothing on a shared disk.
    workers = workers or min(machine.cores(), 16)
    nifti = work.dir / "nifti"
    _clear(work.dir)
    labels.check_classes(params.columns, tasks)
    findings = Findings(sources.folder_of(data))
    datasets = _read_all(params, findings, data, nifti, workers)
    splits.check_names(params, findings.scans, {dataset.name for dataset in datasets})
    scans = splits.exclude_unknown_splits(params, findings)
    chosen = choose(inspect_images(scans, findings, workers), findings)
    scans = sessions.join(chosen, params, findings)
    rows = labels.tabulate(scans, columns=params.columns, tasks=tasks, findings=findings)
    outlined = label_images.find(scans, datasets, tasks, findings, workers=workers)
    rows = label_images.add_columns(rows, outlined, tasks)
    rows = sessions.add_columns(rows, scans, params.contrasts)
    came_with = [scan.published for scan in scans]
    rows = splits.assign(rows, params.splits, tasks, seed=seed, came_with=came_with)

    report.write_findings(findings, work.dir)
    problems, not_estimable = report.gaps(rows, tasks, params.splits, seed=seed)
    report.log_summary(datasets, rows, findings, tasks, not_estimable)
    if problems:
        raise report.no_cohort(problems, rows, findings, work.dir)
    for warning in report.without_numbers(rows, tasks, params.splits, seed=seed):
        LOGGER.warning("%s", warning)
    guard_leaks(rows)

    _remove_unused(nifti, scans)
    write_table(rows, work.dir / "scans.tsv", SCANS)
    sessions.write_contrasts(params, work.dir)
    write_table(_alternates(scans), work.dir / "alternates.tsv", ALTERNATES)
    write_table(outlined, work.dir / label_tables.TABLE, label_tables.LABELS)
    write_table(splits.balance(rows, tasks), work.dir / "splits.tsv")
    work.data_version = _data_version(scans, findings)
    work.data_reference = data_reference(data, work.data_version)
    work.summary |= {
        "scans": len(rows),
        "persons": rows["person"].nunique(),
        "excluded": len(set(findings.excluded)),
        "by_split": rows.groupby("split")["person"].nunique().to_dict(),
        "not_estimable": not_estimable,
    }


def _read_all(
    params: IngestParams, findings: Findings, data: Path, nifti: Path, workers: int
) -> list[Dataset]:
    """Add the scans of all datasets, and whose they are, to ``findings``; return the datasets."""
    datasets = sources.find(params.datasets, findings, data)
    for dataset in datasets:
        read_dataset(
            dataset,
            datasets,
            findings,
            columns=params.columns,
            contrasts=params.contrasts,
            nifti=nifti,
            workers=workers,
        )
    findings.scans = splits.name_persons(findings.scans, params.shared_subjects)
    splits.note_alike(findings)
    return datasets


def read_dataset(
    dataset: Dataset,
    datasets: Sequence[Dataset],
    findings: Findings,
    *,
    columns: Mapping[str, Column],
    contrasts: Sequence[str],
    nifti: Path,
    workers: int,
) -> None:
    """Add the scans of ``dataset``, one of ``datasets``, to ``findings``.

    DICOM is converted into the folder ``nifti``.
    """
    if dataset.kind == "bids":
        bids.read(dataset, findings, columns=columns, contrasts=contrasts)
    elif dataset.kind == "table":
        table.read(dataset, findings, columns=columns, contrasts=contrasts)
    else:
        others = {findings.data / other.path for other in datasets if other is not dataset}
        skip = {path.parent if path.is_file() else path for path in others}
        dicom.read(dataset, findings, contrasts=contrasts, skip=skip, out=nifti, workers=workers)


def inspect_images(scans: Sequence[Scan], findings: Findings, workers: int) -> list[Scan]:
    """Return the scans whose image can be used, with their hashes."""
    usable = []
    for scan, inspected in map_in_threads(
        lambda scan: inspect_image(scan.file),
        scans,
        what="inspecting images",
        unit="images",
        workers=workers,
    ):
        if isinstance(inspected, UnusableError):
            findings.exclude(scan.dataset, scan.origin, inspected)
        else:
            for note in inspected.notes:
                findings.note(scan.dataset, scan.origin, note)
            usable.append(replace(scan, sha256=inspected.sha256, content=inspected.content))
    return usable


def _alternates(scans: Sequence[Scan]) -> pd.DataFrame:
    rows = [(scan.scan_id, other.path, other.sha256) for scan in scans for other in scan.others]
    return pd.DataFrame(rows, columns=list(ALTERNATES.columns), dtype=str)


def _data_version(chosen: Sequence[Scan], findings: Findings) -> str:
    """Hash everything that was used: images, tables, sidecars, and facts from DICOM headers."""
    scans = [image for scan in chosen for image in scan.images]
    used = [(scan.path, scan.sha256) for scan in scans] + list(findings.hashes.items())
    used += [(scan.path, repr(scan.header)) for scan in scans if scan.source == "dicom"]
    lines = "".join(f"{path}\0{content}\n" for path, content in sorted(used))
    return hashlib.sha256(lines.encode()).hexdigest()


def _clear(folder: Path) -> None:
    """Remove what a run that was killed, or that failed, has left."""
    shutil.rmtree(folder / "nifti", ignore_errors=True)
    tables = ("scans.tsv", "contrasts.tsv", "alternates.tsv", label_tables.TABLE, "splits.tsv")
    for name in (*tables, "excluded.tsv", "notes.tsv"):
        (folder / name).unlink(missing_ok=True)


def _remove_unused(nifti: Path, scans: Sequence[Scan]) -> None:
    """Delete converted volumes that did not become scans."""
    used = {image.file for scan in scans for image in scan.images}
    for file in nifti.glob("*"):
        if file not in used:
            file.unlink()
