"""What becomes of good scans and of copies of them that were broken on purpose.

    python benchmarks/broken_scans.py --phantoms 4 --copies 14 --out broken.json [HEAD.nii.gz …]

A good scan is **kept** or **lost**, at 1, 2 and 3 mm, without N4 and with it. A broken copy is
**caught** (not usable), **repaired** (usable, and the brain's points on average within
``REPAIRED_MM`` of where the unbroken scan puts them), or **missed**. Copies that show the same
brain as well as before (already skull-stripped, with a lesion, with a header that moved it, with
another zero) have nothing to catch: they must be repaired, and caught counts as lost. A left-right
flip is listed apart: no symmetric template can see it. Files with FLAIR, T2w or PD in their name
must be caught.
Expected: 95 % of the good scans kept, 98 % of the broken caught or repaired; shares have Wilson's
95 % interval. Bounds were chosen with other seeds: give a new one. A scan costs about 20 s of CPU,
a copy 3 s, or 12 s where the search for its brain goes on: with ``--copies`` each scan is broken in
that many ways, which take turns, as more heads say more than more copies of one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.stats import binomtest

from neurofoundry.contracts.volumes import Grid
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess import template
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import Placement, brain_mask, place
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.transform import read_affine
from neurofoundry.runtime.files import hash_file

REPAIRED_MM = 3.0
"""The working resolution; good scans and their repaired copies are closer than half of it."""
PARAMS = PreprocessParams(grid=Grid(spacing=3.0))
"""Of the broken copies, and of the scans that they are compared with."""
SETTINGS: dict[str, PreprocessParams] = {
    f"good, {spacing:g} mm{', N4' if bias == 'n4' else ''}": PreprocessParams(
        grid=Grid(spacing=spacing), bias_correction=bias
    )
    for spacing in (1.0, 2.0, 3.0)
    for bias in ("none", "n4")
}
"""Under which good scans must be kept."""
LIKE_COPIES = "good, 3 mm"
OTHER_CONTRASTS = ("FLAIR", "T2w", "PD")
SEED = 31
FLIPPED = "code: left is right"
BLACKENED = "motion, 35 %, air blackened"


@dataclass(frozen=True)
class Broken:
    """A copy of a scan."""

    image: Image
    moved: Matrix | None = None
    """From mm of the scan to mm of the copy, where the brain is still whole; None where no right
    result exists."""
    harmless: bool = False
    """As good as the scan: it has to be usable."""


@dataclass(frozen=True)
class Outcome:
    """What became of an image."""

    reason: str
    """Why it is not usable; empty if it is."""
    to_scan: Matrix | None = None
    """From mm of MNI space to mm of the scan."""
    measures: dict[str, float] = field(default_factory=dict)


def broken_copies(scan: Image, seed: int) -> dict[str, Broken]:
    """Break ``scan``, whose axes are nearest to RAS+, in every way; copies by the kind of fault."""
    found = find_brain(scan, PARAMS)
    surface = found.surface
    ((_, brain),) = place(
        [found], [found.intensities()], PARAMS, prepared(PARAMS.registration_spacing)
    )
    here = Placement(np.eye(4), np.eye(4))
    # As drawn with the template, since what programs strip is closer to the brain than a surface.
    inside = brain_mask(brain, scan.affine, scan.values.shape, here)
    return {
        **swapped_axes(scan),
        **wrong_headers(scan),
        **artefacts(scan, inside, np.random.default_rng(seed)),
        **cropped(scan, surface),
        **harmless(scan, surface, inside, np.random.default_rng(seed + 1000)),
    }


def swapped_axes(scan: Image) -> dict[str, Broken]:
    """Store the array's axes in another order or direction, under the old header's directions."""
    affine = scan.affine
    orders: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
        "axes SAR": ((2, 1, 0), (1, 1, 1)),
        "axes RSA": ((0, 2, 1), (1, 1, 1)),
        "axes ARS": ((1, 0, 2), (1, 1, 1)),
        "axes ASR": ((1, 2, 0), (1, 1, 1)),
        "code: up is down": ((0, 1, 2), (1, 1, -1)),
        "code: front is back": ((0, 1, 2), (1, -1, 1)),
        FLIPPED: ((0, 1, 2), (-1, 1, 1)),
        "code: both left and front": ((0, 1, 2), (-1, -1, 1)),
    }
    copies = {}
    for kind, (order, signs) in orders.items():
        flips = tuple(slice(None, None, sign) for sign in signs)
        stored = np.transpose(scan.values, order)[flips]
        voxel = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
        linear = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * voxel
        first = middle(scan) - linear @ ((np.array(stored.shape) - 1) / 2)
        # Voxel of the copy to voxel of the scan, and so where a point of the brain has gone.
        back = np.zeros((4, 4))
        back[3, 3] = 1
        for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
            back[source, axis] = sign
            back[source, 3] = 0 if sign > 0 else stored.shape[axis] - 1
        image = Image(np.ascontiguousarray(stored), from_matvec(linear, first))
        copies[kind] = Broken(image, rigid_or_none(image.affine @ np.linalg.inv(affine @ back)))
    return copies


def wrong_headers(scan: Image) -> dict[str, Broken]:
    """Keep the array, and turn or stretch what the header says of it."""
    affine, centre = scan.affine, middle(scan)
    headers: dict[str, Matrix] = {}
    for axis, degrees in (
        *(("x", 90), ("y", -90), ("z", 90)),
        *(("x", 180), ("y", 180), ("z", 180)),
        *(("x", 30), ("y", -30), ("z", 30)),
    ):
        turn = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        kind = f"turned {abs(degrees)}° about {axis}"
        headers[kind] = from_matvec(turn, centre - turn @ centre) @ affine
    headers["identity affine"] = np.eye(4)
    headers["voxels × 1.4"] = affine @ np.diag([1.4, 1.4, 1.4, 1])
    headers["slices × 1.4"] = affine @ np.diag([1, 1, 1.4, 1])
    return {
        # A header that mirrors or stretches shows another brain, wherever it is put.
        kind: Broken(Image(scan.values, header), rigid_or_none(header @ np.linalg.inv(affine)))
        for kind, header in headers.items()
    }


def artefacts(scan: Image, inside: Mask, rng: np.random.Generator) -> dict[str, Broken]:
    """Add noise, ghosts and motion, and invert the contrast; ``inside`` is the brain."""
    values, affine, shape = scan.values, scan.affine, scan.values.shape
    top = float(np.percentile(values, 99.5))
    noise = rng.normal(0, 0.5 * top, (2, *shape)).astype(np.float32)
    ghosts = sum(
        weight * np.roll(values, round(share * shape[1]), axis=1)
        for weight, share in ((0.45, 0.12), (0.35, 0.27), (0.3, 0.5))
    )
    halfway = np.roll(values, shape[1] // 2, axis=1)
    spectrum = np.fft.fftn(values)

    def moving(share: float, mm: float) -> NDArray[np.floating]:
        """Moved to the side by ``mm`` (one deviation) while a share of the lines was read."""
        lines = rng.random(shape[1]) < share
        voxels = rng.normal(0, mm / np.linalg.norm(affine[:3, 0]), shape[1]) * lines
        phase = np.exp(2j * np.pi * np.fft.fftfreq(shape[0])[:, None] * voxels[None])
        return np.abs(np.fft.ifftn(spectrum * phase[..., None]))

    # As programs do that remove faces and background.
    near = ndimage.distance_transform_edt(~inside, np.linalg.norm(affine[:3, :3], axis=0)) < 25
    spike = spectrum.copy()
    at = tuple(int(rng.integers(size // 16, size // 8)) for size in shape)
    spike[at] += 0.15 * np.abs(spectrum).max()
    broken = {
        "motion, 35 %, zero moved": moving(0.35, 8) + rng.uniform(300, 4095),
        "spike in k-space": np.abs(np.fft.ifftn(spike)),
        "heavy noise": np.hypot(values + noise[0], noise[1]),
        "inverted, as in T2w": np.where(
            values > 0.08 * top, np.maximum(1.1 * top - values, 0), values
        ),
        "three ghosts": 0.4 * values + ghosts,
        "ghost of 0.15": 0.85 * values + 0.15 * halfway,
        "motion, 35 % of lines": moving(0.35, 8),
        "motion, 15 % of lines": moving(0.15, 8),
        BLACKENED: np.where(near, moving(0.35, 8), 0),
    }
    return {kind: Broken(Image(v.astype(np.float32), affine)) for kind, v in broken.items()}


def cropped(scan: Image, surface: Array) -> dict[str, Broken]:
    """Cut away what lies beyond some share of the brain's extent along an axis."""
    voxels = apply_affine(np.linalg.inv(scan.affine), surface)
    copies = {}
    for kind, axis, below, above in (
        ("cut at the top", 2, 0.0, 0.7),
        ("cut at the bottom", 2, 0.35, 1.0),
        ("cut in front", 1, 0.0, 0.75),
        ("half a head", 0, 0.5, 1.0),
    ):
        low, extent = voxels[:, axis].min(), np.ptp(voxels[:, axis])
        region: list[slice] = [slice(None)] * 3
        first = max(0, round(low + below * extent)) if below else 0
        region[axis] = slice(first, round(low + above * extent) if above < 1 else None)
        moved = scan.affine.copy()
        moved[:3, 3] = apply_affine(scan.affine, [part.start or 0 for part in region])
        copies[kind] = Broken(Image(np.ascontiguousarray(scan.values[tuple(region)]), moved))
    return copies


