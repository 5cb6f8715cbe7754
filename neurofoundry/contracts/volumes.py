"""Preprocessed volumes on disk: one standard grid, int16.

A voxel's value is a z-score divided by ``SLOPE``. It is 0 outside the brain and never 0 inside, so
that the brain mask is ``volume != 0``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator

from neurofoundry.contracts.cohort import SCANS, SHA256, T1W, further
from neurofoundry.contracts.documents import read_document, write_document
from neurofoundry.contracts.recipe import describe
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.params import Section
from neurofoundry.runtime.files import atomic

SLOPE = 0.001
"""Standard deviations per integer step; int16 then spans ±32.7 of them."""

BOX_MM = ((-95.5, 96.5), (-113.5, 78.5), (-68.5, 81.5))
"""Outer faces of the standard box in MNI152 space (x, y, z), RAS+, in mm: 192 × 192 × 150 mm."""

FINEST_MM, COARSEST_MM = 0.25, 6.0
"""The smallest voxel whose volume (700 MB) a computer holds, and the largest that fills the box."""


class Grid(Section):
    """The standard grid: the box of the published 3D-Neuro-SimCLR weights, at some spacing."""

    spacing: float = 1.0
    """Edge of a voxel in mm. It must divide 192 and 150: 1, 1.5, 2, 3, 6."""

    @field_validator("spacing")
    @classmethod
    def _divides_the_box(cls, spacing: float) -> float:
        possible = FINEST_MM <= spacing <= COARSEST_MM  # no NaN is
        counts = [(high - low) / spacing for low, high in BOX_MM] if possible else []
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
        """The 4 × 4 matrix from voxel indices to mm of MNI152 space."""
        affine = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        affine[:3, 3] = [low + self.spacing / 2 for low, _ in BOX_MM]
        return affine

    def describe(self) -> dict[str, Any]:
        """Return what a reader must know; it travels with the volumes and with the weights."""
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

    The header is a new one: nothing of the scan's own header is kept. Raises ValueError.
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
    with atomic(path) as temporary:
        nib.save(image, temporary)


DAMAGED = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    EOFError,
    ValueError,
    zlib.error,
)
"""What nibabel raises for a file that is not what it should be; OSError, too, where it is cut
short."""


def open_volume(path: Path, grid: Grid) -> NDArray[np.int16]:
    """Read a volume: int16 steps of ``SLOPE``, axes (z, y, x) as the networks take them.

    Raises DataError when the file is not a whole volume on ``grid``.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        proxy: Any = image.dataobj
        shape, dtype, slope, offset = image.shape, image.get_data_dtype(), proxy.slope, proxy.offset
        same_affine = np.allclose(image.affine, grid.affine, atol=1e-4)
        # Not mapped into memory: where somebody cuts a mapped file short, the kernel ends the
        # process that reads on (SIGBUS), without a word.
        steps = np.fromfile(path, np.int16, int(np.prod(grid.shape)), offset=offset)
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{path.name}: cannot be read ({error}). Run preprocess again.") from error
    if (shape, dtype) != (grid.shape, np.int16) or not np.isclose(slope, SLOPE) or not same_affine:
        raise DataError(
            f"{path.name}: found shape {shape}, {dtype}, affine {image.affine.tolist()}; "
            f"expected {grid.shape}, int16, {grid.affine.tolist()}. Run preprocess again."
        )
    if steps.size < np.prod(grid.shape):
        raise DataError(
            f"{path.name}: cut short, {steps.size} of {np.prod(grid.shape)} voxels. "
            "Run preprocess again."
        )
    # NIfTI stores x fastest, so the C-order view of the same bytes is (z, y, x).
    return steps.reshape(grid.shape[::-1])


VOLUMES = SCANS.add_columns(
    {
        "usable": pa.Column(bool),
        "reason": pa.Column(str, nullable=True),
        "volume": pa.Column(str, nullable=True),
        "volume_sha256": pa.Column(str, SHA256, nullable=True),
        "sketch": pa.Column(str, nullable=True, required=False),
        "^volume_sha256_[A-Za-z0-9]+$": pa.Column(
            str, SHA256, nullable=True, required=False, regex=True
        ),
    }
)
"""volumes/scans.tsv: the cohort and, for every scan, whether its volume is usable and why not, and
where it lies in the folder: nothing else knows the names of volumes. Measures of quality follow as
further columns. Of every further contrast there are ``volume_CONTRAST`` and
``volume_sha256_CONTRAST``, ``reason_CONTRAST`` where there is none, and measures."""


