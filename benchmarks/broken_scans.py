"""What becomes of good scans and of copies of them that were broken on purpose.

    python benchmarks/broken_scans.py --phantoms 4 --out broken.json [HEAD.nii.gz …]

A good scan is **kept** or **lost**. A broken copy is **caught** (not usable), **repaired** (usable,
and every point of the brain on average within ``REPAIRED_MM`` of where the unbroken scan puts it),
or **missed**. Copies that show the same brain as well as before (already skull-stripped, with a
lesion, with a header that moved it) have nothing to catch: repaired is what they must be, and
caught counts as lost. A left-right flip is listed apart: no symmetric template can see it.
Expected: every good scan kept, 98 % of the broken caught or repaired. About 1 s a copy at 3 mm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.volumes import Grid
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess import template
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.resample import Image, Matrix
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.surface import fill
from neurofoundry.preprocess.transform import read_affine
from neurofoundry.runtime.files import hash_file

REPAIRED_MM = 3.0
"""The working resolution; good scans and their repaired copies are closer than half of it."""
PARAMS = PreprocessParams(grid=Grid(spacing=3.0), registration_spacing=4.0)
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


def breakages(scan: Image, seed: int) -> dict[str, Broken]:
    """Every way to break ``scan``, whose axes are nearest to RAS+, by name."""
    rng = np.random.default_rng(seed)
    values, affine = scan.values, scan.affine
    middle = apply_affine(affine, (np.array(values.shape) - 1) / 2)
    top = float(np.percentile(values, 99.5))

    def relabelled(header: Matrix) -> Broken:
        moved = header @ np.linalg.inv(affine)
        # A header that mirrors or stretches shows another brain, wherever it is put.
        return Broken(Image(values, header), moved if _is_rigid(moved) else None)

    def turned(axis: str, degrees: float) -> Broken:
        turn = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        return relabelled(from_matvec(turn, middle - turn @ middle) @ affine)

    def permuted(order: tuple[int, int, int], signs: tuple[int, int, int]) -> Broken:
        """The array's axes in another order, under the old header's directions."""
        stored = np.transpose(values, order)[tuple(slice(None, None, s) for s in signs)]
        voxel = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
        linear = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * voxel
        header = from_matvec(linear, middle - linear @ ((np.array(stored.shape) - 1) / 2))
        # Voxel of the copy to voxel of the scan, and so where a point of the brain has gone.
        back = np.zeros((4, 4))
        back[3, 3] = 1
        for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
            back[source, axis] = sign
            back[source, 3] = 0 if sign > 0 else stored.shape[axis] - 1
        moved = header @ np.linalg.inv(affine @ back)
        return Broken(
            Image(np.ascontiguousarray(stored), header), moved if _is_rigid(moved) else None
        )

    stretched = affine.copy()
    stretched[:3, :3] *= 1.4
    long = affine.copy()
    long[:3, 2] *= 1.4
    shape = np.array(values.shape)

    surface = find_brain(scan, PARAMS).surface
    reach = apply_affine(np.linalg.inv(affine), surface)

    def cut(axis: int, *, below: float = 0.0, above: float = 1.0) -> Broken:
        """Without what lies beyond these shares of the brain's extent along an axis."""
        low, extent = reach[:, axis].min(), np.ptp(reach[:, axis])
        region: list[slice] = [slice(None)] * 3
        first = max(0, round(low + below * extent)) if below else 0
        region[axis] = slice(first, round(low + above * extent) if above < 1 else None)
        moved = affine.copy()
        moved[:3, 3] = apply_affine(affine, [part.start or 0 for part in region])
        return Broken(Image(np.ascontiguousarray(values[tuple(region)]), moved))

    ghosts = sum(
        weight * np.roll(values, round(share * shape[1]), axis=1)
        for weight, share in ((0.45, 0.12), (0.35, 0.27), (0.3, 0.5))
    )
    halfway = np.roll(values, shape[1] // 2, axis=1)
    spectrum = np.fft.fftn(values)

    def moving(share: float, mm: float) -> Image:
        """Moved to the side by ``mm`` (one deviation) while a share of the lines was read."""
        lines = rng.random(shape[1]) < share
        voxels = rng.normal(0, mm / np.linalg.norm(affine[:3, 0]), shape[1]) * lines
        phase = np.exp(2j * np.pi * np.fft.fftfreq(shape[0])[:, None] * voxels[None])
        return Image(np.abs(np.fft.ifftn(spectrum * phase[..., None])).astype(np.float32), affine)

    # Already skull-stripped, and a lesion of 20 mm radius within the brain.
    inside = fill(surface, affine, values.shape)
    centre = surface.mean(axis=0) + np.array([30.0, -15, 15])
    away = np.linalg.norm(
        apply_affine(affine, np.moveaxis(np.indices(values.shape), 0, -1)) - centre, axis=-1
    )
    lesion = np.where(away < 20, np.float32(0.25 * top), values).astype(np.float32)
    nearby = ndimage.distance_transform_edt(~inside, np.linalg.norm(affine[:3, :3], axis=0)) < 25

    def blackened(image: Image) -> Image:
        """As programs do that remove faces and background."""
        return Image(np.where(nearby, image.values, 0).astype(np.float32), affine)

    noise = rng.normal(0, 0.5 * top, (2, *values.shape)).astype(np.float32)

    copies = {
        "axes SAR": permuted((2, 1, 0), (1, 1, 1)),
        "axes RSA": permuted((0, 2, 1), (1, 1, 1)),
        "axes ARS": permuted((1, 0, 2), (1, 1, 1)),
        "axes ASR": permuted((1, 2, 0), (1, 1, 1)),
        "code: up is down": permuted((0, 1, 2), (1, 1, -1)),
        "code: front is back": permuted((0, 1, 2), (1, -1, 1)),
        FLIPPED: permuted((0, 1, 2), (-1, 1, 1)),
        "code: both left and front": permuted((0, 1, 2), (-1, -1, 1)),
        "turned 90° about x": turned("x", 90),
        "turned 90° about y": turned("y", -90),
        "turned 90° about z": turned("z", 90),
        "turned 180° about x": turned("x", 180),
        "turned 180° about y": turned("y", 180),
        "turned 180° about z": turned("z", 180),
        "turned 30° about x": turned("x", 30),
        "identity affine": relabelled(np.eye(4)),
        "voxels × 1.4": relabelled(stretched),
        "slices × 1.4": relabelled(long),
        "heavy noise": Broken(
            Image(np.hypot(values + noise[0], noise[1]).astype(np.float32), affine)
        ),
        "inverted, as in T2w": Broken(
            Image(np.where(values > 0.08 * top, np.maximum(1.1 * top - values, 0), values), affine)
        ),
        "cut at the top": cut(2, above=0.7),
        "cut at the bottom": cut(2, below=0.35),
        "cut in front": cut(1, above=0.75),
        "half a head": cut(0, below=0.5),
        "three ghosts": Broken(Image((0.4 * values + ghosts).astype(np.float32), affine)),
        "ghost of 0.15": Broken(Image((0.85 * values + 0.15 * halfway).astype(np.float32), affine)),
        "motion, 35 % of lines": Broken(moving(0.35, 8)),
        "motion, 15 % of lines": Broken(moving(0.15, 8)),
        BLACKENED: Broken(blackened(moving(0.35, 8))),
        "lesion of 33 ml": Broken(Image(lesion, affine), np.eye(4), harmless=True),
    }
    offset = affine.copy()
    offset[:3, 3] += [60, -45, 80]
    moved = from_matvec(np.eye(3), [60, -45, 80])
    copies["header moved by 110 mm"] = Broken(Image(values, offset), moved, harmless=True)
    stripped = np.where(inside, values, 0).astype(np.float32)
    copies["already skull-stripped"] = Broken(Image(stripped, affine), np.eye(4), harmless=True)
    return copies


def main() -> None:
    """Break every scan, print a row a kind and the shares, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--seed", type=int, default=SEED, help="of the phantoms")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepared = template.build(PARAMS.registration_spacing)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    rows: list[dict[str, Any]] = []

    def note(kind: str, scan: str, outcome: str, detail: str, found: Found) -> None:
        outcomes[kind][outcome] += 1
        rows.append(
            {
                "kind": kind,
                "scan": scan,
                "outcome": outcome,
                "detail": detail,
                "measures": found.measures,
            }
        )

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, path in enumerate(
            [*arguments.heads, *_phantoms(work, arguments.phantoms, arguments.seed)]
        ):
            scan = read_scan(path)
            if "FLAIR" in path.name:
                found = process(scan, work, prepared)
                note(
                    "FLAIR", path.name, "caught" if found.reason else "missed", found.reason, found
                )
                continue
            good = process(scan, work, prepared)
            note("good", path.name, "lost" if good.reason else "kept", good.reason, good)
            if good.to_scan is None:
                continue
            for kind, copy in breakages(scan, arguments.seed + number).items():
                found = process(copy.image, work, prepared)
                outcome, detail = judge_copy(copy, good.to_scan, found, prepared)
                note(kind, path.name, outcome, detail, found)
    report(outcomes)
    arguments.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


@dataclass(frozen=True)
class Found:
    """What became of an image."""

    reason: str
    """Why it is not usable; empty if it is."""
    to_scan: Matrix | None = None
    """From MNI mm to the scan's."""
    measures: dict[str, float] = field(default_factory=dict)


def process(image: Image, work: Path, prepared: template.Template) -> Found:
    """Preprocess an image, and judge it."""
    path = work / "broken.nii"
    nib.save(nib.Nifti1Image(image.values, image.affine), path)
    job = Job(path, "copy", hash_file(path), key="")
    result = preprocess_scans([job], out=work, params=PARAMS, template=prepared)[0]
    if result.reason:
        return Found(result.reason)
    return Found(
        judge(result.measures, PARAMS.quality) or "",
        read_affine(work / "copy_to-mni.txt"),
        result.measures,
    )


def judge_copy(
    copy: Broken, right: Matrix, found: Found, prepared: template.Template
) -> tuple[str, str]:
    """Outcome and detail of a broken copy."""
    if found.reason or found.to_scan is None:
        return ("lost" if copy.harmless else "caught"), found.reason
    if copy.moved is None:
        return "missed", ""
    spread = np.random.default_rng(0).normal(size=(300, 3)) * [28, 35, 28]
    points = prepared.centre + spread
    apart = apply_affine(found.to_scan, points) - apply_affine(copy.moved @ right, points)
    distance = float(np.linalg.norm(apart, axis=1).mean())
    return ("repaired" if distance < REPAIRED_MM else "missed"), f"{distance:.2f} mm"


def report(outcomes: dict[str, Counter[str]]) -> None:
    """Print the table, kinds in rows, and the two shares that count."""
    names = ("kept", "lost", "caught", "repaired", "missed")
    print(f"{'':28}" + "".join(f"{name:>10}" for name in names))
    for kind, counts in outcomes.items():
        print(f"{kind:28}" + "".join(f"{counts[name] or '':>10}" for name in names))
    good = outcomes["good"]
    broken: Counter[str] = Counter()
    for kind, counts in outcomes.items():
        if kind not in ("good", FLIPPED):
            broken += counts
    right = broken["caught"] + broken["repaired"]
    print(f"good scans kept: {good['kept']} of {good.total()}")
    print(f"broken copies caught or repaired: {right} of {broken.total()}")


def _is_rigid(moved: Matrix) -> bool:
    return bool(np.allclose(moved[:3, :3] @ moved[:3, :3].T, np.eye(3), atol=1e-3)) and bool(
        np.linalg.det(moved[:3, :3]) > 0
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
