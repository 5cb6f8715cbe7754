"""Random views of a volume: parameters are drawn first, then applied to a whole batch.

A draw depends on (seed, epoch, scan, view) alone, so that any view can be drawn again, whatever
batch or worker it was in. Applying draws is a pure function that runs where the volumes are.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
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

    def each(self) -> Iterator[Draws]:
        """Those of one scan after the other, without the batch's axis, as numbers of the CPU."""
        columns = {f.name: getattr(self, f.name).cpu().unbind() for f in fields(self)}
        for row in zip(*columns.values(), strict=True):
            yield Draws(**dict(zip(columns, row, strict=True)))


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
    each = zip(volumes, draws.each(), strict=True)
    return torch.stack([_view(volume[0], one)[None] for volume, one in each])


def _view(volume: torch.Tensor, draws: Draws) -> torch.Tensor:
    """One view of one volume, (z, y, x).

    Most of it is background: intensities are those of the voxels of the brain alone, in a list.
    A step that is not drawn costs nothing.
    """
    view = volume.new_zeros(volume.shape)
    flat = view.view(-1)
    brain, intensity = _resample(volume, draws.affine)
    if not len(brain):
        return view
    if draws.blur.any() or draws.coarse.tolist() != list(view.shape):
        flat.index_copy_(0, brain, intensity)
        intensity = _soften(view, draws.blur, draws.coarse).view(-1).index_select(0, brain)
    intensity = _gamma(intensity, draws.gamma.item(), negative=bool(draws.negative))
    if not torch.equal(draws.remap, _curve(np.ones(KNOTS - 1))):
        intensity = _remap(intensity, draws.remap.to(view.device))
    if draws.bias.any():
        field = _cosines(draws.bias.to(view.device), view.shape).flatten()
        intensity *= field.index_select(0, brain).exp_()
    if draws.noise:
        intensity = _add_noise(intensity, draws.noise.item(), seed=int(draws.noise_seed))
    intensity.sub_(intensity.mean())
    flat.index_copy_(0, brain, intensity.div_(_deviation(intensity).clamp_(min=1e-6)))
    return view


