"""Label images: the raw ones that ingest finds, and those that preprocess carries to the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import SHA256
from neurofoundry.contracts.nifti import open_image
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import DAMAGED, Grid
from neurofoundry.errors import DataError
from neurofoundry.runtime.files import atomic

TABLE = "labels.tsv"
FILE = "{scan_id}.label-{task}.nii"
"""The label image of a scan on the standard grid. No ``scan_id`` has a dot."""

_OUTLINED = {
    "task": pa.Column(str),
    "scan_id": pa.Column(str),
    "path": pa.Column(str),
    "sha256": pa.Column(str, SHA256),
    "values": pa.Column(str),
    "shows": pa.Column(str),
    "ml": pa.Column(float, pa.Check.ge(0)),
}
_ONE_EACH = pa.Check(
    lambda table: not table.duplicated(["task", "scan_id"]).any(), error="a label image twice"
)

LABELS = pa.DataFrameSchema(_OUTLINED, _ONE_EACH, coerce=True)
"""cohort/labels.tsv: one row a label image: ``path`` relative to the data root, which ``values``
are each class (`describe_values`), what it ``shows`` (classes joined by '+', or 'empty'), and the
volume of all classes."""

CARRIED = pa.DataFrameSchema(
    {
        **_OUTLINED,
        "label_sha256": pa.Column(str, SHA256, nullable=True),
        "grid_ml": pa.Column(float, pa.Check.ge(0), nullable=True),
        "voxel_ml": pa.Column(float, pa.Check.gt(0), nullable=True),
        "reason": pa.Column(str, nullable=True),
    },
    _ONE_EACH,
    coerce=True,
)
"""volumes/labels.tsv: the same rows with the hash of the image on the standard grid, the volume of
its classes and of a voxel in the scan's own size (under syn, as the affine part has it), or the
``reason`` why there is none."""


def read_labels(folder: Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Return labels.tsv of a cohort or of volumes; those of earlier versions have none."""
    path = folder / TABLE
    if path.exists():
        return read_table(path, schema)
    return pd.DataFrame(columns=list(schema.columns), dtype=str)


def describe_values(values: Sequence[Sequence[int]]) -> str:
    """Return the values of each class as a cell: '4,43;10' for two of the first and one of the
    second."""
    return ";".join(",".join(map(str, each)) for each in values)


def classify(voxels: NDArray[Any], values: str) -> NDArray[np.uint8]:
    """Return the classes of a label image by `describe_values`: 0 background, k the k-th class."""
    whole = np.rint(voxels) if voxels.dtype.kind == "f" else voxels
    classes = np.zeros(voxels.shape, np.uint8)
    for number, each in enumerate(values.split(";"), 1):
        meant = [int(value) for value in each.split(",") if value]
        classes[np.isin(whole, meant)] = number
    return classes


@dataclass(frozen=True)
class Placed:
    """The voxels of an image, axes in the order and direction nearest to RAS+."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    """From voxel indices to mm."""

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)


def geometry(file: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return shape and affine of a NIfTI image, its axes nearest to RAS+."""
    stored, orientation, affine = _open(file)
    shape = np.array(stored.shape[:3])[np.argsort(orientation[:, 0])]
    return tuple(shape.tolist()), affine


def read_placed(file: Path) -> Placed:
    """Read a NIfTI image that `inspect_image` of ingest has found sound."""
    stored, orientation, affine = _open(file)
    voxels = np.asanyarray(stored.dataobj).reshape(stored.shape[:3])
    return Placed(np.ascontiguousarray(nib.apply_orientation(voxels, orientation)), affine)


def _open(file: Path) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Return an image as it is stored, how its axes turn to be nearest to RAS+, and its affine when
    they are."""
    stored = open_image(file)
    orientation = nib.io_orientation(stored.affine)
    turned = stored.affine @ nib.orientations.inv_ornt_aff(orientation, stored.shape[:3])
    return stored, orientation, turned


def write_classes(path: Path, classes: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """Write classes (x, y, z) as an uncompressed NIfTI of MNI space: the same bytes everywhere."""
    image = nib.Nifti1Image(classes, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    with atomic(path) as temporary:
        nib.save(image, temporary)


def open_classes(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """Read what `write_classes` wrote, axes (z, y, x) as the networks take them.

    Raises DataError when the file is not a whole image on ``grid``.
    """
    try:
        image: Any = nib.Nifti1Image.from_filename(path)
        found, offset = (image.shape, image.get_data_dtype()), image.dataobj.offset
        shape = _on(grid, *found)
        classes = np.fromfile(path, np.uint8, int(np.prod(shape)), offset=offset)
        return classes.reshape(shape)  # a ValueError where it is cut short
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{path.name}: cannot be read ({error}). Run preprocess again.") from error


def _on(grid: Grid, shape: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
    """Return the shape (z, y, x) of ``grid``. Raises ValueError where an image has another one."""
    if (shape, dtype) != (grid.shape, np.uint8):
        raise ValueError(f"found {shape}, {dtype}; expected {grid.shape}, uint8")
    return grid.shape[::-1]
