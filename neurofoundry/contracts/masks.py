"""masks.npz of a model: what it outlines on scans of val, test and ood, on the standard grid; of
several models as one, on scans of test and ood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError
from neurofoundry.runtime.arrays import open_arrays, write_arrays

MASKS = "masks.npz"
"""An array a scan, by its id: (classes, bytes), a bit a voxel (z, y, x)."""


def pack(classes: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return the bits of ``count`` classes of (z, y, x): an eighth of the memory."""
    return np.stack([np.packbits(classes == number + 1) for number in range(count)])


def write_masks(path: Path, masks: Mapping[str, NDArray[np.uint8]], *, key: str = "") -> None:
    """Write masks of `pack` by scan id, and the ``key`` of what they are made from."""
    write_arrays(path, key=key, compress=True, **masks)


def open_masks(path: Path, grid: Grid) -> Callable[[str], NDArray[np.uint8]]:
    """Return a function that reads the classes (z, y, x) of a scan. Raises DataError, as it does.

    One scan at a time is in memory.
    """
    shape = grid.shape[::-1]

    def read(scan_id: str) -> NDArray[np.uint8]:
        try:
            with open_arrays(path) as content:
                bits = np.unpackbits(content[scan_id], axis=1, count=int(np.prod(shape)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no masks ({error}). Run finetune again.") from error
        classes = np.zeros(shape, np.uint8)
        for number, inside in enumerate(bits, 1):
            classes[inside.reshape(shape) == 1] = number
        return classes

    return read
