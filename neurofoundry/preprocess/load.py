"""The image of a scan, checked before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.volumes import DAMAGED
from neurofoundry.preprocess.resample import Image, Matrix

MIN_SLICES = 10
VOXEL_MM = (0.2, 8.0)
VIEW_MM = (90.0, 420.0)
"""Plausible lengths of a voxel's edge, and of the field of view along each axis."""

FEWEST_FINITE = 0.05
"""Share of the voxels; a brain alone, with NaN around it, has more."""


class UnusableScanError(Exception):
    """Why nothing can be made of a scan: the kind of fault, a colon, and details."""


def read_scan(path: Path) -> Image:
    """Read an image, its axes in the order and direction nearest to RAS+, whatever the file's.

    Raises UnusableScanError when the file is damaged or cannot show a whole head, and OSError when
    the disk fails.
    """
    try:
        stored: Any = nib.load(path, mmap=False)  # a mapped file may be cut short: SIGBUS
        shape = stored.shape[:3]
        if len(shape) < 3 or np.prod(stored.shape) != np.prod(shape):
            raise UnusableScanError(f"not one volume: its shape is {stored.shape}")
        if stored.get_data_dtype().kind not in "iuf":
            raise UnusableScanError(f"not intensities: its values are {stored.get_data_dtype()}")
        _check_geometry(stored.affine, shape)
        values = np.asarray(stored.dataobj, np.float32).reshape(shape)
    except DAMAGED as error:
        raise UnusableScanError(f"the file cannot be read: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # nibabel says so of a file that is cut short; a failing disk has an error number.
        raise UnusableScanError(f"the file cannot be read: {error}") from error
    _fill_non_finite(values)
    orientation = nib.io_orientation(stored.affine)
    return Image(
        np.ascontiguousarray(nib.apply_orientation(values, orientation)),
        stored.affine @ nib.orientations.inv_ornt_aff(orientation, shape),
    )


def _fill_non_finite(values: NDArray[np.float32]) -> None:
    """Give voxels that are NaN or infinite the lowest value of the others, in place."""
    finite = np.isfinite(values)
    if finite.mean() < FEWEST_FINITE:
        raise UnusableScanError(
            f"not intensities: {1 - finite.mean():.0%} of the values are not finite"
        )
    values[~finite] = values[finite].min()
    if values.min() == values.max():
        raise UnusableScanError(f"empty: every value is {values.min():g}")


def _check_geometry(affine: Matrix, shape: tuple[int, ...]) -> None:
    if min(shape) < MIN_SLICES:
        raise UnusableScanError(f"too few slices: {min(shape)}, expected at least {MIN_SLICES}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-6:
        raise UnusableScanError("no position in space: the header's affine cannot be inverted")
    voxel = nib.affines.voxel_sizes(affine)
    view = voxel * shape
    for name, lengths, (least, most) in (
        ("voxel size", voxel, VOXEL_MM),
        ("field of view", view, VIEW_MM),
    ):
        if lengths.min() < least or lengths.max() > most:
            found = " × ".join(f"{length:.3g}" for length in lengths)
            raise UnusableScanError(
                f"implausible {name}: {found} mm, expected {least:g} to {most:g} mm"
            )
