"""Symmetric diffeomorphic registration: what is left between two brains after an affine one.

A stationary velocity field is followed halfway by the template and halfway back by the scan
(Arsigny et al., MICCAI 2006; Avants et al., Medical Image Analysis 12 (2008) 26-41), so that
exchanging them inverts the result. The field is a Gaussian blur of what is optimized, which keeps
it smooth, from coarse to fine, by the squared local correlation of the two images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from neurofoundry.preprocess.registration import CPU
from neurofoundry.preprocess.resample import Array, Image, Matrix

LEVELS = ((8.0, 30), (4.0, 30), (2.0, 40))
"""Spacing in mm, and the optimizer's steps; levels finer than the images are left out."""
VELOCITY = 2
"""Spacing of the velocity field relative to the images'."""
FIELD_MM = 2.0
"""Spacing of the coarsest displacements that are kept: those of coarser ones are up to 0.2 mm off
between voxels when they lead back."""
SMOOTHNESS_MM = 7.0
"""Standard deviation of the blur that makes the velocity. 6 mm overlap a little better (on a real
head grey matter 0.742 for 0.732), and lead back to within 0.13 mm instead of 0.09."""
WINDOW = 5
"""Edge, in voxels, of the cubes within which intensities are compared."""
STEP = 0.5
"""The optimizer's step, relative to a level's spacing in mm."""
SQUARINGS, FINAL_SQUARINGS = 5, 7
INVERSIONS = 5
LEAST_GROWTH, MOST_GROWTH = 0.01, 20.0
"""The factors by which a warp may change a volume; real brains need 0.2 to 5."""
SOFTER, SOFTENINGS = 0.7, 12
"""Width in voxels by which the velocity is blurred first where a warp goes beyond that, half as
wide again each time, and how often at most: next to nothing of a fold is left then."""
SEEN = 0.05
"""Intensity (0..1) from which a voxel counts."""
NEGLIGIBLE = 1e-5
"""Variance of intensities 0..1 that keeps uniform windows from counting."""


@dataclass(frozen=True)
class Warp:
    """Displacements in mm on a grid of the template, to the scan's side and back.

    Between voxels they are trilinear, as ITK reads them, and beyond the grid they are 0.
    """

    forward: NDArray[np.float32]
    """(x, y, z, 3): by how much a point of the template moves before the affine map applies."""
    inverse: NDArray[np.float32]
    affine: Matrix
    """From voxel indices of the displacements to mm."""

    def __call__(self, points: Array) -> Array:
        """Return where points (n, 3) of the template lie before the affine map, in mm."""
        return points + self._at(self.forward, points)

    def back(self, points: Array) -> Array:
        """Return the inverse: from mm before the affine map to mm of the template."""
        return points + self._at(self.inverse, points)

    def jacobian(self) -> tuple[float, float]:
        """Return the smallest and the largest factor by which a voxel's volume changes.

        They are determinants of differences between neighbouring displacements, in all eight ways
        to choose the neighbours: a trilinear field folds nowhere if none of them is negative.
        """
        spacing = self.affine[0, 0]
        fields = np.moveaxis(self.forward, -1, 0)
        steps = [np.diff(fields, axis=axis) / spacing for axis in (1, 2, 3)]
        low, high = np.inf, -np.inf
        for corner in np.ndindex(2, 2, 2):
            slopes = []
            for axis, step in enumerate(steps):
                beside = [
                    slice(c, c + n - 1) for c, n in zip(corner, fields.shape[1:], strict=True)
                ]
                beside[axis] = slice(None)
                slopes.append(step[(slice(None), *beside)] + np.eye(3)[axis, :, None, None, None])
            determinants = _triple_product(*slopes)
            low, high = min(low, determinants.min()), max(high, determinants.max())
        return float(low), float(high)

    def growth(self, points: Array) -> float:
        """Return the mean factor by which the volume around points (n, 3) in mm changes."""
        forward = np.moveaxis(self.forward.astype(np.float64), -1, 0)
        slopes = np.stack(list(np.gradient(forward, self.affine[0, 0], axis=(1, 2, 3))), axis=-1)
        determinants = np.linalg.det(np.moveaxis(slopes, 0, -2) + np.eye(3))
        where = apply_affine(np.linalg.inv(self.affine), points).T
        return float(ndimage.map_coordinates(determinants, where, order=1, cval=1.0).mean())

    def _at(self, field: NDArray[np.float32], points: Array) -> Array:
        where = apply_affine(np.linalg.inv(self.affine), points).T
        # ITK ends a field at the centres of its outermost voxels; there, ours is next to 0.
        moved = [
            ndimage.map_coordinates(field[..., n], where, order=1, cval=0.0, output=np.float32)
            for n in range(3)
        ]
        return np.stack(moved, axis=-1).astype(np.float64)


