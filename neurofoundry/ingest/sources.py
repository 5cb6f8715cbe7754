"""Finds the datasets below the data root.

`auto` looks at the root, then at its folders down to the third level: a BIDS dataset has
``sub-*`` folders; a table is the one .tsv or .csv in a folder that has a
column ``path``. All DICOM files that lie elsewhere are one dataset called ``dicom``: folders of
DICOM are often called after people, and their names must not get into a table. Hospitals that
number their patients alike have to be declared apart.

A dataset at the root itself is called ``data``; others after their folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import table
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, printable

IGNORED = ("derivatives", "sourcedata", "code")
_DEPTH = 3


def find(declared: Sequence[Dataset], found: Findings) -> list[Dataset]:
    """The declared datasets, or whatever lies below ``found.data``.

    Raises UsageError when a declared one is not there, DataError when nothing is found.
    """
    data = found.data
    if not data.is_dir():
        raise UsageError(
            f"{data.name}: the data folder does not exist. Give the folder with --data."
        )
    for dataset in declared:
        path = data / dataset.path
        if not path.exists():
            raise UsageError(
                f"ingest.datasets: '{dataset.name}' should lie in '{dataset.path}' below the data "
                "folder, but there is no such file or folder."
            )
        if dataset.kind != "table" and not path.is_dir():
            raise UsageError(
                f"ingest.datasets: '{dataset.name}' is of kind {dataset.kind}, so that "
                f"'{dataset.path}' should be a folder; it is a file."
            )
    if declared:
        return [_with_table(dataset, data) for dataset in declared]
    datasets = list(_below(data, data, found, _DEPTH))
    taken = {data / dataset.path for dataset in datasets}
    taken |= {path.parent for path in taken if path.is_file()}
    if data not in taken and any(map(is_dicom, files(data, skip=taken, closed=[]))):
        datasets.append(Dataset(name="dicom", kind="dicom", path="."))
    elif data not in taken:
        refused = {path for _, path, _ in found.excluded}
        for child in _folders(data):
            holds_one = any(path == child or child in path.parents for path in taken)
            if not holds_one and found.name(child) not in refused:
                found.exclude(found.name(child), child, f"not a dataset: found none of {_EXPECTED}")
    if not datasets:
        raise DataError(
            f"No dataset found in the data folder '{data.name}', which holds: {_listing(data)}. "
            f"Looked for {_EXPECTED}. Put a dataset there (`dvc pull` fetches one that is under "
            "version control), or name it in ingest.datasets."
        )
    return datasets


_EXPECTED = "BIDS (folders sub-*), a table (.tsv or .csv with a column 'path'), and DICOM files"


def _below(folder: Path, data: Path, found: Findings, depth: int) -> Iterator[Dataset]:
    path = folder.relative_to(data).as_posix()
    if printable(path) != path:
        odd = "odd name: it has control characters or is not UTF-8. Rename it"
        found.exclude(printable(path), folder, odd)
        return
    name = path if path != "." else "data"
    if _is_bids(folder):
        if _is_derivative(folder) and folder != data:
            found.exclude(
                name,
                folder,
                "a derivative: its dataset_description.json says that these are no raw scans. "
                "Name it in ingest.datasets if they are meant",
            )
        else:
            yield Dataset(name=name, kind="bids", path=path)
        return
    tables = table.find(folder)
    if len(tables) == 1:
        yield Dataset(name=name, kind="table", path=tables[0].relative_to(data).as_posix())
        return
    if tables:
        shown = ", ".join(file.name for file in tables)
        found.exclude(
            name,
            folder,
            f"several tables: {shown} have a column 'path'. Name one in ingest.datasets",
        )
        return
    if depth:
        for child in _folders(folder):
            yield from _below(child, data, found, depth - 1)


def _with_table(dataset: Dataset, data: Path) -> Dataset:
    """A declared table may be named by its folder."""
    path = data / dataset.path
    if dataset.kind != "table" or path.is_file():
        return dataset
    tables = table.find(path)
    if len(tables) != 1:
        shown = ", ".join(file.name for file in tables) or "none"
        raise UsageError(
            f"ingest.datasets: '{dataset.name}': expected one .tsv or .csv with a column 'path' in "
            f"'{dataset.path}', found {shown}. Name the file itself in `path`."
        )
    return dataset.model_copy(update={"path": tables[0].relative_to(data).as_posix()})


def files(folder: Path, *, skip: set[Path], closed: list[Path]) -> Iterator[Path]:
    """All visible files below ``folder`` but those of other datasets, in a fixed order.

    Folders that cannot be opened are added to ``closed``.
    """
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: closed.append(Path(error.filename))
    ):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in IGNORED and Path(parent, name) not in skip
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def is_dicom(file: Path) -> bool:
    """Whether a file says in its preamble that it is DICOM."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_bids(folder: Path) -> bool:
    return any(child.name.startswith("sub-") for child in _folders(folder))


def _is_derivative(folder: Path) -> bool:
    try:
        description = json.loads((folder / "dataset_description.json").read_text("utf-8-sig"))
        return bool(description["DatasetType"] == "derivative")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            child
            for child in folder.iterdir()
            if child.is_dir() and not child.name.startswith(".") and child.name not in IGNORED
        )
    except PermissionError:
        return []


def _listing(folder: Path) -> str:
    """What a folder holds, without names: they may be those of patients."""
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    folders = sum(child.is_dir() for child in children)
    kinds = sorted({"".join(child.suffixes[-2:]) for child in children if not child.is_dir()})
    return f"{folders} folders and {len(children) - folders} files" + (
        f" ({', '.join(kind or 'without ending' for kind in kinds[:8])})" if kinds else ""
    )
