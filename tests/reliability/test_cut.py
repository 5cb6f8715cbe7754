"""Files that somebody cuts short, or writes over, while they are read: none is half used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofoundry.contracts.labels import read_placed
from neurofoundry.contracts.volumes import DAMAGED, Grid, open_volume, write_volume
from neurofoundry.errors import DataError
from neurofoundry.ingest.image import UnusableError, inspect_image
from neurofoundry.preprocess.load import UnusableScanError, read_scan
from neurofoundry.preprocess.scan import CHANGING
from neurofoundry.preprocess.template import Template
from tests.support.building import write_scan
from tests.support.cutter import changed_when_opened
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
    with changed_when_opened(path, change="cut"), pytest.raises(errors, match=says):
        read(path)


def test_a_volume_that_is_cut_when_it_is_opened_is_refused(tmp_path: Path) -> None:
    ones = np.ones(GRID.shape, np.float32)
    write_volume(tmp_path / "v.nii", ones, ones > 0, GRID)
    open_one(tmp_path / "v.nii")
    with (
        changed_when_opened(tmp_path / "v.nii", change="cut"),
        pytest.raises(DataError, match=r"cut short.*Run preprocess again"),
    ):
        open_one(tmp_path / "v.nii")


@pytest.mark.parametrize("change", ["cut", "blank"])
def test_a_scan_that_changes_after_its_hash_is_taken_is_no_result_for_good(
    tmp_path: Path, change: str
) -> None:
    """The scan has too few slices, which costs no time; as the file is now, nobody may say so."""
    flat = np.ones((300, 300, 8), np.int16)
    template: Template = None  # type: ignore[assignment]  # it does not come to that
    for attempt in range(100):  # the file may be opened again before it is held again
        path = write_scan(tmp_path / f"{attempt}.nii", flat, np.diag([0.8, 0.8, 20, 1]))
        out = tmp_path / f"out-{attempt}"
        with changed_when_opened(path, opening=2, change=change):
            result = preprocess_one(path, out, template)
        if result.reason == CHANGING:
            assert not (out / RESULT).exists()
            return
    pytest.fail(f"it was not seen once: {result.reason}")
