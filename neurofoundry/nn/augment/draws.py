"""The parameters of random views: drawn here, applied in batched.py and cpu.py.

A draw depends on (seed, epoch, scan, view) alone, so that any view can be drawn again, whatever
batch or worker it was in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.seeds import generator

WINDOW = 5.0
"""Contrast, bias field and noise act on intensities: z-scores from -5 to 5 become 0 to 1."""

KNOTS = 9
"""Points of the curve that changes the contrast."""

LEAST_OF_PAPER = np.array([40 / 192, 40 / 192, 30 / 150])
"""Smallest crop (x, y, z) of the published distribution, as shares of its box of 192 × 192 × 150
voxels."""


@dataclass(frozen=True)
class Draws:
    """Parameters of one view of each scan of a batch; every field is a tensor (batch, …)."""

    affine: torch.Tensor
    """(batch, 3, 4): from the view's to the volume's coordinates, x y z in -1…1 at the faces."""
    shown: torch.Tensor
    """(batch, 3, 2) int64: along z, y, x the first voxel that is shown and the one past the last;
    the others are background."""
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
    """(batch,) standard deviation, as a share of that of the brain's intensities."""
    noise_seed: torch.Tensor
    """(batch,) int64."""

    def each(self) -> Iterator[Draws]:
        """Yield the parameters of one scan after the other, without the batch axis, on the CPU."""
        columns = {f.name: getattr(self, f.name).cpu().unbind() for f in fields(self)}
        for row in zip(*columns.values(), strict=True):
            yield Draws(**dict(zip(columns, row, strict=True)))

    def of_channel(self, number: int) -> Draws:
        """Return the parameters of another channel of the same views: its noise is its own."""
        return replace(self, noise_seed=self.noise_seed ^ number)

    def split(self, size: int) -> Iterator[Draws]:
        """Yield the parameters of ``size`` scans after the other, and of those that are left."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for start in range(0, len(self.gamma), size):
            yield Draws(**{name: each[start : start + size] for name, each in columns.items()})

    def to(self, device: torch.device) -> Draws:
        """Return the same parameters on ``device``; seeds stay where they are, for generators.

        From pinned memory, for which a GPU does not wait.
        """
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "noise_seed"}
        if device.type == "cuda":
            columns = {name: each.pin_memory() for name, each in columns.items()}
        moved = {name: each.to(device, non_blocking=True) for name, each in columns.items()}
        return Draws(**moved, noise_seed=self.noise_seed)

    @staticmethod
    def joined(several: Sequence[Draws]) -> Draws:
        """Return the parameters of several batches as one batch."""
        return Draws(
            **{f.name: torch.cat([getattr(one, f.name) for one in several]) for f in fields(Draws)}
        )


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


def magnifications(
    params: AugmentParams, *, seed: int, epoch: int, scans: Sequence[str], view: int
) -> NDArray[np.float64]:
    """Return by how much view number ``view`` of each scan magnifies it, (scans, 3), x y z.

    Along x it is negative where left and right are exchanged. These are the views of `draw`.
    """
    frame = _frame_paper if params.preset == "paper" else _frame_robust
    rows = []
    for scan in scans:
        _, (edges, _), mirrored = frame(params, (seed, epoch, scan), view)
        factors = 1 / edges if params.zoom else np.ones(3)
        rows.append(factors * [-1.0 if mirrored else 1.0, 1.0, 1.0])
    return np.array(rows)


Crop = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Edges and centre along (x, y, z), as shares of the box."""

Frame = tuple[np.random.Generator, Crop, bool]
"""The source of what else is drawn; the crop; whether left and right are exchanged."""


def _frame_robust(params: AugmentParams, sample: tuple[object, ...], view: int) -> Frame:
    random = generator(*sample, view)
    first = _crop(params, generator(*sample, 0), near=None) if view else None
    crop = _crop(params, random, near=first)
    return random, crop, bool(random.random() < params.flip)


def _frame_paper(params: AugmentParams, sample: tuple[object, ...], view: int) -> Frame:
    random = generator(*sample, view)
    edges = random.uniform(LEAST_OF_PAPER, 1)
    centre = edges / 2 + (1 - edges) * random.random(3)
    return random, (edges, centre), bool(random.random() < 0.5)


