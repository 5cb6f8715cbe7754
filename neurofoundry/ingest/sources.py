"""Finds the datasets below the data root.

`auto` searches the root, then its folders down to the third level: a BIDS dataset has ``sub-*``
folders, which do not all hold DICOM and nothing else; a table is the only .tsv or .csv in a folder
that has a column ``path``. All DICOM files that lie elsewhere are one dataset called ``dicom``:
folders of DICOM are often named after people, and their names must not get into a table. Hospitals
that number their patients alike have to be declared separately.

A dataset at the root itself is called ``data``; others after their folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import delimited, table, vocabulary
from neurofoundry.ingest.derivatives import why_derivative
from neurofoundry.ingest.listing import files, holds_dicom, is_dicom, is_ignored
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, UnusableError, printable
from neurofoundry.runtime.files import spelled
from neurofoundry.runtime.progress import Progress

_DEPTH = 3
_NONE = "not a dataset"
_GIVEN_DERIVATIVE = (
    "a derivative: this is what a pipeline has made of scans, not the scans as they were acquired, "
    "and it is used as if it were. If that is not meant, give the raw data's folder with --data"
)
_SHOWN = 5
"""Reasons that are shown where there is no dataset; excluded.tsv has all."""
_EXPECTED = "BIDS (folders sub-*), a table (.tsv or .csv with a column 'path'), or DICOM files"


def folder_of(data: Path) -> Path:
    """Return the folder of the raw data, in which ``data`` itself may be a table."""
    return data.parent if data.is_file() else data


def find(
    declared: Sequence[Dataset], findings: Findings, given: Path | None = None
) -> list[Dataset]:
    """Return the declared datasets, or whatever lies below ``findings.data``.

    ``given`` is that folder, or a table in it that is the only dataset. Raises UsageError when a
    declared one is not there, DataError when there is none at all.
    """
    data = findings.data
    if given is not None and given.is_file():
        return [_given_table(given, declared)]
    if not data.is_dir():
        raise UsageError(
            f"{data.name}: the data folder does not exist. Give the folder with --data."
        )
    if declared:
        return [_locate(dataset, data) for dataset in declared]
    datasets = _discover(data, findings)
    if not datasets:
        # A folder that is no dataset may be named after a patient.
        reasons = [reason for _, _, reason in findings.excluded if not reason.startswith(_NONE)]
        why = "".join(f"\n  {reason}" for reason in reasons[:_SHOWN])
        raise DataError(
            f"No dataset found in the data folder '{data.name}', which holds: {_listing(data)}. "
            f"Expected {_EXPECTED}. Put a dataset there (`dvc pull` fetches one that is under "
            f"version control), or name it in ingest.datasets.{_skipped(data)}{_packed(data)}{why}"
        )
    return datasets


def _skipped(data: Path) -> str:
    """Say that folders were left out which may hold what is sought, where there are such."""
    names = sorted(child.name for child in data.iterdir() if is_ignored(child.name))
    shown = [name for name in names if not name.startswith(".")]
    return f" Not searched, as it holds no raw scans: {', '.join(shown)}." if shown else ""


def _packed(data: Path) -> str:
    """Say that there are tables that are not read, where there are."""
    kinds = {vocabulary.suffix(child.name) for child in data.iterdir() if child.is_file()}
    unread = sorted(kinds & {".txt", ".xlsx", ".xls", ".gz", ".zip"})
    return (
        f" A table is not read from {', '.join(unread)}: save it as .tsv or .csv." if unread else ""
    )


def _among_derivatives(data: Path) -> bool:
    """Return whether a folder lies where BIDS has derivatives: their `derivatives/PIPELINE`."""
    return any(is_ignored(part) for part in data.resolve().parts[-2:] if not part.startswith("."))


def _given_table(file: Path, declared: Sequence[Dataset]) -> Dataset:
    """Return the dataset that a table, given in place of the data folder, is."""
    if declared:
        raise UsageError(
            f"--data {file.name} is a file, and ingest.datasets declares datasets: give their "
            "folder, or set ingest.datasets to auto."
        )
    try:
        delimited.read(file, key="path")
    except UnusableError as reason:
        raise DataError(f"--data {file.name}: {reason}. Expected {_EXPECTED}.") from None
    return Dataset(name="data", kind="table", path=file.name)


def _locate(dataset: Dataset, data: Path) -> Dataset:
    """Return a declared dataset, a table with the path of its file. Raises UsageError."""
    path = spelled(data, dataset.path)
    if not path.exists():
        raise UsageError(
            f"ingest.datasets: '{dataset.name}' should lie in '{dataset.path}' below the data "
            "folder, but there is no such file or folder."
        )
    if dataset.kind != "table":
        if not path.is_dir():
            raise UsageError(
                f"ingest.datasets: '{dataset.name}' is of kind {dataset.kind}, so "
                f"'{dataset.path}' should be a folder; it is a file."
            )
        return _lying_at(path, dataset, data)
    if path.is_file():
        return _lying_at(path, dataset, data)
    tables = table.find(path)
    if len(tables) != 1:
        shown = ", ".join(file.name for file in tables) or "none"
        raise UsageError(
            f"ingest.datasets: '{dataset.name}': expected one .tsv or .csv with a column 'path' in "
            f"'{dataset.path}', found {shown}. Name the file itself in `path`."
        )
    return _lying_at(tables[0], dataset, data)


def _lying_at(path: Path, dataset: Dataset, data: Path) -> Dataset:
    return dataset.model_copy(update={"path": path.relative_to(data).as_posix()})


def _discover(data: Path, findings: Findings) -> list[Dataset]:
    datasets = list(_below(data, data, findings, _DEPTH))
    taken = {data / dataset.path for dataset in datasets}
    taken |= {path.parent for path in taken if path.is_file()}
    if data in taken:
        return datasets
    if _holds_dicom(data, taken):
        return [*datasets, Dataset(name="dicom", kind="dicom", path=".")]
    excluded = {path for _, path, _ in findings.excluded}
    for child in _folders(data):
        holds_dataset = any(path == child or child in path.parents for path in taken)
        if printable(child.name) != child.name:  # as on a hospital's CD, of a patient
            odd = "it has control characters or is not UTF-8. Rename it"
            findings.exclude("data", data, f"odd name of a folder, which is not shown: {odd}")
        elif not holds_dataset and findings.name(child) not in excluded:
            findings.exclude(findings.name(child), child, f"{_NONE}: expected {_EXPECTED}")
    return datasets


def _below(folder: Path, data: Path, findings: Findings, depth: int) -> Iterator[Dataset]:
    """Yield the BIDS datasets and tables in ``folder``, or else in the folders below it."""
    path = folder.relative_to(data).as_posix()
    if printable(path) != path:
        return
    name = path if path != "." else "data"
    is_bids = _is_bids(folder)
    tables = [] if is_bids else table.find(folder)
    if is_bids:
        says = why_derivative(folder)
        if not says or folder == data:
            if folder == data and (says or _among_derivatives(data)):
                findings.note(name, folder, _GIVEN_DERIVATIVE)
            yield Dataset(name=name, kind="bids", path=path)
            return
        findings.exclude(
            name,
            folder,
            f"a derivative: {says} in its dataset_description.json says that it holds no raw "
            "scans. Name it in ingest.datasets to use it all the same, or correct the file to "
            '"DatasetType": "raw"',
        )
    elif len(tables) == 1:
        yield Dataset(name=name, kind="table", path=tables[0].relative_to(data).as_posix())
    elif tables:
        shown = ", ".join(file.name for file in tables)
        findings.exclude(
            name,
            folder,
            f"several tables: {shown} have a column 'path'. Name the right one in ingest.datasets "
            "(kind: table), or give it with --data",
        )
    else:
        below = [
            dataset
            for child in (_folders(folder) if depth else [])
            for dataset in _below(child, data, findings, depth - 1)
        ]
        yield from below
        for file, why in table.meant_as(folder) if not below else ():
            findings.exclude(name, file, why)


def _holds_dicom(data: Path, taken: set[Path]) -> bool:
    """Return whether there is a DICOM file outside the datasets that are ``taken``."""
    with Progress("searching for DICOM", None, unit="files") as progress:
        for file in files(data, skip=taken, closed=[]):
            if is_dicom(file):
                return True
            progress.advance()
    return False


def _is_bids(folder: Path) -> bool:
    subjects = [child for child in _folders(folder) if child.name.startswith("sub-")]
    # Somebody may have called folders so that are named after patients.
    return any(not holds_dicom(subject) for subject in subjects)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            child for child in folder.iterdir() if child.is_dir() and not is_ignored(child.name)
        )
    except (PermissionError, FileNotFoundError):  # it may go while it is searched for
        return []


def _listing(folder: Path) -> str:
    """Describe what a folder holds, without names: they may be those of patients."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    folders = sum(child.is_dir() for child in children)
    kinds = sorted({vocabulary.suffix(child.name) for child in children if not child.is_dir()})
    return f"{folders} folders and {len(children) - folders} files" + (
        f" ({', '.join(kind or 'no suffix' for kind in kinds[:8])})" if kinds else ""
    )
