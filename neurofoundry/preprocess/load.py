"""The image of a scan, checked before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from neurofoundry.contracts.nifti import open_image
from neurofoundry.contracts.volumes import DAMAGED
from neurofoundry.preprocess.resample import Image, Mask, Matrix

MIN_SLICES = 10
VOXEL_MM = (0.2, 8.0)
VIEW_MM = (90.0, 420.0)
"""Plausible lengths of a voxel's edge, and of the field of view along each axis."""

FEWEST_FINITE = 0.05
"""Share of the voxels; a brain alone, with NaN around it, has more."""
WILD, COMMON, SAMPLED = 10, (0.1, 99.9), 25
"""How far beyond the range of common values, in such ranges, a voxel shows a fault and no tissue;
the percentiles that are this range; and one of how many voxels it is taken from. The brightest of
31 real images lies 2.7 ranges beyond."""


class UnusableScanError(Exception):
    """Why nothing can be made of a scan: the kind of fault, a colon, and details."""


def read_scan(path: Path) -> Image:
    """Read an image, its axes in the order and direction nearest to RAS+, whatever the file's.

    Raises UnusableScanError when the file is damaged or cannot show a whole head, and OSError when
    the disk fails.
    """
    return read_with_gaps(path)[0]


def read_with_gaps(path: Path) -> tuple[Image, Mask | None]:
    """Read an image as `read_scan` does, and which voxels within what it shows were filled, as
    they held no intensity; None where all did."""
    try:
        stored = open_image(path)
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
    gaps = _fill(values, _known(values))
    orientation = nib.io_orientation(stored.affine)

    def to_ras(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(nib.apply_orientation(array, orientation))

    affine = stored.affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    return Image(to_ras(values), affine), None if gaps is None else to_ras(gaps)


def _known(values: NDArray[np.float32]) -> Mask:
    """Return which voxels hold an intensity: finite, and not wildly beyond the others."""
    finite = np.isfinite(values)
    if finite.mean() < FEWEST_FINITE:
        raise UnusableScanError(
            f"not intensities: {1 - finite.mean():.0%} of the values are not finite"
        )
    some = values[finite]
    if some.min() == some.max():
        raise UnusableScanError(f"empty: every value is {some.min():g}")
    low, high = np.percentile(some[::SAMPLED].astype(np.float64), COMMON)
    reach = WILD * (high - low)
    if not reach:
        return finite
    known: Mask = (values >= low - reach) & (values <= high + reach)  # NaN is neither
    return known


def _fill(values: NDArray[np.float32], known: Mask) -> Mask | None:
    """Give voxels that are not ``known`` an intensity, in place; return those that lie within what
    the image shows.

    What can be reached through such voxels from the faces of the image lies around it, and becomes
    as dark as the darkest of it; elsewhere the nearest voxel counts.
    """
    if known.all():
        return None
    regions, _ = ndimage.label(~known)
    faces = [regions.take(end, axis) for axis in range(3) for end in (0, -1)]
    outside = np.unique(np.concatenate([face.ravel() for face in faces]))
    gaps: Mask = ~known & ~np.isin(regions, outside[outside > 0])
    values[~known] = values[known].min()
    if gaps.any():
        rim = np.argwhere(known & ndimage.binary_dilation(gaps))
        nearest = cKDTree(rim).query(np.argwhere(gaps))[1]
        values[gaps] = values[tuple(rim[nearest].T)]
    return gaps


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