def harmless(
    scan: Image, surface: Array, inside: Mask, rng: np.random.Generator
) -> dict[str, Broken]:
    """Change what leaves the brain as good as before: a lesion, the header's origin, the skull,
    the zero of intensities."""
    values, affine = scan.values, scan.affine
    top = float(np.percentile(values, 99.5))
    centre = surface.mean(axis=0) + np.array([30.0, -15, 15])
    points = apply_affine(affine, np.moveaxis(np.indices(values.shape), 0, -1))
    lesion = np.linalg.norm(points - centre, axis=-1) < 20
    with_lesion = np.where(lesion, np.float32(0.25 * top), values).astype(np.float32)
    moved = from_matvec(np.eye(3), [60, -45, 80])
    stripped = np.where(inside, values, 0).astype(np.float32)
    zero = values + np.float32(rng.choice([-1024, rng.uniform(300, 4095)]))
    return {
        "zero moved": Broken(Image(zero, affine), np.eye(4), harmless=True),
        "lesion of 33 ml": Broken(Image(with_lesion, affine), np.eye(4), harmless=True),
        "header moved by 110 mm": Broken(Image(values, moved @ affine), moved, harmless=True),
        "already skull-stripped": Broken(Image(stripped, affine), np.eye(4), harmless=True),
    }


