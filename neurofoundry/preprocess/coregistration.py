"""Where the other contrasts of a session lie: rigidly, from the T1w image to each of them.

The T1w image takes the template's place in registration.py, and mutual information compares the
two, whatever their contrasts. Both are of one head: what is left then tells whether they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.preprocess import bias, quality
from neurofoundry.preprocess.brain import Brain, ball
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import CoregistrationParams
from neurofoundry.preprocess.registration import (
    CPU,
    Level,
    as_map,
    entropies,
    joint_histogram,
    optimize_poses,
    tilts,
)
from neurofoundry.preprocess.resample import (
    Array,
    Image,
    Mask,
    Matrix,
    antialias,
    coarsen,
    look_up,
    resample,
)

AROUND_MM = 8.0
"""How far around the brain images are compared: its edge, and what moves with it."""
ROUGH_MM, CLOSE_MM = (16.0, 8.0), 4.0
"""Levels at which starts are followed, from where scanners put an image without the coarsest, and
the one at which they are compared."""
SEEN_MM = 3.0
"""Spacing at which edges are compared, whatever the parameters: gyri show, noise hardly."""
ASIDE = 2
"""Voxels of that spacing by which an image is moved aside: about the width of a gyrus."""
MOST_STARTS = 64
"""Places that a head may have turned to, followed at the coarsest level; the best eighth of them is
at each of the next."""
LIKELY = CoregistrationParams()
TINY = 1e-12

MEASURES = {
    "coverage": "brain within its field of view",
    "edges": "how parallel its edges are to those of the T1w image",
    "peak": "how much more parallel its edges are to those of the T1w image than 6 mm aside",
    "likeness": "correlation with the T1w image",
    "nmi": "normalized mutual information with the T1w image",
    "moved_mm": "how far the brain has moved since the T1w image, mm",
    "turned_deg": "how far it has turned, degrees",
}
"""Columns of volumes/scans.tsv, each with _CONTRAST, and what they hold in words."""
CATCHES = {
    "coverage": "cut off",
    "peak": "not the head of the T1w image",
    "edges": "not the head of the T1w image, or too noisy",
    "likeness": "the contrast of the T1w image",
}
"""What a bound is there to set aside, by its measure."""


@dataclass(frozen=True)
class Coregistration:
    """Where another contrast of a session lies."""

    to_other: Matrix
    """From mm of the T1w image to mm of the other, rigid."""
    measures: dict[str, float]


def coregister(
    brain: Brain, other: Image, finest: float, device: torch.device = CPU
) -> Coregistration:
    """Find where ``other`` shows what the T1w image of ``brain`` does, down to ``finest`` mm."""
    centre = brain.centroid()
    head = brain.uncut()  # with what surrounds the brain, as far as the scan shows it
    levels = [_level(head, brain.inside, centre, spacing) for spacing in (*ROUGH_MM, CLOSE_MM)]
    # Scanners know where both lie. Files that have lost it are at least of a head each.
    there = apply_affine(other.affine, ndimage.center_of_mass(other.values - other.values.min()))
    here = apply_affine(head.affine, ndimage.center_of_mass(head.values))
    shown = scaled(other, None)

    def climb(levels: Sequence[Level], *starts: Array) -> tuple[Array, float]:
        return _climb(shown, levels, np.stack(starts)[None], device)

    tried = [
        climb(levels[1:], _start(np.eye(3), centre)),
        climb(levels, _start(np.eye(3), centre + there - here)),
    ]
    pose, _ = max(tried, key=lambda each: each[1])
    if not _fits(brain, shown, as_map(pose[0, 0], centre)):
        turned = [
            _start(turn, position)
            for turn in tilts()
            for position in (centre, there + turn @ (centre - here))
        ]
        pose, _ = max([*tried, climb(levels[1:], *turned)], key=lambda each: each[1])
    points = apply_affine(head.affine, np.argwhere(brain.inside))
    shown = scaled(other, apply_affine(as_map(pose[0, 0], centre), points))
    if finest < CLOSE_MM:
        fine = _level(head, brain.inside, centre, finest)
        pose, _ = optimize_poses([shown], [levels[-1], fine], pose, device, rigid=True)
    to_other = as_map(pose[0, 0], centre)
    return Coregistration(to_other, measure(brain, shown, to_other))


def _start(turn: Array, position: Array) -> Array:
    return np.column_stack([turn, position])


def _climb(
    shown: Image, levels: Sequence[Level], starts: Array, device: torch.device
) -> tuple[Array, float]:
    """Return the best pose (1, 1, 3, 4) that ``levels`` lead to from ``starts`` (1, n, 3, 4), and
    its mutual information."""
    poses, order = starts, np.arange(starts.shape[1])
    for number, level in enumerate(levels):
        followed = poses[:, order[: MOST_STARTS >> 3 * number]]
        poses, fits = optimize_poses([shown], [level], followed, device, rigid=True)
        order = np.argsort(-fits[0])
    return poses[:, order[:1]], float(fits[0].max())


def _fits(brain: Brain, other: Image, to_other: Matrix) -> bool:
    """Return whether the peak of edges says that both show one head, by the bound that preprocess
    has if nobody changes it: else the head may have turned further than starts reach."""
    try:
        return "peak" not in quality.out_of_bounds(measure(brain, other, to_other), LIKELY)
    except UnusableScanError:
        return False


def measure(brain: Brain, other: Image, to_other: Matrix) -> dict[str, float]:
    """Return every one of ``MEASURES`` of a contrast of the same head that lies at ``to_other``.

    ``edges`` is the mean of cos² of the angle between the gradients of both images, weighted by how
    strong these are: normalized gradient fields (Haber and Modersitzki, MICCAI 2006). Noise and
    thick slices lower it as the head of another person does. ``peak`` is its ratio to the mean of
    what it is where the image is moved aside in six directions, which they lower, too.
    """
    fixed = coarsen(brain.uncut(), SEEN_MM)
    inside = _at(brain.inside, brain.head, fixed)
    shown = resample(
        antialias(other, SEEN_MM),
        fixed.affine,
        fixed.values.shape,
        transform=to_other,
        outside=np.nan,
    ).values
    seen = inside & np.isfinite(shown)
    core = ndimage.binary_erosion(seen)
    if not core.any() or not shown[core].std():
        raise UnusableScanError("it shows nothing of the brain that the T1w image shows")
    joint = joint_histogram(
        torch.from_numpy(fixed.values[seen]), torch.from_numpy(shown[seen])[None]
    )
    first, second, both = (float(entropy) for entropy in entropies(joint))
    edges = _edges(fixed.values, np.nan_to_num(shown), core)
    turned = np.clip((np.trace(to_other[:3, :3]) - 1) / 2, -1, 1)
    centre = brain.centroid()
    measures = {
        "coverage": seen.sum() / inside.sum(),
        "edges": edges,
        "peak": edges / _aside(fixed.values, shown, inside),
        "likeness": np.corrcoef(fixed.values[core], shown[core])[0, 1],
        "nmi": (first + second) / both,
        "moved_mm": np.linalg.norm(apply_affine(to_other, centre) - centre),
        "turned_deg": np.degrees(np.arccos(turned)),
    }
    return quality.rounded(measures)


def judge(measures: Mapping[str, float], params: CoregistrationParams) -> str | None:
    """Return why a contrast is not one of its session's head, in words; None when it is."""
    for name, fault in quality.out_of_bounds(measures, params).items():
        return f"{CATCHES[name]}: {MEASURES[name]} {fault}"
    return None


