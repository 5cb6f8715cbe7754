"""Where the voxels of a NIfTI file lie, as every stage that opens one sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

FLATTEST = 0.1
"""Volume of a voxel relative to a box with its edges, below which its edges span no volume."""


def open_image(path: Path) -> Any:
    """Open an image; where its sform places nothing and it has a qform, that one places it."""
    image: Any = nib.load(path, mmap=False)  # a mapped file may be cut short: SIGBUS
    if isinstance(image, nib.Nifti1Image) and has_useless_sform(image.header):
        image.set_sform(None)
    return image


def has_useless_sform(header: nib.Nifti1Header) -> bool:
    """Return whether an sform hides a qform and places nothing itself: zeros, say, or NaN."""
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return False
    return not spans_space(header.get_sform())


def spans_space(affine: NDArray[np.floating]) -> bool:
    """Return whether voxels have a place, and a volume, by an affine."""
    if not np.isfinite(affine).all():
        return False
    linear = np.asarray(affine[:3, :3], np.float64)
    volume = abs(np.linalg.det(linear))
    return bool(volume > 0 and volume >= FLATTEST * np.linalg.norm(linear, axis=0).prod())
