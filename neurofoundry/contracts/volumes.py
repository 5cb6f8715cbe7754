"""Preprocessed volumes on disk: one standard grid, int16, read as memory maps.

A voxel value is a z-score divided by ``SLOPE``. Outside the brain it is 0, and inside it never
is, so that the brain mask is ``volume != 0``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandera.pandas as pa
from numpy.typing import NDArray
from pydantic import field_validator

from neurofoundry.contracts.cohort import SCANS, SHA256
from neurofoundry.errors import DataError
from neurofoundry.params import Section

SLOPE = 0.001
"""z-score units of one step; int16 then spans ±32.7 standard deviations."""

BOX_MM = ((-95.5, 96.5), (-113.5, 78.5), (-68.5, 81.5))
"""Outer faces of the standard box in MNI152 space (x, y, z), RAS+: 192 × 192 × 150 mm."""


class Grid(Section):
    """The standard grid: the box of the published 3D-Neuro-SimCLR weights at some spacing."""

    spacing: float = 1.0
    """Edge of a voxel in mm. It must divide 192 and 150: 1, 1.5, 2, 3, 6."""

    @field_validator("spacing")
    @classmethod
    def _divides_the_box(cls, spacing: float) -> float:
        counts = [(high - low) / spacing for low, high in BOX_MM] if spacing > 0 else []
        if not counts or any(abs(count - round(count)) > 1e-9 for count in counts):
            raise ValueError("must divide 192 mm and 150 mm, such as 1, 1.5, 2, 3 or 6")
        return spacing

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (x, y, z)."""
        x, y, z = (round((high - low) / self.spacing) for low, high in BOX_MM)
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        """From voxel indices to mm of MNI152 space, 4 × 4."""
        affine = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        affine[:3, 3] = [low + self.spacing / 2 for low, _ in BOX_MM]
        return affine

    def describe(self) -> dict[str, Any]:
        """What a reader of the volumes must know; it travels with them and with the weights."""
        return {
            "space": "MNI152 (ICBM 2009, nonlinear symmetric)",
            "orientation": "RAS+",
            "spacing_mm": self.spacing,
            "shape_xyz": list(self.shape),
            "affine": self.affine.tolist(),
            "network_axes": "zyx",
            "slope": SLOPE,
        }


def write_volume(
    path: Path, zscores: NDArray[np.floating], mask: NDArray[np.bool_], grid: Grid
) -> None:
    """Write z-scores of shape ``grid.shape`` (x, y, z) as an uncompressed int16 NIfTI.

    The header is fresh: nothing of the scan's own header is carried over.
    """
    if zscores.shape != grid.shape or mask.shape != grid.shape:
        raise ValueError(f"expected shape {grid.shape}, found {zscores.shape} and {mask.shape}")
    steps = np.clip(np.rint(zscores / SLOPE), -32767, 32767).astype(np.int16)
    steps[mask & (steps == 0)] = 1
    steps[~mask] = 0
    image = nib.Nifti1Image(steps, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code="mni")
    image.set_qform(grid.affine, code="mni")
    image.header.set_slope_inter(SLOPE, 0)
    temporary = path.with_name(f".{path.name}.tmp.nii")
    nib.save(image, temporary)
    temporary.replace(path)


def open_volume(path: Path, grid: Grid) -> NDArray[np.int16]:
    """Memory-map a volume: int16 steps of ``SLOPE``, axes (z, y, x) as the networks take them.

    Raises DataError when the file is not a whole volume on ``grid``.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        proxy: Any = image.dataobj
        found = (image.shape, image.get_data_dtype(), proxy.slope)
        matches = np.allclose(image.affine, grid.affine, atol=1e-4)
        offset = proxy.offset
        size = os.stat(path).st_size
    except (
        OSError,
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        raise DataError(f"{path.name}: cannot be read ({error}). Run preprocess again.") from error
    expected = int(np.prod(grid.shape)) * 2 + offset
    if found[:2] != (grid.shape, np.int16) or not np.isclose(found[2], SLOPE) or not matches:
        raise DataError(
            f"{path.name}: found shape {found[0]}, {found[1]}, affine {image.affine.tolist()}; "
            f"expected {grid.shape}, int16, {grid.affine.tolist()}. Run preprocess again."
        )
    if size < expected:
        raise DataError(
            f"{path.name}: {size} bytes of {expected}: cut short. Run preprocess again."
        )
    # NIfTI stores x fastest, so the C-order view of the same bytes is (z, y, x).
    return np.memmap(path, np.int16, "r", offset=offset, shape=grid.shape[::-1])


def read_grid(folder: Path) -> Grid:
    """The grid of a volumes folder."""
    path = folder / "grid.json"
    try:
        return Grid(spacing=json.loads(path.read_text())["grid"]["spacing_mm"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the grid of a volumes folder ({error!r}).") from error


def read_recipe(folder: Path) -> dict[str, Any]:
    """How the volumes of a folder are made, and judged one by one: ``preprocess`` of params.yaml
    without what compares them, names files or hardware, and ``template_sha256``, of a template
    that is not nilearn's, and ``standard``, the landmarks of nyul."""
    made = json.loads((folder / "grid.json").read_text())
    left_out = ("outliers", "overrides", "device", "batch", "template")
    recipe = {name: value for name, value in made["params"].items() if name not in left_out}
    if "template_sha256" in made:
        recipe["template_sha256"] = made["template_sha256"]
    if (folder / "landmarks.json").exists():
        recipe["standard"] = json.loads((folder / "landmarks.json").read_text())["standard"]
    return recipe


def read_normalization(folder: Path) -> str:
    """What intensities mean in a volumes folder: zscore, whitestripe, or nyul and its scale.

    Volumes that do not say are z-scores.
    """
    path = folder / "grid.json"
    try:
        return str(json.loads(path.read_text()).get("normalization", "zscore"))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the grid of a volumes folder ({error!r}).") from error


VOLUMES = SCANS.add_columns(
    {
        "usable": pa.Column(bool),
        "reason": pa.Column(str, nullable=True),
        "volume_sha256": pa.Column(str, SHA256, nullable=True),
    }
)
"""volumes/scans.tsv: the cohort and, for every scan, whether its volume can be used and why not.
Measures of quality follow as further columns."""
