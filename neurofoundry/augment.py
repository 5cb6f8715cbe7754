"""Random views of a volume: parameters are drawn first, then applied to a whole batch.

A draw depends on (seed, epoch, scan, view) alone, so that any view can be drawn again, whatever
batch or worker it was in. Applying draws is a pure function that runs where the volumes are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from neurofoundry.params import Section

WINDOW = 5.0
"""Gamma and bias field act on intensities: z-scores from -5 to 5 become 0 to 1."""


class AugmentParams(Section):
    """How far two views of a scan may differ. Strengths are drawn uniformly up to these bounds."""

    crop: tuple[float, float] = (0.7, 1.0)
    """Least and greatest edge of the crop, as a share of the box; it is resized to the box."""
    stretch: float = Field(default=1.1, ge=1, le=1.5)
    """Greatest ratio of an edge's share to another's."""
    min_overlap: float = Field(default=0.5, ge=0, lt=1)
    """Least share of the smaller crop that two views have in common, before they are rotated."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of exchanging left and right."""
    rotation: float = Field(default=15.0, ge=0, le=180)
    """Degrees about each axis, either way."""
    gamma: float = Field(default=2.0, ge=1)
    """Exponent between 1/gamma and gamma, of the intensities or of their negative: the contrast."""
    bias: float = Field(default=0.3, ge=0)
    """Bias field: greatest standard deviation of its logarithm over the box."""
    blur: float = Field(default=1.0, ge=0)
    """Standard deviation in voxels, drawn for each axis, as slices are thicker than in-plane."""
    noise: float = Field(default=0.3, ge=0)
    """Standard deviation of Gaussian noise, in standard deviations of the brain."""

    @model_validator(mode="after")
    def _crops_fit(self) -> AugmentParams:
        low, high = self.crop
        if not 0.1 <= low <= high <= 1:
            raise ValueError("crop: expected 0.1 <= least <= greatest <= 1")
        # Two crops of the same volume, stretched in opposite ways, share no more than this.
        if self.min_overlap > self.stretch ** (-4 / 3):
            raise ValueError("min_overlap: crops so different in shape cannot overlap so much")
        return self


