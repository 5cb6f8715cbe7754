"""Affine registration to the template by mutual information, and the rotation within it.

Intensities are compared at a fixed set of template points, from coarse to fine. Twelve degrees of
freedom are estimated even where a rigid transform is wanted: turning and shifting a brain of its
own size within the larger template brain has no well-defined best place, but the rotation closest
to the best affine fit has.

Scans are registered in batches on any device, each as if it were alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess.params import Bounds, QualityParams
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, coarsen

CPU = torch.device("cpu")
BINS = 32
STEPS_PER_MM, FEWEST_STEPS = 4, 24
"""The optimizer's steps for each mm of a level's spacing: a tilted head needs them at the coarse
levels, where they cost next to nothing."""
REMEMBERED = (0.9, 0.99)
"""Share of the gradients' mean and of their mean square that a step keeps (Adam's betas)."""
TINY = 1e-12
"""Instead of 0 where a logarithm is taken or a denominator must not vanish."""
BRAIN_RADIUS_MM = 70.0
"""Turns a change of the linear part into the mm by which it moves the brain's surface."""
BRAIN_SCALE = 0.9
"""Size of a brain relative to the template, as a start: the template is larger than most."""
CHECKPOINT_MM = 8.0
"""The level down to which orientations are followed before they are compared."""
GOOD_FIT = 0.28
"""Mutual information, in nats, with the whole head at 4 mm, above which no other orientation is
tried: old heads that are placed right have 0.26 to 0.49, one that was 9 mm off had 0.22, and
misplaced ones have at most 0.13."""
CONVINCING = 1.2
"""How many times the fit from the header's orientation another's must be. Right ones have about
twice the fit of wrong ones."""
TILT_DEGREES = 25.0
"""About each axis, of the tilts that are tried within the header's orientation: heads are tilted by
up to 30°, about several axes at once."""
ABOVE_MM = 35.0
"""How far a brain lies above the centre of a mask that has leaked down the neck."""
PURSUED, COMPARED, SAME_MM = 8, 4, 12.0
"""Starts that are followed beyond the coarsest level; of those that end up farther apart than this,
how many are compared."""
PLAUSIBLE = QualityParams()
"""The bounds of stretch and determinant that an orientation other than the header's must keep."""
MOST_POINTS = 40_000
"""Points at which a level is compared. All 260,000 at 2 mm move real heads by 0.2 mm, as two more
steps of the optimizer do, and cost a second."""


@dataclass(frozen=True)
class Level:
    """What scans are compared with, at one resolution: the template, at scattered points."""

    spacing: float
    points: NDArray[np.float32]
    """mm from the centre, (n, 3)."""
    values: NDArray[np.float32]
    """Intensity, 0..1, (n,)."""

    @classmethod
    def of(cls, image: Image, compared: Mask, centre: Array, spacing: float) -> Level:
        """Return an image of this ``spacing`` at its voxels that are to be ``compared``, or, where
        these are more than ``MOST_POINTS``, at some of them."""
        voxels = np.argwhere(compared)
        if len(voxels) > MOST_POINTS:
            chosen = np.random.default_rng(0).choice(len(voxels), MOST_POINTS, replace=False)
            voxels = voxels[np.sort(chosen)]
        points = apply_affine(image.affine, voxels) - centre
        return cls(spacing, points.astype(np.float32), image.values[tuple(voxels.T)])


def register(
    brains: Sequence[Image],
    centroids: Sequence[Array],
    levels: Sequence[Level],
    centre: Array,
    device: torch.device = CPU,
) -> list[Matrix]:
    """Return the affine maps from mm of the template to mm of each scan.

    ``brains`` have intensities 0..1 and 0 outside; ``centroids`` are theirs, (3,) in mm, and
    ``centre`` is the template's.
    """
    affines, _ = orient(brains, brains, centroids, levels, levels[-1], centre, device)
    affines, _ = refine(brains, affines, finer(levels), centre, device)
    return affines


