"""Preprocessing of real heads, measured by anatomical labels that others have drawn.

    python benchmarks/real_heads.py FOLDER --tilts 1 --ants --syn --out real_heads.json

FOLDER is a BIDS dataset with T1w scans and, in derivatives/dlmuse, labels of the DLMUSE network on
the grids of the scans: above 1 is brain, closed by 4 mm and filled. Every head is preprocessed as
it is, and ``--tilts`` times as if it had lain in the scanner tilted by up to 30° about each axis,
as ``--seed`` says: resampled by splines onto voxels that are parallel to the scanner. One table:

- kept: usable scans; dice: of the brain mask with the labels' brain, in the volume;
- pose: mean distance, mm, between where a tilted head's brain and the upright one's are put;
- labels of all pairs of heads in MNI space, after our rigid registration and, with ``--ants``,
  after that of antspyx (``Rigid``, of the labels' brain to the same template, a better mask than it
  would have): mean Dice, and mm by which the deep nuclei scatter about their mean place;
- CPU seconds on one thread and peak memory; with ``--syn`` the range of the warps' Jacobians.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.volumes import Grid
from neurofoundry.preprocess import template
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.resample import Array, Image, Matrix, look_up, resample
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.transform import RAS_TO_LPS, read_affine
from neurofoundry.runtime.files import hash_file

CLOSED_MM = 4.0
MOST_DEGREES, WIDEST_MM = 30.0, 400.0
LABELS = {
    "deep nuclei": (23, 30, 36, 37, 55, 56, 57, 58, 59, 60),
    "ventricles": (4, 11, 49, 50, 51, 52),
    "cerebellum": (38, 39, 40, 41, 71, 72, 73),
}
"""MUSE's numbers: accumbens, caudate, pallidum, putamen, thalamus; third, fourth, inferior lateral
and lateral ventricles; cerebellum and vermis."""
COMPARED = template.COMPARISON_MM / 2


@dataclass(frozen=True)
class Head:
    """A scan and the labels on its grid."""

    name: str
    scan: Image
    labels: Image
    brain: Image

    def tilted(self, turn: Matrix) -> Head:
        """Return the head as it looks in the scanner's axes when it is moved by ``turn``."""
        air = float(np.median(self.scan.values[0]))
        scan = _turned(self.scan, turn, order=3, outside=air)
        return Head(
            self.name,
            Image(np.maximum(scan.values, self.scan.values.min()), scan.affine),
            _turned(self.labels, turn, order=0),
            _turned(self.brain, turn, order=1),
        )


