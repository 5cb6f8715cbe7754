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
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from neurofoundry.presets import AugmentParams

WINDOW = 5.0
"""Contrast, bias field and noise act on intensities: z-scores from -5 to 5 become 0 to 1."""

KNOTS = 9
"""Points of the curve that changes the contrast."""

LEAST_OF_PAPER = np.array([40 / 192, 40 / 192, 30 / 150])
"""Smallest crop (x, y, z) of the published law, as shares of its box of 192 × 192 × 150 voxels."""


@dataclass(frozen=True)
class Draws:
    """Parameters of one view of each scan of a batch; every field is a tensor (batch, …)."""

    affine: torch.Tensor
    """(batch, 3, 4): from the view's to the volume's coordinates, x y z in -1…1 at the faces."""
    gamma: torch.Tensor
    """(batch,) exponent."""
    negative: torch.Tensor
    """(batch,) bool: gamma acts on the negative image."""
    remap: torch.Tensor
    """(batch, KNOTS): rising values from 0 to 1 of the curve of contrast, at equal distances."""
    bias: torch.Tensor
    """(batch, 3, 3, 3): cosine coefficients (z, y, x) of the logarithm of the bias field."""
    blur: torch.Tensor
    """(batch, 3): standard deviation in voxels along z, y, x."""
    coarse: torch.Tensor
    """(batch, 3): how many samples are left along z, y, x, int64."""
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
    draw_one = _draw_paper if params.preset == "paper" else _draw_robust
    draws = [draw_one(params, (seed, epoch, scan), view, shape) for scan in scans]
    return Draws(**{f.name: torch.stack([one[f.name] for one in draws]) for f in fields(Draws)})