def middle(scan: Image) -> Array:
    """Return the middle of the field of view, mm."""
    centre: Array = apply_affine(scan.affine, (np.array(scan.values.shape) - 1) / 2)
    return centre


def rigid_or_none(moved: Matrix) -> Matrix | None:
    """Return a map that keeps shape, size and handedness; None for any other."""
    orthogonal = np.allclose(moved[:3, :3] @ moved[:3, :3].T, np.eye(3), atol=1e-3)
    return moved if orthogonal and np.linalg.det(moved[:3, :3]) > 0 else None


def main() -> None:
    """Break every scan, print a row a kind and the shares, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--seed", type=int, default=SEED, help="of phantoms, copies and turns")
    parser.add_argument("--copies", type=int, help="of each scan; one of every kind without it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        phantoms = _phantoms(work, arguments.phantoms, arguments.seed)
        for number, path in enumerate([*arguments.heads, *phantoms]):
            rows += _rows(path, arguments, number, work)
            arguments.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    report(rows)


@cache
def prepared(spacing: float) -> Template:
    """Return the template for a registration at ``spacing`` mm."""
    return template.build(spacing)


def _rows(
    path: Path, arguments: argparse.Namespace, number: int, work: Path
) -> list[dict[str, Any]]:
    """Return a row for a scan and for each broken copy of it, of those whose turn it is."""

    def row(kind: str, verdict: str, detail: str, outcome: Outcome) -> dict[str, Any]:
        named = {"kind": kind, "scan": path.name, "outcome": verdict, "detail": detail}
        return named | {"measures": outcome.measures}

    scan = read_scan(path)
    for contrast in OTHER_CONTRASTS:
        if contrast in path.name:
            other = process(scan, work)
            return [row(contrast, "caught" if other.reason else "missed", other.reason, other)]
    whole = {kind: process(scan, work, params) for kind, params in SETTINGS.items()}
    rows = [
        row(kind, "lost" if outcome.reason else "kept", outcome.reason, outcome)
        for kind, outcome in whole.items()
    ]
    good = whole[LIKE_COPIES]
    if good.to_scan is not None:
        broken = broken_copies(scan, arguments.seed + number)
        for kind in whose_turn(list(broken), number, arguments):
            copy = broken[kind]
            outcome = process(copy.image, work)
            verdict, detail = judge_copy(copy, good.to_scan, outcome)
            rows.append(row(kind, verdict, detail, outcome))
    return rows


def whose_turn(kinds: list[str], number: int, arguments: argparse.Namespace) -> list[str]:
    """Return the kinds in which scan ``number`` is broken: every kind comes equally often."""
    count = arguments.copies or len(kinds)
    order = np.random.default_rng(arguments.seed).permutation(kinds).tolist()
    return [order[turn % len(kinds)] for turn in range(number * count, (number + 1) * count)]


def process(image: Image, work: Path, params: PreprocessParams = PARAMS) -> Outcome:
    """Preprocess an image, and judge it."""
    path = work / "broken.nii"
    nib.save(nib.Nifti1Image(image.values, image.affine), path)
    job = Job(path, "copy", hash_file(path), key="")
    made = preprocess_scans(
        [job], out=work, params=params, template=prepared(params.registration_spacing)
    )
    result = made[0]
    if result.reason:
        return Outcome(result.reason)
    to_scan = read_affine(work / Layout.of(params).transform.format("copy"))
    return Outcome(judge(result.measures, params.quality) or "", to_scan, result.measures)


def judge_copy(copy: Broken, right: Matrix, outcome: Outcome) -> tuple[str, str]:
    """Return what became of a broken copy, and the reason or distance that shows it.

    ``right`` maps mm of MNI space to mm of the unbroken scan.
    """
    if outcome.reason or outcome.to_scan is None:
        return ("lost" if copy.harmless else "caught"), outcome.reason
    if copy.moved is None:
        return "missed", ""
    spread = np.random.default_rng(0).normal(size=(300, 3)) * [28, 35, 28]
    points = prepared(PARAMS.registration_spacing).centre + spread
    apart = apply_affine(outcome.to_scan, points) - apply_affine(copy.moved @ right, points)
    distance = float(np.linalg.norm(apart, axis=1).mean())
    return ("repaired" if distance < REPAIRED_MM else "missed"), f"{distance:.2f} mm"


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table, kinds in rows, and the two shares that count."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        outcomes[row["kind"]][row["outcome"]] += 1
    names = ("kept", "lost", "caught", "repaired", "missed")
    print(f"{'':28}" + "".join(f"{name:>10}" for name in names))
    for kind, counts in outcomes.items():
        print(f"{kind:28}" + "".join(f"{counts[name] or '':>10}" for name in names))
    good: Counter[str] = sum((outcomes[kind] for kind in SETTINGS), Counter())
    broken: Counter[str] = Counter()
    for kind, counts in outcomes.items():
        if kind not in (*SETTINGS, FLIPPED):
            broken += counts
    print(f"good scans kept: {share(good['kept'], good.total())}")
    right = broken["caught"] + broken["repaired"]
    print(f"broken copies caught or repaired: {share(right, broken.total())}")


def share(count: int, total: int) -> str:
    """Return a share with Wilson's 95 % interval, in words."""
    if not total:
        return "none"
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return (
        f"{count} of {total}, {count / total:.1%} ({interval.low:.1%} to {interval.high:.1%}, "
        "as if they were independent)"
    )


def _phantoms(work: Path, count: int, seed: int) -> list[Path]:
    atlas = build_atlas(2)
    paths = []
    for index in range(count):
        subject = sample_subject(PhantomParams(seed=seed), index)
        scan = head(subject, subject.sessions[0][0], SITES[subject.site], atlas)
        paths.append(work / f"phantom-{seed}-{index}.nii.gz")
        nib.save(nib.Nifti1Image(scan.image.astype(np.int16), scan.affine), paths[-1])
    return paths


if __name__ == "__main__":
    main()