# The 10 bits of TF32, which cuDNN may use, are too few for displacements.
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def register(fixed: Image, moving: Sequence[Image], device: torch.device = CPU) -> list[Warp]:
    """Return the warps from ``fixed`` to each of ``moving``, images (0..1) on one cubic RAS+ grid.

    The number of voxels along each axis must be even (ValueError). The images are registered
    together, each as if it were alone.
    """
    shape = fixed.values.shape
    if any(shape != image.values.shape for image in moving) or any(n % VELOCITY for n in shape):
        raise ValueError(f"expected one shape of even numbers, found {shape}")
    spacing = float(fixed.affine[0, 0])
    stacked = np.stack([np.stack([fixed.values, image.values]) for image in moving])
    pairs = torch.as_tensor(stacked, device=device).float()
    weights = pairs.new_zeros(len(moving), 3, *(n // VELOCITY for n in shape))
    for level, steps in LEVELS:
        if level >= spacing:
            weights = _optimize(pairs, weights, level, spacing, steps)
    in_unit = _mm_in_unit(pairs, spacing)
    velocity = _blur(weights.detach(), _width(spacing)) * in_unit
    kept = spacing * VELOCITY
    if kept > FIELD_MM:
        kept = spacing / math.ceil(spacing / FIELD_MM)
        size = [round(n * spacing / kept) for n in shape]
        velocity = functional.interpolate(velocity, size=size, mode="trilinear")
    affine = fixed.affine.copy()
    affine[:3, :3] *= kept / spacing
    affine[:3, 3] += (kept - spacing) / 2
    return [_unfolded(each[None], in_unit, affine) for each in velocity]


def exponential(velocity: torch.Tensor, squarings: int) -> torch.Tensor:
    """Return the displacements (batch, 3, x, y, z) of following velocities for a time of 1, by
    squaring.

    Both are in units in which a volume spans -1..1 from face to face.
    """
    displacement: torch.Tensor = velocity / 2**squarings
    identity = _identity(velocity.shape[2:], velocity.device)
    for _ in range(squarings):
        moved = identity + displacement.movedim(1, -1)
        displacement = displacement + _sample(displacement, moved)
    return displacement


def local_correlation(
    first: torch.Tensor, second: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Return the means over ``seen`` of the squared correlation within cubes, (batch,).

    All arguments are (batch, 1, x, y, z).
    """
    products = [first, second, first * first, second * second, first * second]
    a, b, aa, bb, ab = _box(torch.cat(products, dim=1), WINDOW).chunk(5, dim=1)
    variances = (aa - a * a).clamp_min(0) * (bb - b * b).clamp_min(0)
    correlation = (ab - a * b) ** 2 / (variances + NEGLIGIBLE)
    return (correlation * seen).flatten(1).sum(dim=1) / seen.flatten(1).sum(dim=1)


def _optimize(
    pairs: torch.Tensor, weights: torch.Tensor, level: float, spacing: float, steps: int
) -> torch.Tensor:
    """Return the weights (batch, 3, x, y, z), whose blur is the velocity in mm, after one level.

    ``pairs`` (batch, 2, x, y, z) are the fixed and the moving image at ``spacing`` mm; they are
    compared at ``level`` mm.
    """
    factor = level / spacing
    size = [round(n / factor) for n in pairs.shape[2:]]
    images = _blur(pairs, 0.42 * factor) if factor > 1 else pairs
    images = functional.interpolate(images, size=size, mode="trilinear")
    first, second = images[:, :1], images[:, 1:]
    seen = (_box((images.amax(dim=1, keepdim=True) > SEEN).float(), 3) > 0).float()
    identity, in_unit = _identity(size, pairs.device), _mm_in_unit(pairs, spacing)
    weights = weights.detach().requires_grad_(True)
    rate = STEP * factor * spacing / 2
    optimizer = torch.optim.Adam([weights], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, rate / 10)
    for _ in range(steps):
        half = _blur(weights, _width(spacing)) * in_unit / 2
        warped = [
            _sample(image, identity + _resize(exponential(velocity, SQUARINGS), size))
            for image, velocity in ((first, -half), (second, half))
        ]
        # Their sum: no image's gradient depends on the others.
        loss = -local_correlation(warped[0], warped[1], seen).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weights


def _unfolded(velocity: torch.Tensor, in_unit: torch.Tensor, affine: Matrix) -> Warp:
    """Return the warp of a velocity (1, 3, x, y, z), blurred until it folds nowhere.

    The exact flow never folds; one between voxels does where the velocity changes too much from one
    voxel to the next. Both directions count, so that exchanging the images inverts the warp.
    """
    for attempt in range(SOFTENINGS):
        there, back = (exponential(each, FINAL_SQUARINGS) for each in (velocity, -velocity))
        bounds = []
        for field in (there, back):
            stored = _as_stored(field, in_unit)
            bounds.append(Warp(stored, stored, affine).jacobian())
        if all(low >= LEAST_GROWTH and high <= MOST_GROWTH for low, high in bounds):
            break
        velocity = _blur(velocity, SOFTER * 1.5**attempt)
    return Warp(_as_stored(there, in_unit), _back(there, velocity, in_unit, affine), affine)


def _as_stored(field: torch.Tensor, in_unit: torch.Tensor) -> NDArray[np.float32]:
    stored: NDArray[np.float32] = (field / in_unit)[0].movedim(0, -1).contiguous().cpu().numpy()
    return stored


def _back(
    there: torch.Tensor, velocity: torch.Tensor, in_unit: torch.Tensor, affine: Matrix
) -> NDArray[np.float32]:
    """Return the displacements, mm, that lead back from where following a velocity leads."""
    back = exponential(-velocity, FINAL_SQUARINGS)
    identity = _identity(there.shape[2:], velocity.device)
    stored = _as_stored(back, in_unit)
    for _ in range(INVERSIONS):
        # So that it leads back from where the stored displacements lead, not the exact ones.
        back = -_sample(there, identity + back.movedim(1, -1))
        nearer = _as_stored(back, in_unit)
        if Warp(nearer, nearer, affine).jacobian()[0] < LEAST_GROWTH:
            break  # where the warp stretches to more than twice, this leads away and folds
        stored = nearer
    return stored


def _triple_product(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[Any]:
    """Return the determinants of three fields of vectors (3, x, y, z): numpy's are far slower."""
    product: NDArray[Any] = (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        + a[1] * (b[2] * c[0] - b[0] * c[2])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    return product


def _mm_in_unit(pairs: torch.Tensor, spacing: float) -> torch.Tensor:
    """Return 1 mm along each axis where the volume spans -1..1, (1, 3, 1, 1, 1)."""
    return pairs.new_tensor([2 / (n * spacing) for n in pairs.shape[2:]]).view(1, 3, 1, 1, 1)


def _width(spacing: float) -> float:
    """Return ``SMOOTHNESS_MM`` in voxels of the velocity field."""
    return SMOOTHNESS_MM / (VELOCITY * spacing)


def _identity(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return where a volume's voxels are, (x, y, z, 3), with -1..1 from face to face."""
    axes = [torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _sample(volume: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the values (batch, channels, …) of volumes at ``where`` (batch, x, y, z, 3)."""
    # grid_sample wants the last axis of the volume first.
    return functional.grid_sample(
        volume, where.flip(-1), padding_mode="border", align_corners=False
    )


def _resize(displacement: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    finer = functional.interpolate(displacement, size=list(size), mode="trilinear")
    return finer.movedim(1, -1)


def _box(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return the mean over cubes of ``size`` voxels; what lies beyond the volume is 0."""
    half = size // 2
    for axis in (2, 3, 4):
        length = values.shape[axis]
        padding = [0, 0] * (4 - axis) + [half + 1, half]
        sums = functional.pad(values, padding).cumsum(axis)
        values = sums.narrow(axis, size, length) - sums.narrow(axis, 0, length)
    return values / size**3


def _blur(values: torch.Tensor, width: float) -> torch.Tensor:
    """Blur (batch, channels, x, y, z) by a Gaussian of ``width`` voxels; 0 beyond the volume."""
    radius = max(1, round(3 * width))
    kernel = torch.exp(
        -0.5 * (torch.arange(-radius, radius + 1, device=values.device) / width) ** 2
    )
    kernel = kernel / kernel.sum()
    channels = values.shape[1]
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[axis + 2], padding[axis] = len(kernel), radius
        weight = kernel.view(shape).expand(channels, 1, *shape[2:])
        values = functional.conv3d(values, weight, padding=padding, groups=channels)
    return values