def main() -> None:
    """Preprocess every head, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="*", help="such as sub-01; all without it")
    parser.add_argument("--tilts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--n4", action="store_true")
    parser.add_argument("--ants", action="store_true")
    parser.add_argument("--syn", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for head in read_heads(arguments) for row in measure(head, arguments)]
    table = summarize(rows, arguments)
    for name, value in table.items():
        print(f"{name:34}{value}")
    arguments.out.write_text(json.dumps({"table": table, "rows": rows}, indent=1))


def read_heads(arguments: argparse.Namespace) -> list[Head]:
    """Read the scans that have labels."""
    heads = []
    for path in sorted(arguments.folder.glob("derivatives/dlmuse/sub-*/anat/*_dseg.nii.gz")):
        name = path.name.split("_")[0]
        if arguments.subjects and name not in arguments.subjects:
            continue
        labels = _read(path)
        scan = _read(arguments.folder / name / "anat" / f"{name}_T1w.nii.gz")
        heads.append(Head(name, scan, labels, whole_brain(labels)))
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
    rng = np.random.default_rng([arguments.seed, int(head.name[4:])])
    angles = rng.uniform(-MOST_DEGREES, MOST_DEGREES, (arguments.tilts, 3))
    rows: list[dict[str, Any]] = []
    for tilt in (np.zeros(3), *angles):
        turn = _about_middle(head.scan, tilt)
        row = {"head": head.name, "tilt": tilt.round(1).tolist()}
        row |= ours(head.tilted(turn) if tilt.any() else head, params, prepared)
        if rows and "map" in row and "map" in rows[0]:
            upright = np.linalg.inv(turn) @ np.array(row["map"])
            row["pose_mm"] = apart(upright, np.array(rows[0]["map"]), prepared)
        rows.append(row)
    if arguments.ants:
        rows[0] |= theirs(head)
    if arguments.syn:
        syn = params.model_copy(update={"registration": "syn"})
        warped = ours(head, syn, prepared)
        rows[0] |= {f"syn_{n}": warped.get(n) for n in ("cpu_s", "jacobian_min", "jacobian_max")}
    for row in rows:
        hidden = ("map", "measures", "labels", "their_labels")
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
    row |= {n: result.measures[n] for n in result.measures if n.startswith("jacobian")}
    expected = resample(head.brain, volume.affine, found.shape, transform=to_scan).values > 0.5
    both = (found & expected).sum()
    row["dice"] = round(float(2 * both / (found.sum() + expected.sum())), 4)
    row["sensitivity"] = round(float(both / expected.sum()), 4)
    row["precision"] = round(float(both / found.sum()), 4)
    row["measures"], row["map"] = result.measures, to_scan.tolist()
    return row | {"labels": place_labels(head, to_scan)} if params.registration == "rigid" else row


def theirs(head: Head) -> dict[str, Any]:
    """Register a head by antspyx, its brain cut out by the labels."""
    import ants

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("template.nii", "brain.nii")]
        t1 = template.load("t1")
        brain = Image(head.scan.values * head.brain.values, head.scan.affine)
        for file, image in zip(files, (t1, brain), strict=True):
            nib.save(nib.Nifti1Image(image.values, image.affine), file)
        fixed, moving = (ants.image_read(str(file)) for file in files)
        started = time.process_time()
        found = ants.registration(fixed, moving, type_of_transform="Rigid", random_seed=1)
        seconds = time.process_time() - started
        transform = ants.read_transform(found["fwdtransforms"][-1])
    linear = transform.parameters[:9].reshape(3, 3)
    centre = transform.fixed_parameters
    offset = transform.parameters[9:] + centre - linear @ centre
    to_scan = RAS_TO_LPS @ from_matvec(linear, offset) @ RAS_TO_LPS
    labels = place_labels(head, to_scan)
    return {"their_cpu_s": round(seconds, 2), "their_labels": labels}


def place_labels(head: Head, to_scan: Matrix) -> dict[str, Any]:
    """Return the voxels of every label on a grid of MNI space."""
    grid = Grid(spacing=COMPARED)
    points = apply_affine(
        to_scan @ grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    )
    values = look_up(head.labels, points, order=0).astype(int)
    return {str(n): np.flatnonzero(values == n) for n in itertools.chain(*LABELS.values())}


def summarize(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, str]:
    """Return the table, and drop what is too large for a file from the rows."""
    upright, tilted = ([row for row in rows if any(row["tilt"]) == other] for other in (0, 1))
    table = {}
    for name, chosen in (("as they are", upright), ("tilted", tilted)):
        if chosen:
            dice = np.array([row.get("dice", 0) for row in chosen])
            kept = sum(not row["reason"] for row in chosen)
            table[f"kept, {name}"] = f"{kept} of {len(chosen)}"
            table[f"mask's Dice, {name}"] = f"mean {dice.mean():.3f}, worst {dice.min():.3f}"
    if tilted:
        poses = [row.get("pose_mm", np.inf) for row in tilted]
        table["pose, tilted against upright, mm"] = (
            f"median {np.median(poses):.2f}, worst {max(poses):.2f}"
        )
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
        low, high = ([row[f"syn_jacobian_{n}"] for row in upright] for n in ("min", "max"))
        table["Jacobians of syn"] = f"{min(low):.3f} to {max(high):.2f}"
        table["CPU, syn, s"] = f"{np.mean([row['syn_cpu_s'] for row in upright]):.1f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    table["peak memory, GB"] = f"{peak:.2f}" + (", with antspyx" if arguments.ants else "")
    for row in rows:
        row.pop("labels", None), row.pop("their_labels", None)
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


def _about_middle(scan: Image, angles: Array) -> Matrix:
    middle = apply_affine(scan.affine, (np.array(scan.values.shape) - 1) / 2)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix: Matrix = from_matvec(turn, middle - turn @ middle)
    return matrix


def _turned(image: Image, turn: Matrix, *, order: int, outside: float = 0.0) -> Image:
    """Return an image moved by ``turn``, on a grid as fine as its own along the scanner's axes."""
    spacing = float(np.linalg.norm(image.affine[:3, 0]))
    box = Image(image.values, turn @ image.affine)
    corners = apply_affine(
        box.affine, list(itertools.product(*((-0.5, n - 0.5) for n in image.values.shape)))
    )
    middle = corners.mean(axis=0)
    # No scanner's view is wider; corners that reach beyond it hold air.
    shape = np.ceil(np.minimum(np.ptp(corners, axis=0), WIDEST_MM) / spacing).astype(int)
    affine = from_matvec(np.eye(3) * spacing, middle - spacing * (shape - 1) / 2)
    onto = np.linalg.inv(box.affine) @ affine
    values = ndimage.affine_transform(
        image.values, onto[:3, :3], onto[:3, 3], tuple(shape), order=order, cval=outside
    )
    return Image(values.astype(np.float32), affine)


def _read(path: Path) -> Image:
    stored: Any = nib.as_closest_canonical(nib.load(path))
    return Image(np.asarray(stored.dataobj, np.float32), stored.affine)


if __name__ == "__main__":
    main()