def shading_of(image: Image, brain: Brain, to_other: Matrix) -> Image:
    """Return the logarithm of the shading of another contrast, within the brain."""
    head = coarsen(image, float(voxel_sizes(brain.head.affine)[0]))
    mask = Image(brain.inside.astype(np.float32), brain.head.affine)
    back = np.linalg.inv(to_other).astype(np.float64)
    inside = resample(mask, head.affine, head.values.shape, transform=back).values
    return bias.estimate(head, inside > 0.5)


def _edges(first: NDArray[np.float32], second: NDArray[np.float32], inside: Mask) -> float:
    a, b = (np.array(np.gradient(each))[:, inside] for each in (first, second))
    a_square, b_square = (a**2).sum(axis=0), (b**2).sum(axis=0)
    # Gradients as weak as the median count half: noise has no direction.
    weak = [np.median(square) for square in (a_square, b_square)]
    parallel = (a * b).sum(axis=0) ** 2 / ((a_square + weak[0]) * (b_square + weak[1]) + TINY)
    return float(parallel.mean())


def _aside(fixed: NDArray[np.float32], shown: NDArray[np.float32], inside: Mask) -> float:
    """Return the mean of `_edges` where ``shown`` is moved by ``ASIDE`` voxels along each axis."""
    found = []
    for way in (*np.eye(3), *-np.eye(3)):
        moved = ndimage.shift(shown, ASIDE * way, order=0, cval=np.nan, prefilter=False)
        core = ndimage.binary_erosion(inside & np.isfinite(moved))
        if core.any():
            found.append(_edges(fixed, np.nan_to_num(moved), core))
    return float(np.mean(found or [np.nan]))


def _at(inside: Mask, head: Image, coarse: Image) -> Mask:
    """Return a mask of the head's voxels at those of the same head, coarser."""
    share = resample(
        antialias(Image(inside.astype(np.float32), head.affine), SEEN_MM),
        coarse.affine,
        coarse.values.shape,
    )
    within: Mask = share.values > 0.5
    return within


def _level(head: Image, inside: Mask, centre: Array, spacing: float) -> Level:
    """Return the T1w image around its brain, as registration sees it at one resolution."""
    edge = float(voxel_sizes(head.affine)[0])
    around = ndimage.binary_dilation(inside, ball(AROUND_MM / edge))
    coarse = coarsen(head, spacing)
    compared = coarsen(Image(around.astype(np.float32), head.affine), spacing).values > 0.5
    return Level.of(coarse, compared, centre, spacing)


def scaled(image: Image, points: Array | None) -> Image:
    """Return an image, 0..1, by what it shows at the ``points`` (n, 3) of a brain, or anywhere."""
    values = image.values
    shown = values if points is None else look_up(image, points)
    low, high = float(np.percentile(values, 2)), float(np.percentile(shown, 99.5))
    scaled = (values - low) / max(high - low, TINY)
    return Image(scaled.clip(0, 1).astype(np.float32), image.affine)
