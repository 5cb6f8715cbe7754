"""Features of preprocessed volumes, in three lines of Python.

from neurofoundry import load_encoder
encoder = load_encoder("encoder/simclr")
features = encoder("volumes/sub-01/ses-1/anat/…_T1w.nii")
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurofoundry.contracts.encoder import Plan, check_grid
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder

Volume: TypeAlias = "str | PathLike[str] | nib.spatialimages.SpatialImage"

LARGEST = 32.767
"""Standard deviations that a volume can hold (volumes.SLOPE): larger values are not z-scores."""

REMEDY = "`neurofoundry embed` and `neurofoundry preprocess` make such volumes from raw scans."


def load_encoder(path: str | PathLike[str]) -> FrozenEncoder:
    """Load the encoder of a folder: an output of pretrain or import, or one that was exported.

    It is on the GPU if there is one. Raises DataError.
    """
    encoder, plan = encoders.load(Path(path))
    return FrozenEncoder(encoder, plan)


class FrozenEncoder:
    """Weights and their plan: volumes in, features out."""

    def __init__(self, encoder: Encoder, plan: Plan) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = encoder.to(self.device).eval().requires_grad_(False)
        self.plan = plan
        self.grid = Grid(spacing=plan.grid["spacing_mm"]) if plan.grid else None
        """None where the weights are bound to no grid."""

    def __call__(
        self,
        volumes: Volume | Sequence[Volume] | NDArray[Any] | Tensor,
        *,
        affine: NDArray[Any] | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Return features, (scans, features), float32, on the CPU.

        Volumes are T1w: further contrasts of the weights count as lacking.

        ``volumes`` are z-scores within the brain and 0 outside, as preprocess writes them: one
        NIfTI image (or its path), or several; or an array (x, y, z) with the ``affine`` of its
        voxels; or a tensor (scans, 1, z, y, x) with the ``grid`` it is on. Raises DataError when
        they are on another grid, rotated, or not z-scores, and UsageError when that is unknown.
        """
        if isinstance(volumes, np.ndarray | Tensor):
            return torch.cat([self._features(one) for one in self._arrays(volumes, affine, grid)])
        if affine is not None or grid is not None:
            raise UsageError("affine and grid are for arrays: an image has its own.")
        images: Any = volumes
        if isinstance(volumes, str | PathLike | nib.spatialimages.SpatialImage):
            images = [volumes]
        return torch.cat([self._features(self._read(image)) for image in images])

    def _features(self, volume: NDArray[Any]) -> Tensor:
        """Return the features of one volume (z, y, x): no scan may depend on those beside it."""
        largest = float(np.abs(volume).max(initial=0))
        if not largest <= LARGEST * 1.001:
            raise DataError(
                f"Values up to {largest:g}, expected z-scores within the brain (at most "
                f"{LARGEST:g}) and 0 outside. {REMEDY}"
            )
        size = (1, self.encoder.channels, *volume.shape)
        batch = torch.zeros(size)
        batch[0, 0] = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
        with torch.no_grad():
            features: Tensor = self.encoder(batch.to(self.device)).float().cpu()
        return features

    def _read(self, image: Any) -> NDArray[Any]:
        name = Path(image).name if isinstance(image, str | PathLike) else "The image"
        if isinstance(image, str | PathLike):
            try:
                image = nib.load(image, mmap=False)
            except (OSError, nib.filebasedimages.ImageFileError) as error:
                raise DataError(f"{name}: cannot be read ({error}).") from error
        self._check(name, image.shape, image.affine)
        return np.asarray(image.dataobj, np.float32).transpose(2, 1, 0)

    def _arrays(
        self, array: NDArray[Any] | Tensor, affine: NDArray[Any] | None, grid: Grid | None
    ) -> list[NDArray[Any]]:
        values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
        if (affine is None) == (grid is None):
            raise UsageError(
                "An array does not tell where its voxels lie. Give encoder(array, affine=…) for "
                "axes (x, y, z), or encoder(tensor, grid=Grid(spacing=…)) for (scans, 1, z, y, x)."
            )
        if affine is not None:
            self._check("The array", values.shape, np.asarray(affine))
            return [values.transpose(2, 1, 0)]
        assert grid is not None
        check_grid(self.plan, grid)
        if values.ndim != 5 or values.shape[1:] != (1, *grid.shape[::-1]):
            raise DataError(
                f"The tensor is {values.shape}, expected (scans, 1, z, y, x) with (z, y, x) = "
                f"{grid.shape[::-1]} for {grid.spacing:g} mm. {REMEDY}"
            )
        return list(values[:, 0])

    def _check(self, name: str, shape: tuple[int, ...], affine: NDArray[Any]) -> None:
        """Raise DataError unless voxels of ``shape`` (x, y, z) lie where the weights need them."""
        if len(shape) != 3:
            raise DataError(f"{name}: shape {shape}, expected one volume (x, y, z).")
        codes = "".join(str(code) for code in nib.aff2axcodes(affine))
        oblique = np.abs(affine[:3, :3] - np.diag(np.diag(affine[:3, :3]))).max() > 1e-4
        if codes != "RAS":
            raise DataError(
                f"{name}: its axes are {codes}, expected RAS+. Reorient it first: "
                "nibabel.as_closest_canonical(image)."
            )
        if self.grid is None:
            return
        spacing = nib.affines.voxel_sizes(affine)
        if oblique or not np.allclose(spacing, self.grid.spacing, atol=1e-4):
            sizes = " × ".join(f"{size:.4g}" for size in spacing)
            rotated = ", rotated" if oblique else ""
            raise DataError(
                f"{name}: voxels of {sizes} mm{rotated}, expected {self.grid.spacing:g} mm along "
                f"the axes. Set preprocess.grid.spacing to {self.grid.spacing:g}: {REMEDY}"
            )
        if shape != self.grid.shape or not np.allclose(affine, self.grid.affine, atol=1e-3):
            raise DataError(
                f"{name}: {shape} voxels, the first at {affine[:3, 3].round(2).tolist()} mm; "
                f"expected {self.grid.shape} from {self.grid.affine[:3, 3].tolist()} mm of MNI152: "
                f"the standard box. {REMEDY}"
            )
