"""Random views on a CPU: one thread a view, and nothing is computed where there is no brain.

The steps are those of batched.py, on the lines of a view that show brain.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch.nn import functional as F

from neurofoundry.nn.augment.draws import KNOTS, WINDOW, Draws, curve_of

PIECE = 2**15
"""Voxels that are done at once: they stay in the cache, and memory is used again."""

LINE = 8
"""Neighbours along x that are done together. Most of a view is background, and a line without
brain costs nothing."""

HALF = (LINE - 1) / 2
"""From the first voxel of a line to its middle."""

STEPS = torch.arange(LINE) - HALF
"""The voxels of a line, from its middle."""

INSIDE, OUTSIDE = 1, 2
"""There is brain, there is background: both at the surface of the brain."""

Box = tuple[slice, slice, slice]
"""A part of a volume along z, y, x."""


def apply(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return views as `augment.apply` does, of volumes on the CPU."""
    views = volumes.new_zeros((len(draws.gamma), *volumes.shape[1:]))
    each = zip(itertools.cycle(volumes[:, 0]), draws.each(), views[:, 0], strict=False)
    # One thread a view, however many there are: that scales better than threads within a step, and
    # sums do not depend on their number.
    with one_thread_each(torch.get_num_threads(), len(views)) as threads:
        deque(threads.map(_view, *zip(*each, strict=True)), maxlen=0)
    return views


@contextmanager
def one_thread_each(most: int, tasks: int) -> Iterator[Executor]:
    """Start at most ``most`` threads, in each of which torch itself uses one."""
    start = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(max(1, min(most, tasks)), initializer=start) as threads:
            yield threads
    finally:
        torch.set_num_threads(most)  # again, for threads that are started later


@dataclass(frozen=True)
class Seen:
    """What a view shows of a brain: some lines of a box of the view."""

    low: tuple[int, int, int]
    """First voxel of the box along z, y, x."""
    shape: tuple[int, int, int]
    """Of the box; its last lines may reach beyond the view."""
    lines: torch.Tensor
    """(n,) which of the lines of the box; those that hold background too come last."""
    values: torch.Tensor
    """(n, LINE); background is 0."""
    brain: torch.Tensor
    """(m, LINE), of the last m lines: 1 where they show brain, else 0."""

    @property
    def pieces(self) -> tuple[torch.Tensor, ...]:
        """All values, a few lines at a time."""
        return _pieces(self.values)

    @property
    def voxels(self) -> torch.Tensor:
        """How many voxels show brain."""
        return self.brain.sum() + (self.values.numel() - self.brain.numel())

    def dense(self) -> torch.Tensor:
        """Return the box as a volume."""
        box = self.values.new_zeros(self.shape)
        box.view(-1, LINE).index_copy_(0, self.lines, self.values)
        return box

    def clear(self) -> None:
        """Make the background 0 again."""
        if len(self.brain):
            self.values[-len(self.brain) :].mul_(self.brain)


