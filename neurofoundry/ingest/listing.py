"""What lies below a folder of raw data, and whether it is DICOM."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurofoundry.errors import is_of_machine
from neurofoundry.ingest.dicom_header import looks_like_dicom
from neurofoundry.params import MOST_BYTES

_IGNORED = ("derivatives", "derivative", "sourcedata", "code")
"""Folders of a BIDS dataset that hold no raw scans, in any case."""


def files(folder: Path, *, skip: set[Path], closed: list[Path]) -> Iterator[Path]:
    """Yield all visible files below ``folder``, in a fixed order.

    Folders in ``skip``, those of other datasets, are left out; folders that cannot be opened are
    added to ``closed``.
    """
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: closed.append(Path(error.filename))
    ):
        folders[:] = sorted(
            name for name in folders if not is_ignored(name) and Path(parent, name) not in skip
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def is_visible(file: Path) -> bool:
    """Return whether neither systems nor spreadsheets hide a file of this name."""
    return not file.name.startswith((".", "~$"))


def visible(folder: Path) -> list[Path]:
    """Return what is visible in a folder; nothing where it cannot be opened, or goes while it is
    searched."""
    try:
        return sorted(filter(is_visible, folder.iterdir()))
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return []


def is_dicom(file: Path) -> bool:
    """Return whether a file begins as DICOM does."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return looks_like_dicom(stream.read(132))
    except OSError as error:
        if is_of_machine(error):
            raise
        return False


def read_json(file: Path) -> Any:
    """Return what a file of JSON holds; None where it holds none, or more than anybody writes.

    Names are in the Unicode form in which tables are read.
    """
    try:
        # Reading a pipe or a device would never end.
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        return json.loads(unicodedata.normalize("NFC", file.read_text("utf-8-sig")))
    except (OSError, ValueError, RecursionError) as error:
        if is_of_machine(error):
            raise
        return None


def holds_dicom(folder: Path) -> bool:
    """Return whether there are DICOM files below the folder of a subject, and none that BIDS would
    call so."""
    found = False
    for file in files(folder, skip=set(), closed=[]):
        if file.name.startswith(f"{folder.name}_"):
            return False
        found = found or is_dicom(file)
    return found


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name holds no raw scans."""
    return name.startswith(".") or name.casefold() in _IGNORED