def _draw_robust(
    params: AugmentParams, sample: tuple[object, ...], view: int, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    random = generator(*sample, view)
    first = _crop(params, generator(*sample, 0), near=None) if view else None
    crop = _crop(params, random, near=first)
    mirrored = random.random() < params.flip
    angles = random.uniform(-params.rotation, params.rotation, 3)
    slices = np.array(shape)
    axis = random.integers(3)
    slices[axis] = round(shape[axis] / random.uniform(1, params.coarse))
    slopes = np.exp(params.remap * random.standard_normal(KNOTS - 1))
    return {
        "affine": _affine(crop, mirrored, angles, shape),
        "gamma": torch.tensor(params.gamma ** random.uniform(-1, 1), dtype=torch.float32),
        "negative": torch.tensor(random.random() < 0.5),
        "remap": _curve(slopes),
        "bias": _bias(random.uniform(0, params.bias), random),
        "blur": torch.tensor(random.uniform(0, params.blur, 3), dtype=torch.float32),
        "coarse": torch.tensor(slices),
        "noise": torch.tensor(random.uniform(0, params.noise), dtype=torch.float32),
        "noise_seed": torch.tensor(random.integers(2**63)),
    }


def _draw_paper(
    params: AugmentParams, sample: tuple[object, ...], view: int, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """The law of 3D-Neuro-SimCLR (arXiv 2509.10620): its views share nothing but by chance."""
    random = generator(*sample, view)
    edges = random.uniform(LEAST_OF_PAPER, 1)
    crop = edges, edges / 2 + (1 - edges) * random.random(3)
    mirrored = random.random() < 0.5
    turned, axis = random.random() < 0.5, random.integers(3)
    angles = np.where(np.arange(3) == axis, turned * random.uniform(-45, 45), 0)
    gamma = random.uniform(0.5, 1.5) if random.random() < 0.8 else 1.0
    return {
        "affine": _affine(crop, mirrored, angles, shape),
        "gamma": torch.tensor(gamma, dtype=torch.float32),
        "negative": torch.tensor(False),
        "remap": _curve(np.ones(KNOTS - 1)),
        "bias": torch.zeros(3, 3, 3),
        "blur": torch.zeros(3),
        "coarse": torch.tensor(shape),
        "noise": torch.tensor(0.0),
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


def _curve(slopes: NDArray[np.float64]) -> torch.Tensor:
    values = np.concatenate([[0], np.cumsum(slopes)])
    return torch.tensor(values / values[-1], dtype=torch.float32)


def _bias(strength: float, random: np.random.Generator) -> torch.Tensor:
    coefficients = random.standard_normal((3, 3, 3))
    coefficients[0, 0, 0] = 0  # a constant factor is undone by standardisation
    # A cosine has a mean square of 1/2, the constant of 1.
    power = np.array([1, 0.5, 0.5])
    variance = np.einsum("ijk,i,j,k", coefficients**2, power, power, power)
    return torch.tensor(strength / np.sqrt(variance) * coefficients, dtype=torch.float32)


def apply(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Views of z-scored volumes: one resampling, then what scanners do to intensities.

    Crop, flip and rotation; blur and slice thickness; gamma and a curve of contrast; bias field;
    noise. ``volumes`` are (batch, 1, z, y, x) with background 0; so are the views, with mean 0 and
    standard deviation 1 in the brain. A brain that a crop misses leaves zeros.
    """
    shape = volumes.shape[2:]
    intensity, mask = _resample(volumes, draws.affine)
    # A step that no scan of the batch has drawn costs nothing.
    if draws.blur.any() or (draws.coarse != draws.coarse.new_tensor(shape)).any():
        intensity = _soften(intensity, draws.blur, draws.coarse)
    intensity = _gamma(intensity, draws.gamma, draws.negative)
    if (draws.remap != _curve(np.ones(KNOTS - 1)).to(draws.remap)).any():
        intensity = _remap(intensity, draws.remap)
    if draws.bias.any():
        intensity *= _cosines(draws.bias, shape).exp_()
    if draws.noise.any():
        intensity = _add_noise(intensity, mask, draws.noise, draws.noise_seed)
    return standardise(intensity, mask)


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


def _soften(volumes: torch.Tensor, deviation: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Gaussian blur, then fewer samples and back, along z, y and x.

    By dense matrices, both steps in one: a batch with a width and a thickness for each scan.
    """
    shape = volumes.shape
    axes = zip(shape[2:], deviation.unbind(1), coarse.unbind(1), strict=True)
    along_z, along_y, along_x = (
        _coarsen(n, slices) @ _gaussian(n, sigma) for n, sigma, slices in axes
    )
    volumes = along_z @ volumes.reshape(shape[0], shape[2], -1)
    volumes = along_y[:, None] @ volumes.view(shape[0], *shape[2:])
    return (volumes.view(shape[0], -1, shape[4]) @ along_x.mT).view(shape)


def _gaussian(n: int, deviation: torch.Tensor) -> torch.Tensor:
    """Matrices (batch, n, n) that blur ``n`` samples."""
    distance = torch.arange(1 - n, n, device=deviation.device) / deviation[:, None].clamp(min=1e-3)
    weights = torch.exp(-0.5 * distance.square())
    weights = weights / weights.sum(1, keepdim=True)
    # Row i of the matrix reads the kernel centred on voxel i.
    return weights.unfold(1, n, 1).flip(1)


def _coarsen(n: int, samples: torch.Tensor) -> torch.Tensor:
    """Matrices (batch, n, n) from ``n`` samples to fewer, each of its thickness, and back."""
    matrices = []
    for fewer in samples.tolist():
        # Resizing is linear: what it does to a unit is a column of its matrix.
        units = torch.eye(n, device=samples.device)[None, None]
        thick = F.interpolate(units, size=(fewer, n), mode="bilinear", antialias=True)
        matrices.append(F.interpolate(thick, size=(n, n), mode="bilinear")[0, 0])
    return torch.stack(matrices)


def _gamma(zscores: torch.Tensor, exponent: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Intensities to a power, or their negative: 1 - (1 - intensity) ** exponent."""
    exponent, negative = (each[:, None, None, None, None] for each in (exponent, negative.float()))
    sign = 1 - 2 * negative
    powers = (zscores * (sign / (2 * WINDOW))).add_(0.5).clamp_(0, 1).pow_(exponent)
    return powers.mul_(sign).add_(negative)


def _remap(intensity: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Intensities from 0 to 1 through a curve of straight pieces."""
    pieces = curve.shape[1] - 1
    position = intensity.flatten(1) * pieces
    piece = position.long().clamp_(max=pieces - 1)
    low, slope = curve[:, :-1].gather(1, piece), curve.diff().gather(1, piece)
    return low.add_(slope.mul_(position.sub_(piece))).view(intensity.shape)


def _add_noise(
    intensity: torch.Tensor, mask: torch.Tensor, strength: torch.Tensor, seeds: torch.Tensor
) -> torch.Tensor:
    """The magnitude of intensities with complex Gaussian noise: Rician (Gudbjartsson 1995).

    ``strength`` is in standard deviations of the intensities inside ``mask``.
    """
    noisy = []
    for image, inside, share, seed in zip(
        intensity, mask, strength.tolist(), seeds.tolist(), strict=True
    ):
        source = torch.Generator(intensity.device).manual_seed(seed)
        noise = torch.randn((2, *image.shape), generator=source, device=intensity.device)
        count = inside.sum().clamp(min=1)
        mean = (image * inside).sum() / count
        deviation = (((image - mean) * inside).square().sum() / count).sqrt()
        real, imaginary = noise.mul_(share * deviation)
        noisy.append(torch.hypot(real.add_(image), imaginary))
    return torch.stack(noisy)


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