def _pieces(lines: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The voxels of lines (n, LINE), in pieces."""
    return tuple(torch.split(lines.view(-1), PIECE))


def _view(volume: torch.Tensor, draws: Draws, view: torch.Tensor) -> None:
    """Write a view of a volume, (z, y, x), into zeros. A step that is not drawn costs nothing."""
    seen = resample(volume, draws.affine, draws.shown.tolist())
    if seen is None:
        return
    if draws.blur.any() or draws.coarse.tolist() != list(volume.shape):
        soft = _soften(seen, draws.blur, draws.coarse, volume.shape)
        torch.index_select(soft.view(-1, LINE), 0, seen.lines, out=seen.values)
    _change_contrast(seen, draws.gamma.item(), draws.remap, negative=bool(draws.negative))
    if draws.bias.any():
        _multiply_bias(seen, draws.bias, volume.shape)
    seen.clear()
    if draws.noise:
        add_noise(seen, draws.noise.item() * _deviation(seen), seed=int(draws.noise_seed))
        seen.clear()
    seen.values.sub_(seen.values.sum() / seen.voxels)
    seen.clear()
    seen.values.div_(max(1e-6, _deviation(seen)))
    z, y, x = (slice(low, low + n) for low, n in zip(seen.low, seen.shape, strict=True))
    place = view[z, y, x]
    place.copy_(seen.dense()[..., : place.shape[2]])


def _deviation(seen: Seen) -> float:
    """Standard deviation in the brain."""
    values = seen.values.view(-1)
    mean = values.sum() / seen.voxels
    return float((values.dot(values) / seen.voxels - mean.square()).clamp_(min=0).sqrt_())


def resample(
    volume: torch.Tensor, affine: torch.Tensor, shown: Sequence[Sequence[int]] | None = None
) -> Seen | None:
    """Return what a view shows of the brain of a volume, both (z, y, x); None if nothing.

    ``shown`` is `Draws.shown` of the view; None: all.

    Trilinear interpolation. A voxel shows brain when at least half of what it is interpolated from
    is brain, and then shows that half alone: the background does not bleed in.

    What lies around the middle of a line tells whether it is background, as most are, or deep in
    the brain, where no shares need be known.
    """
    brain = volume.bool().view(torch.uint8)
    inner = _extent(brain)
    if inner is None:
        return None
    matrix, offset = _in_voxels(affine, volume.shape)
    # The farthest, along each axis, that a voxel of use to a line lies from the one nearest to its
    # middle: half the line, half a voxel of rounding, less than one voxel of interpolation.
    reach = [math.ceil(abs(step) * HALF + 1.5) - 1 for step in matrix[:, 2]]
    # Where a middle is moved to the nearest place that has neighbours, none of them is brain.
    margin = [2 * far + 1 for far in reach]
    offset = offset - [axis.start - more for axis, more in zip(inner, margin, strict=True)]
    middles = _middles(matrix, offset, volume.shape)
    around = F.pad(brain[inner], [more for more in margin[::-1] for _ in "ab"])
    kinds = _kinds(_surroundings(around, reach), middles, reach)
    window = [range(*ends) for ends in shown or [(0, n) for n in volume.shape]]
    _close(kinds, window)
    box = _extent(kinds & INSIDE)
    if box is None:
        return None
    image, mask = (_Slices(each[inner], margin) for each in (volume, brain))
    middles = image.scale([each[box].flatten() for each in middles])
    within = image.scale([STEPS * float(step) for step in matrix[:, 2]], vectors=True)
    return _read(image, mask, kinds[box].flatten(), (middles, within), box, window[2])


def _close(kinds: torch.Tensor, window: Sequence[range]) -> None:
    """Make background of the lines that no voxel of ``window`` (z, y, x) is in; those that are in
    it in part hold background too."""
    z, y, x = window
    first, last = x.start // LINE, -(-x.stop // LINE)
    for axis, (start, stop) in enumerate([(z.start, z.stop), (y.start, y.stop), (first, last)]):
        kinds.narrow(axis, 0, start).fill_(OUTSIDE)
        kinds.narrow(axis, stop, kinds.shape[axis] - stop).fill_(OUTSIDE)
    if x.start % LINE:
        kinds[..., first] |= OUTSIDE
    if x.stop % LINE:
        kinds[..., last - 1] |= OUTSIDE


def _middles(
    matrix: NDArray[np.float64], offset: NDArray[np.float64], shape: Sequence[int]
) -> list[torch.Tensor]:
    """Where in the padded brain the middles of all lines are: z, y, x, each (z, y, lines)."""
    z, y, x = (
        torch.arange(n) * step + start
        for n, step, start in zip(
            (*shape[:2], -(-shape[2] // LINE)), (1, 1, LINE), (0, 0, HALF), strict=True
        )
    )
    return [
        ((z * to_z + start)[:, None, None] + (y * to_y)[:, None]) + x * to_x
        for (to_z, to_y, to_x), start in zip(matrix.tolist(), offset.tolist(), strict=True)
    ]


def _kinds(
    around: torch.Tensor, middles: Sequence[torch.Tensor], reach: Sequence[int]
) -> torch.Tensor:
    """What each line shows, uint8, from what is around the voxel nearest to its middle."""
    z, y, x = (
        middle.sub(far).round_().clamp_(0, n - 1).int() * stride
        for middle, far, n, stride in zip(
            middles, reach, around.shape, around.stride(), strict=True
        )
    )
    at = z + y + x
    return around.view(-1).index_select(0, at.view(-1)).view(at.shape)


def _read(
    image: _Slices,
    mask: _Slices,
    kinds: torch.Tensor,
    places: tuple[list[torch.Tensor], list[torch.Tensor]],
    box: Box,
    columns: range,
) -> Seen:
    """Interpolate the lines of ``box`` that show brain; voxels outside ``columns`` do not.

    ``places`` are the middles of all lines of the box, and a line's voxels from its middle.
    """
    inside, surface = ((kinds == kind).nonzero()[:, 0] for kind in (INSIDE, INSIDE | OUTSIDE))
    z, y, x = ((axis.start, axis.stop - axis.start) for axis in box)
    seen = Seen(
        low=(z[0], y[0], x[0] * LINE),
        shape=(z[1], y[1], x[1] * LINE),
        lines=torch.cat([inside, surface]),
        values=torch.empty((len(inside) + len(surface), LINE)),
        brain=torch.empty((len(surface), LINE)),
    )
    at_once = PIECE // LINE
    deep, mixed = torch.split(seen.values, [len(inside), len(surface)])
    for some, values in _together(at_once, inside, deep):
        image.read(*image.places(*places, some), out=values)
    for some, values, shown in _together(at_once, surface, mixed, seen.brain):
        at = image.places(*places, some)
        image.read(*at, out=values)
        share = mask.read(*at, out=shown)
        values.div_(share.clamp(min=0.5))
        column = ((some % x[1] + x[0]) * LINE)[:, None] + (STEPS + HALF)
        shown.copy_((share >= 0.5) & (column >= columns.start) & (column < columns.stop))
    seen.clear()
    return seen


def _together(size: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """So many rows of each tensor at a time."""
    return zip(*(torch.split(each, size) for each in tensors), strict=True)


class _Slices:
    """A volume (z, y, x) among zeros, read by trilinear interpolation.

    Bilinear interpolation is several times as fast in torch. So the slices lie one below the other
    in a tall image, whose second channel is the same image from the next slice on.
    """

    def __init__(self, volume: torch.Tensor, margin: Sequence[int]) -> None:
        nz, ny, nx = (n + 2 * more for n, more in zip(volume.shape, margin, strict=True))
        # The middle slice starts in the middle row, and sizes are powers of two: so rounding costs
        # no more than a thousandth of a voxel or two, along y.
        self.middle = nz // 2
        height, width = (1 << (n - 1).bit_length() for n in (2 * (nz - self.middle) * ny, nx))
        before = (height // 2 - self.middle * ny) * nx
        room = (height + ny) * nx + width
        memory = torch.from_numpy(np.zeros(room, np.float32))  # costs nothing until it is touched
        inner = memory[before:][: nz * ny * nx].view(nz, ny, nx)
        for axis, (n, more) in enumerate(zip(volume.shape, margin, strict=True)):
            inner = inner.narrow(axis, more, n)
        inner.copy_(volume)
        self.image = memory.as_strided((1, 2, height, width), (0, ny * nx, nx, 1))
        self.units = (1.0, 2 / height, 2 / width)
        self.zero = (-float(self.middle), 1 / height, 1 / width - 1)
        self.slice = 2 * ny / height

    def scale(self, points: Sequence[torch.Tensor], *, vectors: bool = False) -> list[torch.Tensor]:
        """Voxels z, y, x in units of the image: slices from the middle one, then -1…1."""
        zero = (0.0, 0.0, 0.0) if vectors else self.zero
        return [
            point * unit + start
            for point, unit, start in zip(points, self.units, zero, strict=True)
        ]

    def places(
        self, points: Sequence[torch.Tensor], within: Sequence[torch.Tensor], some: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where ``some`` lines are in the image (1, 1, voxels, 2), and the share of the next slice.

        ``points`` are the middles of lines, ``within`` a line's voxels from its middle.
        """
        z, y, x = (point.index_select(0, some)[:, None] for point in points)
        places = torch.empty((2, len(some), LINE))
        torch.add(x, within[2], out=places[0])
        torch.add(y, within[1], out=places[1])
        share = z + within[0]
        slices = share.floor()
        places[1].add_(slices, alpha=self.slice)
        return places.flatten(1).T[None, None], share.sub_(slices)

    def read(self, places: torch.Tensor, share: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """Values at places."""
        this, following = F.grid_sample(self.image, places, align_corners=False)[0, :, 0]
        torch.lerp(this.view_as(share), following.view_as(share), share, out=out)
        return out


def _extent(there: torch.Tensor) -> Box | None:
    """The smallest box of what is not 0 in uint8 (z, y, x); None if all is."""
    front = there.amax(0)
    axes = (there.flatten(1).amax(1), front.amax(1), front.amax(0))
    filled = [axis.nonzero()[:, 0].tolist() for axis in axes]
    if not filled[0]:
        return None
    z, y, x = (slice(places[0], places[-1] + 1) for places in filled)
    return z, y, x


def _in_voxels(
    affine: torch.Tensor, shape: torch.Size
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset from a view's to the volume's voxel indices, in the order z, y, x."""
    size = np.array(shape[::-1])
    matrix, shift = affine[:, :3].double().numpy(), affine[:, 3].double().numpy()
    linear = size[:, None] * matrix / size
    offset = (matrix @ (1 / size - 1) + shift + 1) * size / 2 - 0.5
    return linear[::-1, ::-1], offset[::-1]


def _surroundings(brain: torch.Tensor, reach: Sequence[int]) -> torch.Tensor:
    """Of each voxel that has ``reach`` neighbours along each axis: what is among them, uint8."""
    seen = OUTSIDE - brain  # INSIDE where there is brain
    for axis, far in enumerate(reach):
        width = 1
        while width <= 2 * far:
            step = min(width, 2 * far + 1 - width)
            n = seen.shape[axis] - step
            seen = seen.narrow(axis, 0, n) | seen.narrow(axis, step, n)
            width += step
    return seen.contiguous()


BLOCK = 32
"""Samples along an axis that are softened at once."""


def _soften(
    seen: Seen, deviation: torch.Tensor, coarse: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """The box after Gaussian blur, then fewer samples and back, along z, y and x of the view."""
    box = seen.dense()
    for axis, (n, sigma, slices) in enumerate(zip(shape, deviation, coarse, strict=True)):
        if not sigma and slices == n:
            continue
        matrix = _coarsen(n, int(slices)) @ _gaussian(n, sigma)
        beyond = max(0, seen.low[axis] + seen.shape[axis] - n)  # stays 0
        matrix = F.pad(matrix, (0, beyond, 0, beyond)).narrow(0, seen.low[axis], seen.shape[axis])
        box = _multiply(matrix.narrow(1, seen.low[axis], seen.shape[axis]), box, axis)
    return box


def _multiply(matrix: torch.Tensor, box: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply along an axis by a matrix that is a band: each block of rows reads few samples."""
    z, y, x = box.shape
    product = torch.empty_like(box)
    blocks = zip(torch.split(matrix, BLOCK), torch.split(product, BLOCK, axis), strict=True)
    for rows, some in blocks:
        used = (rows.abs() > 1e-6).any(0).nonzero()
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        band = rows[:, low:high]
        of = box.narrow(axis, low, high - low)
        if axis == 0:
            torch.mm(band, of.view(-1, y * x), out=some.view(-1, y * x))
        elif axis == 1:
            torch.bmm(band.expand(z, *band.shape), of, out=some)
        else:
            torch.bmm(of, band.T.expand(z, *band.T.shape), out=some)
    return product


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


LEVELS = 2**16
"""Intensities that are told apart when contrast is changed: finer than volumes are stored."""


def _change_contrast(seen: Seen, exponent: float, curve: torch.Tensor, *, negative: bool) -> None:
    """Turn z-scores into intensities from 0 to 1; raise them to a power, or 1 - intensity; then
    take them through a curve. By a table, unless that changes nothing."""
    straight = torch.equal(curve, curve_of(np.ones(KNOTS - 1)))
    if exponent == 1 and straight:
        for some in seen.pieces:
            some.mul_(1 / (2 * WINDOW)).add_(0.5).clamp_(0, 1)
        return
    levels = (torch.arange(LEVELS) + 0.5) / LEVELS
    levels = 1 - (1 - levels) ** exponent if negative else levels**exponent
    levels = levels if straight else _remap(levels, curve)
    for some in seen.pieces:
        level = some.mul_(LEVELS / (2 * WINDOW)).add_(LEVELS / 2).clamp_(0, LEVELS - 1).int()
        torch.index_select(levels, 0, level, out=some)


def _remap(intensity: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Take intensities from 0 to 1 through a curve of straight pieces."""
    pieces = len(curve) - 1
    position = intensity * pieces
    piece = position.int().clamp_(max=pieces - 1)
    low, slope = curve[:-1].index_select(0, piece), curve.diff().index_select(0, piece)
    return slope.mul_(position.sub_(piece)).add_(low)


def _multiply_bias(seen: Seen, coefficients: torch.Tensor, shape: Sequence[int]) -> None:
    """Multiply by a bias field, whose logarithm is a sum of cosines."""
    field = _cosines(coefficients, shape, seen.low, seen.shape)
    logarithms = field.view(-1, LINE).index_select(0, seen.lines)
    for some, logarithm in zip(seen.pieces, _pieces(logarithms), strict=True):
        some.mul_(logarithm.exp_())


def _cosines(
    coefficients: torch.Tensor, shape: Sequence[int], low: Sequence[int], size: Sequence[int]
) -> torch.Tensor:
    """A box, ``size`` voxels from ``low`` on, of a sum of low-frequency cosines over a view of
    ``shape``: inverse DCT-II without its scaling."""
    z, y, x = (
        torch.cos(
            torch.arange(3)[:, None] * ((torch.arange(start, start + some) + 0.5) * (math.pi / n))
        )
        for n, start, some in zip(shape, low, size, strict=True)
    )
    planes = y.T @ (coefficients @ x)  # (3, y, x), and then along z: contiguous, unlike einsum's
    return (z.T @ planes.flatten(1)).view(*size)


def add_noise(seen: Seen, deviation: float, *, seed: int) -> None:
    """Turn intensities into magnitudes with complex Gaussian noise: Rician (Gudbjartsson and Patz
    1995)."""
    for some, (real, imaginary) in zip(seen.pieces, _normal_pairs(seen.pieces, seed), strict=True):
        some.add_(real, alpha=deviation)
        some.mul_(some).addcmul_(imaginary, imaginary, value=deviation**2).sqrt_()


NORMAL = torch.tensor(ndtri((np.arange(2**16) + 0.5) / 2**16), dtype=torch.float32)
"""Quantiles of the normal distribution: 16 random bits choose one, in a third of the usual time."""


def _normal_pairs(pieces: Sequence[torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    """Standard normal numbers, (2, n) for each piece."""
    bits = np.random.SFC64(seed)
    for some in pieces:
        which = torch.from_numpy(bits.random_raw(-(-len(some) // 2)).view(np.uint16)).int()
        yield NORMAL.index_select(0, which[: 2 * len(some)]).view(2, -1)
