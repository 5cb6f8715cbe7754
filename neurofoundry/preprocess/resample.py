"""Images in space: blurring to a coarser resolution, sampling on another grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
Matrix = Array
"""A 4 × 4 map between spaces: mm or voxel indices."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Image:
    """Values at the voxels (i, j, k) of a grid, and where the grid lies."""

    values: NDArray[np.float32]
    affine: Matrix
    """From voxel indices to mm, in any orientation."""

    def cubic_grid(self, spacing: float) -> tuple[Matrix, tuple[int, int, int]]:
        """Return affine and shape of the smallest grid of cubic voxels of ``spacing`` mm, along
        the axes of the image, that holds it whole."""
        axes = self._axes()
        faces = [(-0.5, size - 0.5) for size in self.values.shape]
        corners = np.stack(np.meshgrid(*faces, indexing="ij"), axis=-1).reshape(-1, 3)
        along = apply_affine(self.affine, corners) @ axes
        low, high = along.min(axis=0), along.max(axis=0)
        i, j, k = np.ceil((high - low) / spacing - 1e-6).astype(int).tolist()
        first = (low + high - spacing * (np.array([i, j, k]) - 1)) / 2
        return from_matvec(spacing * axes, axes @ first), (i, j, k)

    def _axes(self) -> Array:
        """Return the directions of the axes, in columns: where an affine shears, the closest that
        are at right angles."""
        linear = self.affine[:3, :3] / voxel_sizes(self.affine)
        if np.allclose(linear, np.eye(3), atol=1e-6):
            return np.eye(3)
        left, _, right = np.linalg.svd(linear)
        axes: Array = left @ right
        return axes


def antialias(image: Image, spacing: float) -> Image:
    """Blur an image to the resolution of ``spacing`` mm along the axes where its own is finer.

    The Gaussian is as wide as a coarse voxel is wider than the image's own, so that what a
    coarser grid samples does not depend on where its voxels fall (Cardoso et al., MICCAI 2015).
    """
    return Image(_smooth(image.values, _blur(image, spacing)), image.affine)


def resample(
    image: Image,
    affine: Matrix,
    shape: Sequence[int],
    *,
    transform: Matrix | None = None,
    outside: float = 0.0,
) -> Image:
    """Sample an image at the voxels of another grid, trilinearly; ``outside`` beyond the image.

    ``transform`` maps mm of the grid to mm of the image.
    """
    onto = np.linalg.inv(image.affine) @ (np.eye(4) if transform is None else transform) @ affine
    linear = onto[:3, :3]
    if np.array_equal(linear, np.diag(np.diag(linear))):
        linear = np.diag(linear)  # which scipy interpolates axis by axis
    values = ndimage.affine_transform(
        image.values,
        linear,
        onto[:3, 3],
        output_shape=tuple(shape),
        order=1,
        mode="constant",
        cval=outside,
    )
    return Image(values, affine)


def coarsen(image: Image, spacing: float, *, outside: float = 0.0) -> Image:
    """Sample a whole image in cubic voxels of ``spacing`` mm along its axes, without aliasing.

    Along them nothing is mixed but neighbours, however oblique the image is to the scanner.
    """
    affine, shape = image.cubic_grid(spacing)
    onto = np.linalg.inv(image.affine) @ affine
    if not np.allclose(onto[:3, :3], np.diag(np.diag(onto[:3, :3])), atol=1e-6):
        return resample(antialias(image, spacing), affine, shape, outside=outside)
    # Along parallel axes both steps are one product of matrices, and far cheaper.
    sigma = _blur(image, spacing)
    values = image.values if outside == 0 else image.values - np.float32(outside)
    for axis in range(3):
        identity = np.eye(values.shape[axis], dtype=np.float32)
        gaussian = _smooth(identity, (sigma[axis], 0))
        places = onto[axis, axis] * np.arange(shape[axis]) + onto[axis, 3]
        lines = np.arange(len(gaussian))
        weights = ndimage.map_coordinates(
            gaussian, np.meshgrid(places, lines, indexing="ij"), order=1, cval=0.0
        )
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return Image(np.ascontiguousarray(values + np.float32(outside)), affine)


def look_up(
    image: Image, points: Array, *, order: int = 1, outside: float = 0.0
) -> NDArray[np.float32]:
    """Return the values (n,) at ``points`` (n, 3) in mm: of the nearest voxel (``order`` 0), or
    trilinear (1)."""
    voxels = apply_affine(np.linalg.inv(image.affine), points)
    values: NDArray[np.float32] = ndimage.map_coordinates(
        image.values, voxels.T, order=order, cval=outside, output=np.float32
    )
    return values


def interpolate(image: Image, points: Array) -> NDArray[np.float32]:
    """Return cubic B-spline values (n,) at ``points`` (n, 3) in mm; the image is mirrored at its
    edges."""
    voxels = apply_affine(np.linalg.inv(image.affine), points)
    # The prefilter of splines decays within a dozen voxels: coefficients are needed only around
    # the points.
    low = np.maximum(np.floor(voxels.min(axis=0)).astype(int) - 12, 0)
    high = np.ceil(voxels.max(axis=0)).astype(int) + 13
    near = image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    values: NDArray[np.float32] = ndimage.map_coordinates(
        near, (voxels - low).T, order=3, mode="mirror", output=np.float32
    )
    return values


def _blur(image: Image, spacing: float) -> Array:
    """Return the standard deviations, in voxels along each axis, that `antialias` blurs by."""
    voxel = voxel_sizes(image.affine)
    sigma: Array = np.sqrt(np.maximum(spacing**2 - voxel**2, 0) / (8 * np.log(2))) / voxel
    # A narrower kernel has no weight beyond its own voxel.
    sigma[sigma < 0.3] = 0
    return sigma


def _smooth(values: NDArray[np.float32], sigma: Sequence[float] | Array) -> NDArray[np.float32]:
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3)
    return smooth