def check_described(described: dict[str, Any]) -> dict[str, Any]:
    """Return what `Grid.describe` has returned. Raises ValueError where no grid says this of
    itself."""
    spacing = described.get("spacing_mm")
    if type(spacing) not in (int, float):
        problem = "is missing" if spacing is None else f"is {spacing!r:.80}, expected a number"
        raise ValueError(f"spacing_mm {problem}")
    expected = Grid(spacing=spacing).describe()
    for name, value in described.items():
        # The slope is how volumes are stored.
        if name != "slope" and value != expected.get(name):
            raise ValueError(
                f"{name} is {value!r:.80}, expected {expected.get(name)!r:.80} for {spacing:g} mm"
            )
    return described


class VolumesRecord(BaseModel):
    """grid.json: what a reader must know about all volumes of a folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: dict[str, Any]
    """`Grid.describe`."""
    normalization: str = "zscore"
    """How intensities are normalized: zscore, whitestripe, or nyul and its scale."""
    contrasts: tuple[str, ...] | None = None
    """T1w and what else sessions were scanned with; none where that is T1w alone."""
    template_sha256: str | None = None
    """The hash of a template that is not nilearn's."""
    params: dict[str, Any]
    """``preprocess`` of params.yaml."""

    @field_validator("grid")
    @classmethod
    def _a_grid(cls, described: dict[str, Any]) -> dict[str, Any]:
        return check_described(described)


def picture_of(volume: str) -> str:
    """Return the name of the picture beside a volume."""
    return volume.removesuffix(".nii") + ".png"


class VolumeFolder:
    """A folder of volumes on one grid, of which the names follow from ``names`` by contrast."""

    def __init__(self, folder: Path, grid: Grid, names: Mapping[str, str] | None = None) -> None:
        self.folder, self.grid, self._names = folder, grid, names or {T1W: "{}.nii"}
        self.contrasts = tuple(self._names)
        """What there may be of a scan, T1w first."""

    def find(self, scan_id: str, contrast: str) -> Path | None:
        """Return the file of a scan in a contrast, None where there is none."""
        if contrast not in self._names:
            return None
        path = self.folder / self._names[contrast].format(scan_id)
        return path if path.exists() else None

    def path(self, scan_id: str) -> Path:
        """Return the file of a T1w volume."""
        return self.folder / self._names[T1W].format(scan_id)

    def open(self, scan_id: str) -> NDArray[np.int16]:
        """Read a T1w volume as `open_volume` does. Raises DataError."""
        return open_volume(self.path(scan_id), self.grid)


class Volumes(VolumeFolder):
    """The output of preprocess."""

    def __init__(self, folder: Path) -> None:
        """Read grid.json. Raises DataError."""
        self._record = read_document(
            folder / "grid.json",
            VolumesRecord,
            what="the grid of a volumes folder",
            remedy="Give the folder that `neurofoundry preprocess` wrote, or run it again",
        )
        super().__init__(folder, Grid(spacing=self._record.grid["spacing_mm"]))
        self.normalization = self._record.normalization
        self.contrasts = self._record.contrasts or (T1W,)
        """What sessions were scanned with, T1w first."""

    @cached_property
    def scans(self) -> pd.DataFrame:
        """scans.tsv (``VOLUMES``): the whole cohort. Raises DataError."""
        return read_table(self.folder / "scans.tsv", VOLUMES)

    @cached_property
    def _files(self) -> dict[str, dict[str, str]]:
        files = {}
        for contrast in self.contrasts:
            column = further("volume", contrast)
            table = self.scans[self.scans[column].notna()]
            files[contrast] = dict(zip(table["scan_id"], table[column], strict=True))
        return files

    def find(self, scan_id: str, contrast: str) -> Path | None:
        """Return the file of a scan in a contrast, as scans.tsv says it; None without one."""
        name = self._files.get(contrast, {}).get(scan_id)
        return None if name is None else self.folder / name

    def path(self, scan_id: str) -> Path:
        """Return the file of a T1w volume, as scans.tsv says it."""
        return self.folder / self._files[T1W][scan_id]

    @property
    def hashes(self) -> list[str]:
        """The columns of ``scans`` that have the hashes of volumes."""
        return [further("volume_sha256", contrast) for contrast in self.contrasts]

    @property
    def usable(self) -> pd.DataFrame:
        """The rows of ``scans`` whose volumes are usable."""
        return self.scans[self.scans["usable"]]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """How a single volume is made and checked.

        It is a `Recipe`: nothing in it can be run or opened.
        """
        recipe = describe(self._record.params)
        if self._record.template_sha256 is not None:
            recipe["template_sha256"] = self._record.template_sha256
        landmarks = self.folder / "landmarks.json"
        if landmarks.exists():
            recipe["standard"] = json.loads(landmarks.read_text())["standard"]
        return recipe


def write_record(folder: Path, record: VolumesRecord) -> None:
    """Write grid.json."""
    content = record.model_dump(mode="json", exclude_none=True)
    write_document(folder / "grid.json", content, VolumesRecord)