def _resample(volume: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which voxels of the view show brain, (n,) indices of the flat view, and its values, (n,).

    Trilinear interpolation. A voxel shows brain when at least half of what it is interpolated from
    is brain, and then shows that half alone: the background does not bleed in.

    The view is done in blocks of 2³ voxels. What lies around the middle of a block tells whether
    it is background, which most are, or deep in the brain, where no shares need be known.
    """
    shape, device = volume.shape, volume.device
    matrix, offset = _in_voxels(affine, shape)
    # The farthest, along an axis, that a voxel of use to a block lies from the one nearest to its
    # middle: half the block, half a voxel of rounding, less than one voxel of interpolation.
    reach = math.ceil(np.abs(matrix).sum(1).max() / 2 + 1.5) - 1
    margin = 2 * reach + 1
    padded = F.pad(volume, [margin] * 6)
    blocks = [(n + 1) // 2 for n in shape]
    z, y, x = (torch.arange(n, device=device) * 2 + 0.5 for n in blocks)
    middles = [
        ((z * to_z + (start + margin))[:, None, None] + (y * to_y)[:, None]) + x * to_x
        for (to_z, to_y, to_x), start in zip(matrix.tolist(), offset.tolist(), strict=True)
    ]
    surroundings = _surroundings(padded != 0, reach)
    nearest = [
        middle.sub(reach).round_().clamp_(0, n - 1).int()
        for middle, n in zip(middles, surroundings.shape, strict=True)
    ]
    kinds = surroundings.view(-1).index_select(0, _flat(nearest, surroundings.stride()).view(-1))
    for axis, n in enumerate(shape):
        if n % 2:  # half of the last blocks lies outside the view
            kinds.view(blocks).select(axis, -1).bitwise_or_(OUTSIDE)

    along = [
        torch.arange(0, 2 * n, 2, device=device) * stride
        for n, stride in zip(blocks, volume.stride(), strict=True)
    ]
    starts = (along[0][:, None, None] + along[1][:, None] + along[2]).view(-1)
    within = torch.tensor(CORNERS, device=device).T
    ahead = _flat(within.unbind(), volume.stride())[:, None]
    linear = torch.tensor(matrix.copy(), dtype=torch.float32, device=device)
    steps = linear @ (within - 0.5)
    found = []
    for kind in (INSIDE, INSIDE | OUTSIDE):
        chosen = (kinds == kind).nonzero()[:, 0]
        # On a CPU in pieces, as new memory is slower than memory that was used before.
        for some in chosen.split(2**15 if device.type == "cpu" else max(1, len(chosen))):
            points = [
                (middle.view(-1).index_select(0, some) + step[:, None]).view(-1)
                for middle, step in zip(middles, steps, strict=True)
            ]
            where = (starts.index_select(0, some) + ahead).view(-1)
            values, share = _interpolate(padded, points, with_share=kind != INSIDE)
            if share is not None:
                shown = share >= 0.5
                if any(n % 2 for n in shape):
                    places = torch.unravel_index(some, blocks)
                    for place, beside, n in zip(places, within, shape, strict=True):
                        shown &= (2 * place + beside[:, None] < n).view(-1)
                chosen_here = shown.nonzero()[:, 0]
                where, values, share = (
                    each.index_select(0, chosen_here) for each in (where, values, share)
                )
                values.div_(share)
            found.append((where, values))
    if not found:
        return torch.zeros(0, dtype=torch.long, device=device), padded.view(-1)[:0]
    where, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return where, values


CORNERS = tuple(itertools.product((0, 1), repeat=3))
"""Of a cell, along z, y, x."""

INSIDE, OUTSIDE = 1, 2
"""There is brain, there is background: both at the surface of the brain."""


def _in_voxels(
    affine: torch.Tensor, shape: torch.Size
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset from a view's to the volume's voxel indices, in the order z, y, x."""
    size = np.array(shape[::-1])
    matrix, shift = affine[:, :3].double().numpy(), affine[:, 3].double().numpy()
    linear = size[:, None] * matrix / size
    offset = (matrix @ (1 / size - 1) + shift + 1) * size / 2 - 0.5
    return linear[::-1, ::-1], offset[::-1]


def _surroundings(brain: torch.Tensor, reach: int) -> torch.Tensor:
    """Of each voxel that has ``reach`` neighbours along each axis: what is among them, uint8."""
    seen = OUTSIDE - brain.to(torch.uint8)  # INSIDE where there is brain
    for axis in range(3):
        width = 1
        while width <= 2 * reach:
            step = min(width, 2 * reach + 1 - width)
            n = seen.shape[axis] - step
            seen = seen.narrow(axis, 0, n) | seen.narrow(axis, step, n)
            width += step
    return seen.contiguous()


def _flat(indices: Sequence[torch.Tensor], strides: Sequence[int]) -> torch.Tensor:
    z, y, x = indices
    return (z * strides[0]).add_(y, alpha=strides[1]).add_(x, alpha=strides[2])


def _interpolate(
    volume: torch.Tensor, points: Sequence[torch.Tensor], *, with_share: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Trilinear values at ``points`` (z, y, x) of (n,) voxel indices, and the share of brain."""
    corners = [point.floor() for point in points]
    base = _flat([corner.int() for corner in corners], volume.stride())
    weights = [point.sub_(corner) for point, corner in zip(points, corners, strict=True)]
    flat, strides = volume.view(-1), volume.stride()
    values = [
        flat[sum(map(operator.mul, corner, strides)) :].index_select(0, base) for corner in CORNERS
    ]
    share = (
        _mix([(value != 0).to(value.dtype) for value in values], weights) if with_share else None
    )
    return _mix(values, weights), share


def _mix(values: list[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the corners of a cell make together, in place."""
    for weight in reversed(weights):
        values = [a.lerp_(b, weight) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _deviation(centred: torch.Tensor) -> torch.Tensor:
    """Standard deviation of values (n,) with mean 0; far faster than torch's own on a CPU."""
    return centred.dot(centred).div_(len(centred)).sqrt_()


BLOCK = 32
"""Samples along an axis that a CPU softens at once."""


def _soften(volume: torch.Tensor, deviation: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Gaussian blur, then fewer samples and back, along z, y and x.

    By matrices, both steps in one. They are bands: what a block of samples becomes is made of
    those around it.
    """
    z, y, x = volume.shape
    block = BLOCK if volume.device.type == "cpu" else max(volume.shape)
    for axis, (n, sigma, slices) in enumerate(zip(volume.shape, deviation, coarse, strict=True)):
        if not sigma and slices == n:
            continue
        matrix = _coarsen(n, int(slices)) @ _gaussian(n, sigma)
        soft = torch.empty_like(volume)
        for rows, some in zip(matrix.split(block), soft.split(block, axis), strict=True):
            used = (rows.abs() > 1e-8).any(0).nonzero()
            low, high = int(used[0]), int(used[-1]) + 1
            band = rows[:, low:high].to(volume.device)
            of = volume.narrow(axis, low, high - low)
            if axis == 0:
                torch.mm(band, of.view(-1, y * x), out=some.view(-1, y * x))
            elif axis == 1:
                torch.bmm(band.expand(z, *band.shape), of, out=some)
            else:
                torch.bmm(of, band.T.expand(z, *band.T.shape), out=some)
        volume = soft
    return volume


def _gaussian(n: int, deviation: torch.Tensor) -> torch.Tensor:
    """The matrix (n, n) that blurs ``n`` samples."""
    distance = torch.arange(1 - n, n) / deviation.clamp(min=1e-3)
    weights = torch.exp(-0.5 * distance.square())
    # Row i of the matrix reads the kernel centred on voxel i.
    return (weights / weights.sum()).unfold(0, n, 1).flip(0)


def _coarsen(n: int, fewer: int) -> torch.Tensor:
    """The matrix (n, n) from ``n`` samples to fewer, each of its thickness, and back."""
    # Resizing is linear: what it does to a unit is a column of its matrix.
    units = torch.eye(n)[None, None]
    thick = F.interpolate(units, size=(fewer, n), mode="bilinear", antialias=True)
    return F.interpolate(thick, size=(n, n), mode="bilinear")[0, 0]


def _gamma(zscores: torch.Tensor, exponent: float, *, negative: bool) -> torch.Tensor:
    """Intensities to a power, or their negative: 1 - (1 - intensity) ** exponent."""
    sign = -1 if negative else 1
    powers = (zscores * (sign / (2 * WINDOW))).add_(0.5).clamp_(0, 1)
    powers.log_().mul_(exponent).exp_()  # twice as fast as a power
    return powers.mul_(sign).add_(negative)


def _remap(intensity: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Intensities from 0 to 1 through a curve of straight pieces."""
    pieces = len(curve) - 1
    position = intensity * pieces
    piece = position.int().clamp_(max=pieces - 1)
    low, slope = curve[:-1].index_select(0, piece), curve.diff().index_select(0, piece)
    return slope.mul_(position.sub_(piece)).add_(low)


def _add_noise(intensity: torch.Tensor, strength: float, *, seed: int) -> torch.Tensor:
    """The magnitude of intensities (n,) with complex Gaussian noise: Rician (Gudbjartsson 1995).

    ``strength`` is in standard deviations of the intensities.
    """
    source = torch.Generator(intensity.device).manual_seed(seed)
    noise = torch.randn((2, len(intensity)), generator=source, device=intensity.device)
    real, imaginary = noise.mul_(strength * _deviation(intensity - intensity.mean()))
    return real.add_(intensity).hypot_(imaginary)


def _cosines(coefficients: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sum of low-frequency cosines over the box (inverse DCT-II without its scaling)."""
    z, y, x = (
        torch.cos(
            torch.arange(3, device=coefficients.device)[:, None]
            * ((torch.arange(n, device=coefficients.device) + 0.5) * (math.pi / n))
        )
        for n in shape
    )
    planes = y.T @ (coefficients @ x)  # (3, y, x), and then along z: contiguous, unlike einsum's
    return (z.T @ planes.flatten(1)).view(shape)