def orient(
    brains: Sequence[Image],
    heads: Sequence[Image],
    centroids: Sequence[Array],
    levels: Sequence[Level],
    judged: Level,
    centre: Array,
    device: torch.device = CPU,
) -> tuple[list[Matrix], list[float]]:
    """Return the affine maps at the level ``judged``, and their mutual information there, in nats.

    ``heads`` are what surrounds the ``brains``, too: what a mask has wrongly included or left out
    draws a fit along with it, and only the head around it tells. The header's orientation is tried
    first; where it does not fit, tilts of it and the other 23 right-angled ones, of which one must
    fit far better. Other arguments are those of `register`.
    """
    levels = [level for level in levels if level.spacing >= CHECKPOINT_MM]
    starts = np.stack([initial_poses(centroid, [np.eye(3)]) for centroid in centroids])
    poses, _ = optimize_poses(brains, levels, starts, device)
    poses, fits = optimize_poses(heads, [judged], poses, device)
    for n in np.flatnonzero(fits[:, 0] < GOOD_FIT).tolist():
        others = _other_poses(brains[n], centroids[n], levels, device)
        found, information = optimize_poses([heads[n]], [judged], others[None], device)
        tried = np.concatenate([poses[n], found[0]]), np.concatenate([fits[n], information[0]])
        best = _best(*tried)
        poses[n, 0], fits[n, 0] = (each[best] for each in tried)
    return [as_map(pose, centre) for pose in poses[:, 0]], fits[:, 0].tolist()


def finer(levels: Sequence[Level]) -> list[Level]:
    """Return the levels from ``CHECKPOINT_MM`` on."""
    return [level for level in levels if level.spacing <= CHECKPOINT_MM]


def refine(
    brains: Sequence[Image],
    affines: Sequence[Matrix],
    levels: Sequence[Level],
    centre: Array,
    device: torch.device = CPU,
    *,
    rigid: bool = False,
) -> tuple[list[Matrix], list[float]]:
    """Return the affine maps that start at ``affines`` and follow ``levels``, and their mutual
    information, in nats. ``rigid`` turns and shifts them alone; the other arguments are those of
    `register`."""
    starts = [np.column_stack([a[:3, :3], apply_affine(a, centre)]) for a in affines]
    poses, fits = optimize_poses(brains, levels, np.stack(starts)[:, None], device, rigid=rigid)
    return [as_map(pose, centre) for pose in poses[:, 0]], fits[:, 0].tolist()


def closest_rigid(affine: Matrix, centre: Array) -> Matrix:
    """Return the rigid map that turns as ``affine`` does and moves ``centre`` to the same place.

    The rotation is the orthogonal factor of the polar decomposition: the closest to the linear
    part in the sense of least squares (Higham, SIAM J. Sci. Stat. Comput. 7 (1986) 1160-1174).
    """
    left, _, right = np.linalg.svd(affine[:3, :3])
    rotation = left @ right
    moved = affine[:3, :3] @ centre + affine[:3, 3]
    rigid: Matrix = from_matvec(rotation, moved - rotation @ centre)
    return rigid


def initial_poses(centroid: Array, rotations: Sequence[Array]) -> Array:
    """Return poses (starts, 3, 4) that put the template, turned, onto a brain's centroid."""
    return np.stack([np.column_stack([BRAIN_SCALE * turn, centroid]) for turn in rotations])


def right_angled_rotations() -> list[Array]:
    """Return the 24 rotations that turn the axes into one another."""
    rotations = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.diag(signs)[list(order)]
            if np.linalg.det(matrix) > 0:
                rotations.append(matrix)
    return rotations


def tilts() -> list[Array]:
    """Return the 26 rotations by ``TILT_DEGREES`` about one axis to three, to either side."""
    vectors = [np.array(each) for each in itertools.product((-1, 0, 1), repeat=3) if any(each)]
    return [Rotation.from_rotvec(np.radians(TILT_DEGREES) * each).as_matrix() for each in vectors]