def _draw_robust(
    params: AugmentParams, sample: tuple[object, ...], view: int, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    random, (edges, centre), mirrored = _frame_robust(params, sample, view)
    turn = _turn(random.uniform(-params.rotation, params.rotation, 3))
    slices = np.array(shape)
    axis = random.integers(3)
    slices[axis] = round(shape[axis] / random.uniform(1, params.coarse))
    slopes = np.exp(params.remap * random.standard_normal(KNOTS - 1))
    size = edges if params.zoom else np.ones(3)
    return {
        "affine": _affine(turn @ _scale(size, mirrored), centre, shape),
        "shown": _shown(edges / size, shape),
        "gamma": torch.tensor(params.gamma ** random.uniform(-1, 1), dtype=torch.float32),
        "negative": torch.tensor(random.random() < 0.5),
        "remap": curve_of(slopes),
        "bias": _bias(random.uniform(0, params.bias), random),
        "blur": torch.tensor(random.uniform(0, params.blur, 3), dtype=torch.float32),
        "coarse": torch.tensor(slices),
        "noise": torch.tensor(random.uniform(0, params.noise), dtype=torch.float32),
        "noise_seed": torch.tensor(random.integers(2**63)),
    }


def _draw_paper(
    params: AugmentParams, sample: tuple[object, ...], view: int, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Draw as 3D-Neuro-SimCLR (arXiv 2509.10620): what two views share is left to chance.

    Its volumes are (z, y, x) and MONAI's ``range_x`` turns about the first axis of the array: z.
    It turns what a crop has become once it is resized, so that an elongated crop is sheared.
    """
    random, (edges, centre), mirrored = _frame_paper(params, sample, view)
    angle = random.uniform(-45, 45) if random.random() < 0.5 else 0.0
    gamma = random.uniform(0.5, 1.5) if random.random() < 0.8 else 1.0
    linear = _scale(edges, mirrored) @ _turn([0, 0, angle])
    return {
        "affine": _affine(linear, centre, shape),
        "shown": _shown(np.ones(3), shape),
        "gamma": torch.tensor(gamma, dtype=torch.float32),
        "negative": torch.tensor(False),
        "remap": curve_of(np.ones(KNOTS - 1)),
        "bias": torch.zeros(3, 3, 3),
        "blur": torch.zeros(3),
        "coarse": torch.tensor(shape),
        "noise": torch.tensor(0.0),
        "noise_seed": torch.tensor(random.integers(2**63)),
    }


def _crop(params: AugmentParams, random: np.random.Generator, *, near: Crop | None) -> Crop:
    scale = random.uniform(*params.crop)
    edges = scale * params.stretch ** random.uniform(-0.5, 0.5, 3)
    edges = np.clip(edges, *params.crop)
    low, high = edges / 2, 1 - edges / 2
    if near is not None:
        other_edges, other_centre = near
        smaller = np.minimum(edges, other_edges)
        wanted = params.min_overlap * min(edges.prod(), other_edges.prod())
        # The same share of the possible overlap along each axis: centres are at most so far apart.
        reach = (edges + other_edges) / 2 - smaller * np.cbrt(wanted / smaller.prod())
        low = np.maximum(low, other_centre - reach)
        high = np.minimum(high, other_centre + reach)
    return edges, low + (high - low) * random.random(3)


def _scale(edges: NDArray[np.float64], mirrored: bool) -> NDArray[np.float64]:
    return np.diag(edges * [-1.0 if mirrored else 1.0, 1.0, 1.0])


def _shown(shares: NDArray[np.float64], shape: tuple[int, int, int]) -> torch.Tensor:
    """Return the voxels of ``shares`` (x, y, z) of a view about its middle, as `Draws.shown`."""
    size = np.array(shape)
    count = np.maximum(1, np.rint(shares[::-1] * size)).astype(np.int64)
    first = (size - count) // 2
    return torch.from_numpy(np.stack([first, first + count], axis=1))


def _turn(degrees: ArrayLike) -> NDArray[np.float64]:
    turn: NDArray[np.float64] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return turn


def _affine(
    linear: NDArray[np.float64], centre: NDArray[np.float64], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Return the affine of a linear map in voxels (x, y, z) about a centre in shares of the box.

    A turn preserves lengths in voxels, not as shares of a box that is no cube.
    """
    extent = np.array(shape[::-1], float)
    affine = np.column_stack([linear * extent / extent[:, None], 2 * centre - 1])
    return torch.tensor(affine, dtype=torch.float32)


def curve_of(slopes: NDArray[np.float64]) -> torch.Tensor:
    """Return the curve from 0 to 1, (KNOTS,), whose pieces are as steep as ``slopes`` (KNOTS - 1,)
    to each other."""
    values = np.concatenate([[0], np.cumsum(slopes)])
    return torch.tensor(values / values[-1], dtype=torch.float32)


def _bias(strength: float, random: np.random.Generator) -> torch.Tensor:
    coefficients = random.standard_normal((3, 3, 3))
    coefficients[0, 0, 0] = 0  # standardization undoes a constant factor
    # The mean square of a cosine is 1/2, that of the constant 1.
    power = np.array([1, 0.5, 0.5])
    variance = np.einsum("ijk,i,j,k", coefficients**2, power, power, power)
    return torch.tensor(strength / np.sqrt(variance) * coefficients, dtype=torch.float32)
