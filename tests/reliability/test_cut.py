"""Files that somebody cuts short, or writes over, while they are read: none is half used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofoundry.contracts.labels import read_placed
from neurofoundry.contracts.volumes import DAMAGED, Grid, open_volume, write_volume
from neurofoundry.errors import DataError
from neurofoundry.ingest.image import UnusableError, inspect_image
from neurofoundry.preprocess import scan
from neurofoundry.preprocess.load import UnusableScanError, read_scan
from neurofoundry.preprocess.scan import CHANGING
from neurofoundry.preprocess.template import Template
from neurofoundry.runtime.files import hash_file
from tests.support.building import write_scan
from tests.support.cutter import cut_when_opened
from tests.support.preprocessing import RESULT, preprocess_one

GRID = Grid(spacing=6.0)


def inspect(path: Path) -> None:
    if isinstance(found := inspect_image(path), UnusableError):
        raise found


def open_one(path: Path) -> None:
    open_volume(path, GRID)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    ("read", "errors", "says"),
    [
        (inspect, UnusableError, "cut short|gzip"),
        (read_scan, UnusableScanError, "cannot be read"),
        (read_placed, (OSError, *DAMAGED), None),
    ],
)
def test_an_image_that_is_cut_when_it_is_opened_is_refused(
    tmp_path: Path, name: str, read: Callable[[Path], Any], errors: Any, says: str | None
) -> None:
    path = write_scan(tmp_path / name)
    read(path)
    with cut_when_opened(path), pytest.raises(errors, match=says):
        read(path)


def test_a_volume_that_is_cut_when_it_is_opened_is_refused(tmp_path: Path) -> None:
    ones = np.ones(GRID.shape, np.float32)
    write_volume(tmp_path / "v.nii", ones, ones > 0, GRID)
    open_one(tmp_path / "v.nii")
    with (
        cut_when_opened(tmp_path / "v.nii"),
        pytest.raises(DataError, match=r"cut short.*Run preprocess again"),
    ):
        open_one(tmp_path / "v.nii")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def blank(path: Path) -> None:
    """Make zeros of the second half, as where a program that copies it has reserved its place."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


@pytest.mark.parametrize("change", [cut, blank])
def test_a_scan_that_changes_after_its_hash_is_taken_is_no_result_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """It has too few slices; as the file is now, nobody may say so."""
    path = write_scan(
        tmp_path / "a.nii", np.ones((300, 300, 8), np.int16), np.diag([0.8, 0.8, 20, 1])
    )

    def hash_then_change(file: Path) -> str:
        digest = hash_file(file)
        change(file)
        return digest

    monkeypatch.setattr(scan, "hash_file", hash_then_change)
    template: Template = None  # type: ignore[assignment]  # it does not come to that
    assert preprocess_one(path, tmp_path / "out", template).reason == CHANGING
    assert not (tmp_path / "out" / RESULT).exists()