def plausible(poses: Array) -> Mask:
    """Return which of the poses (n, 3, 4) give a brain a shape and a size that brains have."""
    scales = np.linalg.svd(poses[:, :, :3], compute_uv=False)
    stretch, determinant = scales[:, 0] / scales[:, 2], scales.prod(axis=1)
    return _within(PLAUSIBLE.stretch, stretch) & _within(PLAUSIBLE.determinant, determinant)


def near_header(poses: Array) -> Mask:
    """Return which of the poses (n, 3, 4) are turned from the header's orientation by no more than
    quality control allows."""
    left, _, right = np.linalg.svd(poses[:, :, :3])
    cosine = (np.trace(left @ right, axis1=1, axis2=2) - 1) / 2
    return _within(PLAUSIBLE.rotation_deg, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def optimize_poses(
    brains: Sequence[Image],
    levels: Sequence[Level],
    poses: Array,
    device: torch.device = CPU,
    *,
    rigid: bool = False,
) -> tuple[Array, Array]:
    """Follow ``poses`` (scans, starts, 3, 4) to maxima of mutual information, level by level.

    A pose is the linear part and, in its last column, where the template's centre comes to lie.
    ``rigid`` turns and shifts it alone. Returns the poses and their mutual information, in nats, at
    the last level, (scans, starts).
    """
    scans, starts = poses.shape[:2]
    pose = torch.as_tensor(poses.reshape(-1, 3, 4).astype(np.float32), device=device)
    for level in levels:
        comparison = _Comparison.at(level, brains, starts, device)
        pose = _climb(comparison, pose, level.spacing, rigid=rigid)
    moving = _look_up(comparison.volumes, comparison.unit(pose))
    information = mutual_information(joint_histogram(comparison.values, moving))
    return (
        pose.double().cpu().numpy().reshape(poses.shape),
        information.double().cpu().numpy().reshape(scans, starts),
    )


def joint_histogram(fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """Return the joint distribution of intensities 0..1, (n,) and (batch, n), in ``BINS`` each:
    (batch, bins, bins).

    A fixed value belongs to the nearest bin. A moving one is shared by the two nearest, so that
    the histogram can be differentiated with respect to it.
    """
    return _histogram(*_bins(fixed, moving))


def information_slope(fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """Return the derivative of mutual information, in nats, by every moving value, (batch, n).

    Arguments are those of `joint_histogram`. With p the joint distribution and m that of the moving
    values, information changes by ln(p / m) where p does; a moving value that grows takes a share
    from its lower bin to the upper one.
    """
    lower, share = _bins(fixed, moving)
    joint = _histogram(lower, share)
    ratio = (joint.clamp_min(TINY) / joint.sum(dim=1, keepdim=True).clamp_min(TINY)).log()
    gain = torch.nn.functional.pad(ratio.diff(dim=2), (0, 1)).flatten(1)
    return gain.gather(1, lower) * ((BINS - 1) / len(fixed))


def mutual_information(joint: torch.Tensor) -> torch.Tensor:
    """Return the mutual information, in nats, of joint distributions (batch, a, b): (batch,)."""
    first, second, both = entropies(joint)
    return first + second - both


def entropies(joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the entropies, in nats, of the first variable, the second, and both: (batch,) each."""
    return _entropy(joint.sum(dim=2)), _entropy(joint.sum(dim=1)), _entropy(joint.flatten(1))


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp_min(TINY).log()).sum(dim=1)


def _bins(fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of every pair's lower bin, and the share that the bin above it has."""
    row = (fixed.clamp(0, 1) * (BINS - 1)).round().long() * BINS
    position = moving.clamp(0, 1) * (BINS - 1)
    column = position.floor().clamp(max=BINS - 2)
    return row + column.long(), position - column


def _histogram(lower: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    batch, count = lower.shape
    counts = share.new_zeros(batch, BINS * BINS)
    counts = counts.scatter_add(1, lower, 1 - share).scatter_add(1, lower + 1, share)
    return counts.view(batch, BINS, BINS) / count


def _other_poses(
    brain: Image, centroid: Array, levels: Sequence[Level], device: torch.device
) -> Array:
    """Return the poses (n, 3, 4) at which a brain fits best: from all tilts, at the centre of its
    mask and higher up, and from other orientations; one of those that come to the same place."""
    starts = [initial_poses(centroid, [*tilts(), *right_angled_rotations()[1:]])]
    for turn in (np.eye(3), *tilts()):
        starts.append(initial_poses(centroid + ABOVE_MM * turn[:, 2], [turn]))
    poses, fits = optimize_poses([brain], levels[:1], np.concatenate(starts)[None], device)
    if levels[1:]:
        best = np.argsort(-fits[0])[:PURSUED]
        poses, fits = optimize_poses([brain], levels[1:], poses[:, best], device)
    apart: list[Array] = []
    for pose in poses[0, np.argsort(-fits[0])]:
        if all(_distance(pose, other) > SAME_MM for other in apart):
            apart.append(pose)
    return np.stack(apart[:COMPARED])


def _best(poses: Array, fits: Array) -> int:
    """Return which pose (n, 3, 4) is best: the first, unless another plausible one fits better, and
    one beyond the header's orientation ``CONVINCING`` times."""
    gain = np.where(near_header(poses), 1, 1 / CONVINCING) * fits * plausible(poses)
    return int(gain.argmax()) if gain.max() > fits[0] else 0


def _distance(first: Array, second: Array) -> float:
    """Return how far apart, mm, two poses (3, 4) put what lies at the brain's radius."""
    difference = (first - second) * ([BRAIN_RADIUS_MM] * 3 + [1.0])
    return float(np.linalg.norm(difference))


def as_map(pose: Array, centre: Array) -> Matrix:
    """Return the map (4, 4) that a pose (3, 4) of what is centred on ``centre`` stands for."""
    linear, position = pose[:, :3], pose[:, 3]
    affine: Matrix = from_matvec(linear, position - linear @ centre)
    return affine


def _within(bound: Bounds, values: Array) -> Mask:
    low = -math.inf if bound.min is None else bound.min
    high = math.inf if bound.max is None else bound.max
    within: Mask = (values >= low) & (values <= high)
    return within


@dataclass(frozen=True)
class _Comparison:
    """Template and scans at one level, on a device; the starts of a scan follow one another."""

    points: torch.Tensor
    """Of the template, mm from its centre, with a fourth coordinate of 1: (n, 4)."""
    values: torch.Tensor
    """The template's intensity there, (n,)."""
    volumes: torch.Tensor
    """(batch, 1, x, y, z)"""
    to_unit: torch.Tensor
    """From mm of the scan to where grid_sample looks, (batch, 3, 4)."""

    @classmethod
    def at(
        cls, level: Level, brains: Sequence[Image], starts: int, device: torch.device
    ) -> _Comparison:
        coarse = [coarsen(brain, level.spacing) for brain in brains]
        volumes, to_unit = (
            each.repeat_interleave(starts, dim=0) for each in _samplers(coarse, device)
        )
        points = torch.as_tensor(level.points, device=device)
        points = torch.nn.functional.pad(points, (0, 1), value=1.0)
        return cls(points, torch.as_tensor(level.values, device=device), volumes, to_unit)

    def unit(self, pose: torch.Tensor) -> torch.Tensor:
        """Return where grid_sample finds the points in the scans, (batch, n, 3)."""
        return self.points @ (self.to_unit @ _homogeneous(pose)).mT

    def slope(self, pose: torch.Tensor) -> torch.Tensor:
        """Return the derivative of mutual information by the pose, (batch, 3, 4)."""
        unit = self.unit(pose).requires_grad_()
        moving = _look_up(self.volumes, unit)
        by_moving = information_slope(self.values, moving.detach())
        (by_unit,) = torch.autograd.grad(moving, unit, by_moving)
        return self.to_unit[:, :, :3].mT @ (by_unit.mT @ self.points)


def _climb(
    comparison: _Comparison, start: torch.Tensor, spacing: float, *, rigid: bool
) -> torch.Tensor:
    """Return the poses (batch, 3, 4) uphill from ``start``, by Adam (Kingma and Ba, ICLR 2015)
    with a rate that falls along a cosine."""
    moves = _Rigid(start) if rigid else _Affine(start)
    steps, rate = max(FEWEST_STEPS, round(STEPS_PER_MM * spacing)), spacing / 8
    pose, change = start, moves.none()
    mean, square = moves.none(), moves.none()
    for step in range(1, steps + 1):
        uphill = moves.uphill(comparison.slope(pose), pose)
        mean = torch.lerp(uphill, mean, REMEMBERED[0])
        square = torch.lerp(uphill**2, square, REMEMBERED[1])
        first, second = (1 - share**step for share in REMEMBERED)
        falling = 0.05 + 0.475 * (1 + math.cos(math.pi * (step - 1) / steps))
        change = change + rate * falling * (mean / first) / ((square / second).sqrt() + TINY)
        pose = moves.applied(change)
    return pose


class _Affine:
    """How poses (batch, 3, 4) may move away from ``start``, in mm at the brain's surface."""

    def __init__(self, start: torch.Tensor) -> None:
        self.start = start
        self.in_mm = torch.tensor([1 / BRAIN_RADIUS_MM] * 3 + [1.0], device=start.device)

    def none(self) -> torch.Tensor:
        """Return no movement."""
        return torch.zeros_like(self.start)

    def uphill(self, slope: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Return the derivative by the movement, from that by the pose."""
        return self.in_mm * slope

    def applied(self, change: torch.Tensor) -> torch.Tensor:
        """Return the poses that have moved."""
        return self.start + change * self.in_mm


class _Rigid(_Affine):
    """Turns about the three axes and shifts along them: (batch, 6)."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__(start)
        # The derivatives of rotations about x, y and z at no rotation.
        self.turns = torch.tensor(
            [
                [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
                [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
                [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
            ],
            dtype=start.dtype,
            device=start.device,
        )

    def none(self) -> torch.Tensor:
        return self.start.new_zeros(len(self.start), 6)

    def uphill(self, slope: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        turned = self.turns @ pose[:, None, :, :3]
        by_turn = (turned * slope[:, None, :, :3]).sum((2, 3)) / BRAIN_RADIUS_MM
        return torch.cat([by_turn, slope[:, :, 3]], 1)

    def applied(self, change: torch.Tensor) -> torch.Tensor:
        angles = change[:, :3, None, None] / BRAIN_RADIUS_MM
        turn = torch.linalg.matrix_exp((angles * self.turns).sum(1))
        shifted = self.start[:, :, 3:] + change[:, 3:, None]
        return torch.cat([turn @ self.start[:, :, :3], shifted], 2)


def _homogeneous(pose: torch.Tensor) -> torch.Tensor:
    """Add the fourth row to maps (batch, 3, 4), so that they can be chained."""
    last = torch.tensor([0.0, 0, 0, 1], device=pose.device)
    return torch.cat([pose, last.expand(len(pose), 1, 4)], dim=1)


def _look_up(volume: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Return the values (batch, n) of volumes (batch, 1, x, y, z) at ``unit`` (batch, n, 3)."""
    where = unit[:, None, None]
    return torch.nn.functional.grid_sample(volume, where, align_corners=False).flatten(1)


def _samplers(images: Sequence[Image], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return volumes (batch, 1, x, y, z), and the maps (batch, 3, 4) from mm to where grid_sample
    looks.

    Volumes are padded with the 0 that grid_sample sees beyond them anyway.
    """
    size = np.max([image.values.shape for image in images], axis=0)
    volumes = np.zeros((len(images), 1, *size), np.float32)
    # -1..1 from face to face, the last axis of the volume first.
    to_unit = np.stack(
        [
            from_matvec(np.diag(2 / size), 1 / size - 1) @ np.linalg.inv(image.affine)
            for image in images
        ]
    )[:, [2, 1, 0]]
    for volume, image in zip(volumes, images, strict=True):
        volume[0][tuple(map(slice, image.values.shape))] = image.values
    return (
        torch.as_tensor(volumes, device=device),
        torch.as_tensor(to_unit.astype(np.float32), device=device),
    )
