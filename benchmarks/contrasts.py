"""Whether a FLAIR is brought to its T1w image, and told from that of another person.

    python benchmarks/contrasts.py FOLDER [--contrast FLAIR] [--spacing 2] [--others 12]
        [--changes] [--ants] [--subjects sub-01 …]

FOLDER is BIDS. Every T1w image is paired with its session's own image in the other contrast, with
those of other sessions of the person, and with those of up to ``--others`` other subjects. With
``--changes`` its own is also changed as clinics scan: slices of 5 mm, a head that has turned by 20°
and moved by 15 mm, noise, a fifth and a twentieth of the brain out of view, the T1w image itself.
With ``--ants`` its own is also registered by antspyx (Rigid), which the project does not need.

Printed are, a line a pair, mutual information before and after, edges and their peak, how far the
head has moved, and how far from where the unchanged image, or antspyx, puts it the brain's voxels
are; then what pairs of a kind have in common. About 2 s of CPU a pair, antspyx 20 s.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from real_heads import map_by_ants
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess import template
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.coregistration import coregister, judge, measure, scaled
from neurofoundry.preprocess.load import UnusableScanError, read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import place
from neurofoundry.preprocess.resample import Array, Image, Matrix, resample
from neurofoundry.preprocess.template import Template

THICK_MM, TURNED_DEG, MOVED_MM, NOISE = 5.0, 20.0, 15.0, 0.06
OWN = "its own"


@dataclass(frozen=True)
class Pair:
    """What became of a pair."""

    kind: str
    edges: float
    peak: float
    reason: str | None
    away_mm: float


def main() -> None:
    """Print a line a pair, then what those of a kind have in common."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contrast", default="FLAIR")
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--others", type=int, default=12)
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--ants", action="store_true")
    parser.add_argument("--subjects", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = PreprocessParams(registration_spacing=arguments.spacing)
    prepared = template.build(arguments.spacing)
    others = sorted(arguments.folder.rglob(f"sub-*_{arguments.contrast}.nii.gz"))
    pairs = []
    for path in sorted(arguments.folder.rglob("sub-*_T1w.nii.gz")):
        if not arguments.subjects or _person(path) in arguments.subjects:
            pairs += _pairs_of(path, others, arguments, params, prepared)
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        found = [pair for pair in pairs if pair.kind == kind]
        edges, peaks = ([getattr(pair, name) for pair in found] for name in ("edges", "peak"))
        away = [pair.away_mm for pair in found if np.isfinite(pair.away_mm)]
        print(
            f"{kind}: {sum(pair.reason is None for pair in found)} of {len(found)} kept; edges "
            f"{min(edges):.3f} to {max(edges):.3f}, peak {min(peaks):.2f} to {max(peaks):.2f}"
            + (f"; {np.median(away):.2f} mm away, at most {max(away):.2f}" if away else "")
        )


def _pairs_of(
    path: Path,
    others: list[Path],
    arguments: argparse.Namespace,
    params: PreprocessParams,
    prepared: Template,
) -> list[Pair]:
    """Pair a T1w image with everything that it is to be paired with."""
    t1w = read_scan(path)
    try:
        brain = _brain(t1w, params, prepared)
    except UnusableScanError as unusable:
        print(f"{path.name}: {unusable}")
        return []
    own = [other for other in others if _session(other) == _session(path)]
    again = [o for o in others if _person(o) == _person(path) and o not in own]
    start = next((n for n, other in enumerate(others) if other > path), 0)
    turn = [o for o in (*others[start:], *others[:start]) if _person(o) != _person(path)]
    tried: list[tuple[str, Path]] = [
        *((OWN, other) for other in own),
        *(("another session's", other) for other in again),
        *(("another person's", other) for other in turn[: arguments.others]),
    ]
    pairs = []
    for kind, other in tried:
        image = read_scan(other)
        began = time.process_time()
        to_other, pair = _pair(kind, path.name, other.name, brain, image, params, None)
        seconds = time.process_time() - began
        pairs.append(pair)
        if kind == OWN and arguments.ants:
            began = time.process_time()
            theirs = map_by_ants(t1w, image)
            cost = (time.process_time() - began) / seconds
            away = _away(brain, to_other, theirs)
            fit = measure(brain, scaled(image, None), theirs)
            print(f"  antspyx: {away:.2f} mm away, {cost:.1f} times our CPU, {_words(fit)}")
            pairs.append(
                Pair("antspyx", fit["edges"], fit["peak"], judge(fit, params.coregistration), away)
            )
        if kind == OWN and arguments.changes:
            for name, change in CHANGES.items():
                changed, moved = change(image, brain, to_other)
                true = moved @ to_other
                pairs.append(_pair(name, path.name, name, brain, changed, params, true)[1])
            pairs.append(_pair("T1w itself", path.name, "T1w itself", brain, t1w, params, None)[1])
    return pairs


def _pair(
    kind: str,
    first: str,
    second: str,
    brain: Brain,
    image: Image,
    params: PreprocessParams,
    true: Matrix | None,
) -> tuple[Matrix, Pair]:
    """Bring an image to a T1w image and print what is found."""
    found = coregister(brain, image, params.registration_spacing)
    try:
        before = f"{measure(brain, scaled(image, None), np.eye(4))['nmi']:.3f}"
    except UnusableScanError:
        before = "none"
    reason = judge(found.measures, params.coregistration)
    away = np.nan if true is None else _away(brain, found.to_other, true)
    print(
        f"{first:28} {second:30} nmi {before} -> {_words(found.measures)} "
        + ("" if true is None else f"{away:.2f} mm away ")
        + (reason or "kept"),
        flush=True,
    )
    return found.to_other, Pair(kind, found.measures["edges"], found.measures["peak"], reason, away)


def _words(measures: dict[str, float]) -> str:
    return (
        f"{measures['nmi']:.3f} edges {measures['edges']:.3f} peak {measures['peak']:.2f} "
        f"{measures['moved_mm']:.1f} mm {measures['turned_deg']:.1f} deg "
        f"likeness {measures['likeness']:.2f}"
    )


def _away(brain: Brain, one: Matrix, other: Matrix) -> float:
    """Return the mean distance, mm, between where two maps put the brain's voxels."""
    points = apply_affine(brain.head.affine, np.argwhere(brain.inside)[::20])
    apart = apply_affine(one, points) - apply_affine(other, points)
    return float(np.linalg.norm(apart, axis=1).mean())


def _person(path: Path) -> str:
    return path.name.partition("_")[0]


def _session(path: Path) -> str:
    return path.name.rpartition("_")[0]


def _brain(image: Image, params: PreprocessParams, prepared: Template) -> Brain:
    found = find_brain(image, params)
    ((_, settled),) = place([found], [found.intensities()], params, prepared)
    return settled


Change = Callable[[Image, Brain, Matrix], tuple[Image, Matrix]]
"""Of an image and where the brain of its T1w image lies in it, to another image, and the map from
mm of the one to mm of the other."""


def _thick(image: Image, brain: Brain, to_other: Matrix) -> tuple[Image, Matrix]:
    """Average slices of ``THICK_MM``, as of a 2D sequence."""
    edge = float(np.linalg.norm(image.affine[:3, 2]))
    count = max(1, round(THICK_MM / edge))
    averaged = ndimage.uniform_filter1d(image.values, count, axis=2)
    affine = image.affine @ np.diag([1, 1, count, 1])
    shape = (*image.values.shape[:2], image.values.shape[2] // count)
    return resample(Image(averaged, image.affine), affine, shape), np.eye(4)


def _turned(image: Image, brain: Brain, to_other: Matrix) -> tuple[Image, Matrix]:
    """Turn the head about an oblique axis through its brain, and move it."""
    centre = apply_affine(to_other, brain.centroid())
    axis = np.array([2.0, -1.0, 2.0]) / 3
    turn = Rotation.from_rotvec(np.radians(TURNED_DEG) * axis).as_matrix()
    moved = from_matvec(turn, centre - turn @ centre + MOVED_MM * axis[::-1])
    return Image(image.values, moved @ image.affine), moved


def _noisy(image: Image, brain: Brain, to_other: Matrix) -> tuple[Image, Matrix]:
    top = float(np.percentile(image.values, 99.5))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE * top, (2, *image.values.shape)).astype(np.float32)
    return Image(np.hypot(image.values + noise[0], noise[1]), image.affine), np.eye(4)


def _cut(share: float) -> Change:
    """Leave a share of the brain out of view, below."""

    def change(image: Image, brain: Brain, to_other: Matrix) -> tuple[Image, Matrix]:
        points = apply_affine(brain.head.affine, np.argwhere(brain.inside))
        voxels: Array = apply_affine(np.linalg.inv(image.affine) @ to_other, points)[:, 2]
        first = max(0, round(float(np.quantile(voxels, share))))
        affine = image.affine.copy()
        affine[:3, 3] += first * image.affine[:3, 2]
        return Image(image.values[:, :, first:], affine), np.eye(4)

    return change


CHANGES: dict[str, Change] = {
    f"slices of {THICK_MM:g} mm": _thick,
    f"turned by {TURNED_DEG:g}°": _turned,
    "noisy": _noisy,
    "a fifth out of view": _cut(0.2),
    "a twentieth out of view": _cut(0.05),
}


if __name__ == "__main__":
    main()