@dataclass(frozen=True)
class Draws:
    """Parameters of one view of each scan of a batch; every field is a tensor (batch, …)."""

    affine: torch.Tensor
    """(batch, 3, 4): from the view's to the volume's coordinates, x y z in -1…1 at the faces."""
    gamma: torch.Tensor
    """(batch,) exponent."""
    negative: torch.Tensor
    """(batch,) bool: gamma acts on the negative image."""
    bias: torch.Tensor
    """(batch, 3, 3, 3): cosine coefficients (z, y, x) of the logarithm of the bias field."""
    blur: torch.Tensor
    """(batch, 3): standard deviation in voxels along z, y, x."""
    noise: torch.Tensor
    """(batch,) standard deviation."""
    noise_seed: torch.Tensor
    """(batch,) int64."""

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        return Draws(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw(
    params: AugmentParams,
    *,
    seed: int,
    epoch: int,
    scans: Sequence[str],
    view: int,
    shape: tuple[int, int, int],
) -> Draws:
    """Draw view number ``view`` of each scan; ``shape`` is (z, y, x).

    The crop of a later view is drawn where it overlaps that of view 0 by ``min_overlap``.
    """
    draws = [_draw_one(params, (seed, epoch, scan), view, shape) for scan in scans]
    return Draws(**{f.name: torch.stack([one[f.name] for one in draws]) for f in fields(Draws)})


def _draw_one(
    params: AugmentParams, sample: tuple[object, ...], view: int, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    random = generator(*sample, view)
    first = _crop(params, generator(*sample, 0), near=None) if view else None
    crop = _crop(params, random, near=first)
    mirrored = random.random() < params.flip
    angles = random.uniform(-params.rotation, params.rotation, 3)
    return {
        "affine": _affine(crop, mirrored, angles, shape),
        "gamma": torch.tensor(params.gamma ** random.uniform(-1, 1), dtype=torch.float32),
        "negative": torch.tensor(random.random() < 0.5),
        "bias": _bias(random.uniform(0, params.bias), random),
        "blur": torch.tensor(random.uniform(0, params.blur, 3), dtype=torch.float32),
        "noise": torch.tensor(random.uniform(0, params.noise), dtype=torch.float32),
        "noise_seed": torch.tensor(random.integers(2**63)),
    }


Crop = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Edges and centre along (x, y, z), as shares of the box."""


def _crop(params: AugmentParams, random: np.random.Generator, *, near: Crop | None) -> Crop:
    scale = random.uniform(*params.crop)
    edges = scale * params.stretch ** random.uniform(-0.5, 0.5, 3)
    edges = np.clip(edges, *params.crop)
    low, high = edges / 2, 1 - edges / 2
    if near is not None:
        other_edges, other_centre = near
        smaller = np.minimum(edges, other_edges)
        wanted = params.min_overlap * min(edges.prod(), other_edges.prod())
        # The same share of the possible overlap along each axis; crops then lie this close.
        reach = (edges + other_edges) / 2 - smaller * np.cbrt(wanted / smaller.prod())
        low = np.maximum(low, other_centre - reach)
        high = np.minimum(high, other_centre + reach)
    return edges, low + (high - low) * random.random(3)


def _affine(
    crop: Crop, mirrored: bool, angles: NDArray[np.float64], shape: tuple[int, int, int]
) -> torch.Tensor:
    edges, centre = crop
    mirror = np.array([-1.0 if mirrored else 1.0, 1.0, 1.0])
    # Rotation preserves lengths in voxels, not in shares of a box that is no cube.
    extent = np.array(shape[::-1], float)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    linear = (rotation / extent[:, None]) @ np.diag(extent * edges * mirror)
    affine = np.column_stack([linear, 2 * centre - 1])
    return torch.tensor(affine, dtype=torch.float32)


def _bias(strength: float, random: np.random.Generator) -> torch.Tensor:
    coefficients = random.standard_normal((3, 3, 3))
    coefficients[0, 0, 0] = 0  # a constant factor is undone by standardisation
    # A cosine has a mean square of 1/2, the constant of 1.
    power = np.array([1, 0.5, 0.5])
    variance = np.einsum("ijk,i,j,k", coefficients**2, power, power, power)
    return torch.tensor(strength / np.sqrt(variance) * coefficients, dtype=torch.float32)


def apply(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Views of z-scored volumes: crop, flip, rotation, blur, gamma, bias field and noise.

    ``volumes`` are (batch, 1, z, y, x) with background 0; so are the views, with mean 0 and
    standard deviation 1 in the brain. A brain that a crop misses leaves zeros.
    """
    brain, mask = _resample(volumes, draws.affine)
    intensity = _gamma(_blur(brain, draws.blur), draws.gamma, draws.negative)
    intensity *= _cosines(draws.bias, volumes.shape[2:]).exp_()
    views = standardise(intensity, mask)
    for view, strength, seed in zip(views, draws.noise, draws.noise_seed.tolist(), strict=True):
        source = torch.Generator(volumes.device).manual_seed(seed)
        noise = torch.randn(view.shape, generator=source, device=volumes.device)
        view += strength * noise
    return standardise(views, mask)


def standardise(volumes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 inside ``mask`` (same shape, 0 or 1), 0 outside."""
    dims = (1, 2, 3, 4)
    count = mask.sum(dims, keepdim=True).clamp_(min=1)
    centred = (volumes - (volumes * mask).sum(dims, keepdim=True) / count) * mask
    deviation = (centred.square().sum(dims, keepdim=True) / count).sqrt_()
    return centred / deviation.clamp_(min=1e-6)


def _resample(volumes: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Brain and mask in the view's coordinates; the background does not bleed into the brain."""
    shape = volumes.shape[2:]
    z, y, x = ((torch.arange(n, device=volumes.device) + 0.5) * (2 / n) - 1 for n in shape)
    # As F.affine_grid, but several times faster: the sum of a small and a smaller table.
    to_x, to_y, to_z, shift = affine[..., None, None, None].unbind(2)
    grid = (z[:, None, None] * to_z + y[:, None] * to_y + shift) + x * to_x
    both = torch.cat([volumes, (volumes != 0).to(volumes.dtype)], 1)
    both = F.grid_sample(both, grid.permute(0, 2, 3, 4, 1), align_corners=False)
    brain, share = both.split(1, 1)
    mask = (share >= 0.5).to(volumes.dtype)
    return brain.div_(share.clamp_(min=0.5)).mul_(mask), mask


def _blur(volumes: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Gaussian blur along z, y and x by dense matrices: a batch with a width for each scan."""
    shape = volumes.shape
    kernels = []
    for n, sigma in zip(shape[2:], deviation.clamp(min=1e-3).unbind(1), strict=True):
        distance = torch.arange(1 - n, n, device=volumes.device) / sigma[:, None]
        weights = torch.exp(-0.5 * distance.square())
        weights = weights / weights.sum(1, keepdim=True)
        # Row i of the matrix reads the kernel centred on voxel i.
        kernels.append(weights.unfold(1, n, 1).flip(1))
    along_z, along_y, along_x = kernels
    volumes = along_z @ volumes.reshape(shape[0], shape[2], -1)
    volumes = along_y[:, None] @ volumes.view(shape[0], *shape[2:])
    return (volumes.view(shape[0], -1, shape[4]) @ along_x.mT).view(shape)


def _gamma(zscores: torch.Tensor, exponent: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Intensities to a power, or their negative: 1 - (1 - intensity) ** exponent."""
    exponent, negative = (each[:, None, None, None, None] for each in (exponent, negative.float()))
    sign = 1 - 2 * negative
    powers = (zscores * (sign / (2 * WINDOW))).add_(0.5).clamp_(0, 1).pow_(exponent)
    return powers.mul_(sign).add_(negative)


def _cosines(coefficients: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sum of low-frequency cosines over the box (inverse DCT-II without its scaling)."""
    z, y, x = (
        torch.cos(
            torch.arange(3, device=coefficients.device)[:, None]
            * ((torch.arange(n, device=coefficients.device) + 0.5) * (math.pi / n))
        )
        for n in shape
    )
    return torch.einsum("bijk,kx,jy,iz->bzyx", coefficients, x, y, z)[:, None]
