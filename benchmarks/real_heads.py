"""Preprocessing of real heads, measured by anatomical labels that others have drawn.

    python benchmarks/real_heads.py FOLDER --tilts 1 --ants --syn --out real_heads.json
    python benchmarks/real_heads.py FOLDER --spacing 3 --clinics 2 --seed 123 --out clinics.json

FOLDER is a BIDS dataset with T1w scans and, in derivatives/dlmuse, labels of the DLMUSE network on
the grids of the scans: above 1 is brain, closed by 4 mm and filled. Heads without labels are kept
or not, no more. Every head is preprocessed as it is; ``--tilts`` times as if it had lain in the
scanner tilted by up to 30° about each axis, as ``--seed`` says, resampled by splines onto voxels
that are parallel to the scanner; and ``--clinics`` times tilted and changed as another clinic might
have scanned it (clinic.py). One table:

- kept: usable scans; dice: of the brain mask with the labels' brain, in the volume;
- edge: signed distance, mm, of the mask's edge from the edge of the labels' brain, negative where
  brain is cut away: its 5th percentile and its median in a head;
- cortex: share of the labels of cortex that lies outside the mask;
- pose: mean distance, mm, between where a tilted head's brain and the upright one's are put;
- labels of all pairs of heads in MNI space, after our rigid registration and, with ``--ants``,
  after that of antspyx (``Rigid``, of the labels' brain to the same template, a better mask than it
  would have): mean Dice, and mm by which the deep nuclei scatter about their mean place;
- CPU seconds on one thread and peak memory; with ``--syn`` the range of the Jacobians of the warps,
  there and back, as they are stored.

Expected: a mean Dice of 0.96 with 0.93 at worst, labels no worse than theirs at a tenth of the CPU,
and no Jacobian of 0 or less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

import nibabel as nib
import numpy as np
import torch
from heads_study.clinic import Head, draw_turn, rescanned
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import binomtest

from neurofoundry.contracts.volumes import Grid
from neurofoundry.preprocess import template
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, look_up, resample
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.surface import fill
from neurofoundry.preprocess.transform import RAS_TO_LPS, read_affine, read_warp
from neurofoundry.preprocess.warp import Warp
from neurofoundry.runtime.files import hash_file

CLOSED_MM = 4.0
CORTEX = 100
"""The labels from here on are those of the cortex."""
LABELS = {
    "deep nuclei": (23, 30, 36, 37, 55, 56, 57, 58, 59, 60),
    "ventricles": (4, 11, 49, 50, 51, 52),
    "cerebellum": (38, 39, 40, 41, 71, 72, 73),
}
"""MUSE's numbers: accumbens, caudate, pallidum, putamen, thalamus; third, fourth, inferior lateral
and lateral ventricles; cerebellum and vermis."""
STORED = ("jacobian_min", "jacobian_max", "inverse_min", "inverse_max")
PLACED = ("labels", "their_labels")
"""What is too large for the file."""
COMPARED = template.COMPARISON_MM / 2


def main() -> None:
    """Preprocess every head, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="*", help="such as sub-01; all without it")
    parser.add_argument("--tilts", type=int, default=0)
    parser.add_argument("--clinics", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--n4", action="store_true")
    parser.add_argument("--ants", action="store_true")
    parser.add_argument("--syn", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    table: dict[str, str] = {}
    for head in read_heads(arguments):
        rows += measure(head, arguments)
        table = summarize(rows, arguments)
        written = [{n: v for n, v in row.items() if n not in PLACED} for row in rows]
        # With every head, as antspyx takes a minute of CPU for each.
        arguments.out.write_text(json.dumps({"table": table, "rows": written}, indent=1))
    for name, value in table.items():
        print(f"{name:34}{value}")


def read_heads(arguments: argparse.Namespace) -> list[Head]:
    """Read the scans, and their labels where there are some."""
    heads = []
    for path in sorted(arguments.folder.glob("sub-*/**/anat/*_T1w.nii.gz")):
        name = path.name.removesuffix("_T1w.nii.gz")
        if arguments.subjects and name not in arguments.subjects:
            continue
        scan = _read(path)
        drawn = list(arguments.folder.glob(f"derivatives/dlmuse/**/{name}_*dseg.nii.gz"))
        none = Image(np.zeros_like(scan.values), scan.affine)
        labels = _read(drawn[0]) if drawn else none
        heads.append(Head(name, scan, labels, whole_brain(labels) if drawn else none))
    return heads


def whole_brain(labels: Image) -> Image:
    """Return the labels' brain with its narrow sulci, as masks have it."""
    spacing, room = float(np.linalg.norm(labels.affine[:3, 0])), 6
    brain = np.pad(labels.values > 1, room)
    wide = ndimage.distance_transform_edt(~brain, spacing) <= CLOSED_MM
    closed = brain | (ndimage.distance_transform_edt(wide, spacing) > CLOSED_MM)
    filled = ndimage.binary_fill_holes(closed)[room:-room, room:-room, room:-room]
    return Image(filled.astype(np.float32), labels.affine)


def measure(head: Head, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for the head as it is, and one for every tilt."""
    params = PreprocessParams(
        grid=Grid(spacing=arguments.spacing), bias_correction="n4" if arguments.n4 else "none"
    )
    prepared = template.build(params.registration_spacing)
    rng = np.random.default_rng([arguments.seed, *head.name.encode()])
    rows: list[dict[str, Any]] = [{"head": head.name} | ours(head, params, prepared)]
    for number in range(arguments.tilts + arguments.clinics):
        turn, row = draw_turn(head.scan, rng), {"head": head.name, "changed": ["tilted"]}
        moved = head.tilted(turn)
        if number >= arguments.tilts:
            inside = moved.brain.values > 0.5
            if not inside.any():
                inside = _own_brain(moved.scan)
            moved, changed = rescanned(moved, inside, rng)
            row["changed"] = ["another clinic", *changed]
        row |= ours(moved, params, prepared)
        if "map" in row and "map" in rows[0]:
            upright = np.linalg.inv(turn) @ np.array(row["map"])
            row["pose_mm"] = apart(upright, np.array(rows[0]["map"]), prepared)
        rows.append(row)
    if arguments.ants:
        rows[0] |= theirs(head)
    if arguments.syn:
        syn = params.model_copy(update={"registration": "syn"})
        warped = ours(head, syn, prepared)
        rows[0] |= {f"syn_{name}": warped[name] for name in ("cpu_s", *STORED)}
    for row in rows:
        hidden = ("map", "their_map", "measures", *PLACED)
        print(json.dumps({k: v for k, v in row.items() if k not in hidden}), flush=True)
    return rows


def ours(head: Head, params: PreprocessParams, prepared: template.Template) -> dict[str, Any]:
    """Preprocess a head; return the verdict, the mask's overlap and the map from MNI space."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = work / "head.nii"
        nib.save(nib.Nifti1Image(head.scan.values, head.scan.affine), path)
        job = Job(path, "scan", hash_file(path), key="")
        started = time.process_time()
        (result,) = preprocess_scans([job], out=work, params=params, template=prepared)
        row: dict[str, Any] = {"cpu_s": round(time.process_time() - started, 2)}
        row["reason"] = result.reason or judge(result.measures, params.quality) or ""
        if result.reason:
            return row
        layout = Layout.of(params)
        to_scan = read_affine(work / layout.transform.format("scan"))
        volume: Any = nib.load(work / layout.volume.format("scan"))
        found = volume.dataobj.get_unscaled() != 0
        if layout.warps:
            row |= jacobians(*(work / name.format("scan") for name in layout.warps))
    row["measures"], row["map"] = result.measures, to_scan.tolist()
    if not head.labels.values.any():
        return row
    expected = resample(head.brain, volume.affine, found.shape, transform=to_scan).values > 0.5
    both = (found & expected).sum()
    row["dice"] = round(float(2 * both / (found.sum() + expected.sum())), 4)
    row["sensitivity"] = round(float(both / expected.sum()), 4)
    row["precision"] = round(float(both / found.sum()), 4)
    row["edge_mm"] = from_edge(found, expected, params.grid.spacing)
    labels = look_up(
        head.labels, apply_affine(to_scan @ volume.affine, np.argwhere(~found)), order=0
    )
    cortex = (head.labels.values >= CORTEX).sum() * abs(np.linalg.det(head.labels.affine[:3, :3]))
    outside = (labels >= CORTEX).sum() * params.grid.spacing**3
    row["cortex_outside"] = round(float(outside / cortex), 4)
    return row | {"labels": place_labels(head, to_scan)} if params.registration == "rigid" else row


def jacobians(forward: Path, inverse: Path) -> dict[str, float]:
    """Return the least and the greatest Jacobian of a warp and of its inverse, as they lie on the
    disk."""
    there = read_warp(forward, inverse)
    back = Warp(there.inverse, there.forward, there.affine)
    return dict(zip(STORED, (*there.jacobian(), *back.jacobian()), strict=True))


def from_edge(found: Mask, expected: Mask, spacing: float) -> list[float]:
    """Return the 5th percentile and the median of how far, mm, the edge of a mask lies beyond that
    of another."""
    edge = found & ~ndimage.binary_erosion(found)
    beyond = ndimage.distance_transform_edt(~expected, spacing)
    within = ndimage.distance_transform_edt(expected, spacing) - spacing
    signed = np.where(expected, -within, beyond)[edge]
    return [round(float(each), 2) for each in np.percentile(signed, [5, 50])]


def theirs(head: Head) -> dict[str, Any]:
    """Register a head by antspyx, its brain cut out by the labels."""
    brain = Image(head.scan.values * head.brain.values, head.scan.affine)
    started = time.process_time()
    to_scan = map_by_ants(template.load("t1"), brain)
    seconds = time.process_time() - started
    labels = place_labels(head, to_scan)
    return {"their_cpu_s": round(seconds, 2), "their_map": to_scan.tolist(), "their_labels": labels}


def map_by_ants(fixed: Image, moving: Image) -> Matrix:
    """Return the map from mm of one image to mm of the other that antspyx finds (Rigid)."""
    import ants

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("fixed.nii", "moving.nii")]
        for file, image in zip(files, (fixed, moving), strict=True):
            nib.save(nib.Nifti1Image(image.values, image.affine), file)
        images = (ants.image_read(str(file)) for file in files)
        found = ants.registration(*images, type_of_transform="Rigid", random_seed=1)
        transform = ants.read_transform(found["fwdtransforms"][-1])
    linear = transform.parameters[:9].reshape(3, 3)
    centre = transform.fixed_parameters
    offset = transform.parameters[9:] + centre - linear @ centre
    to_moving: Matrix = RAS_TO_LPS @ from_matvec(linear, offset) @ RAS_TO_LPS
    return to_moving


def place_labels(head: Head, to_scan: Matrix) -> dict[str, Any]:
    """Return the voxels of every label on a grid of MNI space."""
    grid = Grid(spacing=COMPARED)
    points = apply_affine(
        to_scan @ grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    )
    values = look_up(head.labels, points, order=0).astype(int)
    return {str(n): np.flatnonzero(values == n) for n in itertools.chain(*LABELS.values())}


def summarize(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, str]:
    """Return the table."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get("changed", ["as they are"])[0], []).append(row)
    upright = groups["as they are"]
    table = {}
    for name, chosen in groups.items():
        kept = sum(not row["reason"] for row in chosen)
        low, high = binomtest(kept, len(chosen)).proportion_ci(method="wilson")
        table[f"kept, {name}"] = f"{kept} of {len(chosen)} ({low:.0%} to {high:.0%})"
        if poses := [row["pose_mm"] for row in chosen if "pose_mm" in row]:
            table[f"pose against upright, {name}, mm"] = (
                f"median {np.median(poses):.2f}, worst {max(poses):.2f}"
            )
        if any("dice" in row for row in chosen):
            dice = np.array([row["dice"] for row in chosen if "dice" in row])
            table[f"mask's Dice, {name}"] = f"mean {dice.mean():.3f}, worst {dice.min():.3f}"
            edges = np.array([row["edge_mm"] for row in chosen if "edge_mm" in row])
            low, median = edges.mean(axis=0)
            table[f"mask's edge, {name}, mm"] = (
                f"5th percentile mean {low:.2f}, worst {edges[:, 0].min():.2f}; median {median:.2f}"
            )
            cortex = np.array([row["cortex_outside"] for row in chosen if "edge_mm" in row])
            table[f"cortex outside, {name}"] = f"mean {cortex.mean():.1%}, worst {cortex.max():.1%}"
    for prefix, who in (("", "ours"), ("their_", "antspyx Rigid")):
        maps = [row[f"{prefix}labels"] for row in upright if f"{prefix}labels" in row]
        if len(maps) > 1:
            for group, numbers in LABELS.items():
                table[f"Dice of {group}, {who}"] = f"{overlap(maps, numbers):.3f}"
            table[f"spread of deep nuclei, {who}, mm"] = f"{spread(maps):.2f}"
        seconds = [row[f"{prefix}cpu_s"] for row in upright if f"{prefix}cpu_s" in row]
        if seconds:
            table[f"CPU, {who}, s"] = f"{np.mean(seconds):.2f}"
    if arguments.syn:
        low, high, back_low, back_high = ([row[f"syn_{n}"] for row in upright] for n in STORED)
        table["Jacobians of syn"] = f"{min(low):.3f} to {max(high):.2f}"
        table["Jacobians of its inverse"] = f"{min(back_low):.3f} to {max(back_high):.2f}"
        table["CPU, syn, s"] = f"{np.mean([row['syn_cpu_s'] for row in upright]):.1f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    table["peak memory, GB"] = f"{peak:.2f}" + (", with antspyx" if arguments.ants else "")
    return table


def overlap(maps: list[Mapping[str, NDArray[np.intp]]], numbers: tuple[int, ...]) -> float:
    """Return the mean Dice of labels over all pairs of heads."""
    return float(
        np.mean(
            [
                2 * len(np.intersect1d(a[str(n)], b[str(n)])) / (len(a[str(n)]) + len(b[str(n)]))
                for a, b in itertools.combinations(maps, 2)
                for n in numbers
                if len(a[str(n)]) + len(b[str(n)])
            ]
        )
    )


def spread(maps: list[Mapping[str, NDArray[np.intp]]]) -> float:
    """Return the root mean square distance, mm, of the deep nuclei from their mean place."""
    shape = Grid(spacing=COMPARED).shape
    places = np.array(
        [
            [
                COMPARED * np.mean(np.unravel_index(each[str(n)], shape), axis=1)
                for n in LABELS["deep nuclei"]
            ]
            for each in maps
        ]
    )
    return float(np.sqrt(((places - places.mean(axis=0)) ** 2).sum(axis=2).mean()))


def apart(first: Matrix, second: Matrix, prepared: template.Template) -> float:
    """Return the mean distance in mm between where two maps put points of the brain."""
    points: Array = prepared.centre + np.random.default_rng(0).normal(size=(300, 3)) * [28, 35, 28]
    difference = apply_affine(first, points) - apply_affine(second, points)
    return round(float(np.linalg.norm(difference, axis=1).mean()), 2)


def _own_brain(scan: Image) -> Mask:
    """Return the brain of a head that has no labels, as our surface shows it."""
    return fill(find_brain(scan, PreprocessParams()).surface, scan.affine, scan.values.shape)


def _read(path: Path) -> Image:
    stored: Any = nib.as_closest_canonical(nib.load(path))
    return Image(np.asarray(stored.dataobj, np.float32), stored.affine)


if __name__ == "__main__":
    main()
