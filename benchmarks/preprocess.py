"""Preprocessing compared with the same steps done TurboPrep's way, and with itself.

    python benchmarks/preprocess.py compare --phantoms 20 --theirs 6 --out rigid.json HEAD.nii.gz …
    python benchmarks/preprocess.py compare --kind syn --phantoms 3 --out syn.json HEAD.nii.gz …
    python benchmarks/preprocess.py retest FIRST.nii.gz SECOND.nii.gz --out retest.json
    python benchmarks/preprocess.py mask --phantoms 20 --out mask.json [HEAD.nii.gz MASK.nii.gz]
    python benchmarks/preprocess.py memory --out memory.json HEAD.nii.gz …
    python benchmarks/preprocess.py workers --phantoms 16 --out workers.json
    python benchmarks/preprocess.py device --phantoms 8 --repeat 8 --workers 8 16 --out gpu.json

``compare``: CPU seconds a scan at 1 mm, on one thread. Ours: N4 in the brain at 6 mm, registration
at 2 mm, one interpolation, z-score. Theirs, by antspyx: N4 on the head with shrink 3, our brain
mask (SynthStrip needs weights; its time counts for neither), SyNQuick at 1 mm, WhiteStripe.
Phantoms give the error of the pose and the Dice of their true tissue; heads give the correlation
with the template, and the Dice of three classes of intensity, in the voxels that both ways show.
Expected: at least 10 times less CPU for rigid and affine, 4 times for syn, with results that are no
worse, and no folds.

``retest``: two scans of one person, through the template and directly. Expected: 0.6 mm.
``mask``: the brain in a volume against the true brain of phantoms, and against the given masks of
heads (their holes are filled). Expected: a Dice of 0.95 where a person drew the mask.
``memory``: the peak of a worker. Expected: at most 1.5 GB for rigid.
``workers``: scans an hour with 1, 2, … processes, on a machine that does nothing else.
``device``: scans a minute by all cores, and by ``--workers`` processes that share one GPU.

antspyx is not a dependency of the project: compare and retest need it installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from neurofoundry.phantom.anatomy import CSF, GREY, WHITE, sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess import intensity, registration, template
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, Matrix, coarsen, resample
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.surface import fill
from neurofoundry.preprocess.transform import RAS_TO_LPS, read_affine
from neurofoundry.preprocess.workers import in_batches, pool, preprocess_batch
from neurofoundry.runtime.files import hash_file

SEED = 20
COHORT = 44_958
THEIRS = {kind: f"antsRegistrationSyNQuick[{kind[0]}]" for kind in ("rigid", "affine", "syn")}
TISSUES = {CSF: "csf", GREY: "grey", WHITE: "white"}


@dataclass(frozen=True)
class Scan:
    """A head; of a phantom with the ground truth."""

    path: Path
    pose: Matrix | None = None
    """From mm of the scan to mm of MNI space."""
    tissue: Path | None = None
    """Labels CSF, GREY and WHITE in the scan."""
    brain: Path | None = None
    """The true mask."""


@dataclass(frozen=True)
class Registered:
    """What one of the two ways makes of a scan."""

    cpu_s: float
    to_scan: Matrix | None
    """From mm of MNI space to mm of the scan, where it is one matrix."""
    volume: Image
    transforms: list[str]
    """Files with which antsApplyTransforms brings a scan to the template."""
    warp: str | None


def main() -> None:
    """Run a command, print its results and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for command, help_ in (
        (compare, "against antspyx"),
        (retest, "two scans of one person"),
        (mask, "the brain mask"),
        (memory, "peak of a worker"),
        (workers, "scans an hour"),
        (device, "a GPU against all cores"),
    ):
        sub = commands.add_parser(command.__name__, help=help_)
        sub.set_defaults(run=command)
        sub.add_argument("heads", type=Path, nargs="*")
        sub.add_argument("--kind", choices=THEIRS, default="rigid")
        sub.add_argument("--phantoms", type=int, default=0)
        sub.add_argument("--spacing", type=float, default=1.2, help="of the phantoms, mm")
        sub.add_argument("--out", type=Path, required=True)
        if command is compare:
            sub.add_argument("--theirs", type=int, help="phantoms that are done their way, too")
        if command in (workers, device):
            sub.add_argument("--workers", type=int, nargs="+", default=[1, 2])
        if command is device:
            sub.add_argument("--kinds", choices=THEIRS, nargs="+", default=["rigid", "syn"])
            sub.add_argument("--batches", type=int, nargs="+", default=[8, 16])
            sub.add_argument("--repeat", type=int, default=1, help="how often each scan is done")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = arguments.run(arguments, Path(folder))
    _write(arguments.out, result)


def compare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Do every scan both ways, or ours alone for the phantoms beyond ``--theirs``."""
    kind = arguments.kind
    params = PreprocessParams(bias_correction="n4", registration=kind)
    prepared = template.build(params.registration_spacing)
    target = _write_template(work)
    rows: list[dict[str, Any]] = []
    phantoms = 0
    for scan in _scans(arguments, work):
        phantoms += scan.pose is not None
        both = arguments.theirs is None or scan.pose is None or phantoms <= arguments.theirs
        ways = {"ours": _ours(scan.path, params, prepared, work)}
        if both:
            ways["theirs"] = _theirs(scan.path, kind, target, work)
        row: dict[str, Any] = {"scan": scan.path.name}
        shared = _shared([way.volume for way in ways.values()])
        for name, way in ways.items():
            correlation = _correlation(way.volume, shared)
            row[name] = {"cpu_s": round(way.cpu_s, 2), "correlation": correlation}
            row[name] |= _tissue_dice(scan, way, target, shared)
            if scan.pose is not None and way.to_scan is not None:
                rigid = registration.closest_rigid(way.to_scan, prepared.centre)
                row[name]["pose_error_mm"] = _apart(rigid, np.linalg.inv(scan.pose), prepared)
            if way.warp:
                row[name]["jacobian_min"], row[name]["folds"] = _folds(way.warp, target)
        if both:
            row["cpu_ratio"] = round(ways["theirs"].cpu_s / ways["ours"].cpu_s, 2)
        print(json.dumps(row), flush=True)
        rows.append(row)
        _write(arguments.out, {"kind": kind, "rows": rows})  # a row of theirs is minutes of work
    return {"kind": kind, "median_cpu_ratio": _summarize(kind, rows), "rows": rows}


def _summarize(kind: str, rows: list[dict[str, Any]]) -> float | None:
    """Print means and ranges; return the median ratio of CPU time."""
    ratios = [row["cpu_ratio"] for row in rows if "cpu_ratio" in row]
    ratio = round(float(np.median(ratios)), 1) if ratios else None
    print(f"{kind}: CPU of theirs / ours, median of {len(ratios)}: {ratio}")
    for name in ("ours", "theirs"):
        results = [row[name] for row in rows if name in row]
        for key in dict.fromkeys(key for result in results for key in result):
            values = [result[key] for result in results if key in result]
            ends = f"{np.min(values):.4g} to {np.max(values):.4g}"
            print(f"  {name:6} {key:14} mean {np.mean(values):.4g}, {ends}, n = {len(values)}")
    return ratio


def retest(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure how far two scans' maps to the template disagree with a map from scan to scan."""
    import ants

    first, second = arguments.heads
    params = PreprocessParams(bias_correction="n4")
    prepared = template.build(params.registration_spacing)
    target = _write_template(work)
    brains = [_brain(path) for path in (first, second)]
    files = [work / "first.nii.gz", work / "second.nii.gz"]
    for image, file in zip(brains, files, strict=True):
        nib.save(nib.Nifti1Image(image.values, image.affine), file)
    registered = ants.registration(
        ants.image_read(str(files[0])),
        ants.image_read(str(files[1])),
        type_of_transform="Rigid",
        random_seed=1,
    )
    direct = {
        "ants": _matrix(ants.read_transform(registered["fwdtransforms"][-1])),
        "ours": _direct(*brains, params.registration_spacing),
    }
    ways = {
        "ours": [_ours(path, params, prepared, work).to_scan for path in (first, second)],
        "theirs": [_theirs(path, "rigid", target, work).to_scan for path in (first, second)],
    }
    result: dict[str, Any] = {
        f"through the template, {name}; directly, {by}": _apart(
            to_second, across @ to_first, prepared
        )
        for name, (to_first, to_second) in ways.items()
        for by, across in direct.items()
    }
    to_first = ways["ours"][0]
    result["between the two direct maps"] = _apart(
        direct["ants"] @ to_first, direct["ours"] @ to_first, prepared
    )
    for name, value in result.items():
        print(f"{name}: {value} mm")
    return result


def mask(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the Dice of the mask of every volume, at 1 mm and within the field of view."""
    pairs = zip(arguments.heads[::2], arguments.heads[1::2], strict=True)
    arguments.heads = []
    params = PreprocessParams()
    prepared = template.build(params.registration_spacing)
    rows = []
    for scan in (*(Scan(path, brain=drawn) for path, drawn in pairs), *_scans(arguments, work)):
        assert scan.brain is not None
        to_scan = _ours(scan.path, params, prepared, work).to_scan
        assert to_scan is not None
        volume: Any = nib.load(work / Layout.of(params).volume.format("ours"))
        inside = volume.dataobj.get_unscaled() != 0
        image: Any = nib.as_closest_canonical(nib.load(scan.brain))
        filled = ndimage.binary_fill_holes(np.asarray(image.dataobj) > 0)
        true = Image(filled.astype(np.float32), image.affine)
        expected = resample(true, volume.affine, inside.shape, transform=to_scan).values > 0.5
        seen = Image(np.ones_like(true.values), true.affine)
        expected &= resample(seen, volume.affine, inside.shape, transform=to_scan).values > 0.5
        rows.append(
            {
                "scan": scan.path.name,
                "dice": round(_dice(inside, expected), 4),
                "found_ml": int(inside.sum() / 1000),
                "expected_ml": int(expected.sum() / 1000),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"mean": float(np.mean([row["dice"] for row in rows])), "rows": rows}


def memory(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the peak of the resident memory of a worker that does every scan."""
    scans = [scan.path for scan in _scans(arguments, work)]
    params = PreprocessParams(bias_correction="n4", registration=arguments.kind)
    with pool(1, params) as executor:
        for path in scans:
            job = Job(path, "scan", hash_file(path), key="")
            (result,), _ = executor.submit(preprocess_batch, [job], work).result()
            assert result.volume_sha256, result.reason
        peak = executor.submit(_peak).result()
    print(f"{arguments.kind}: {peak:.2f} GB at most, after {len(scans)} scans")
    return {"kind": arguments.kind, "scans": len(scans), "peak_gb": peak}


def workers(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the wall time of the same scans in more and more processes."""
    jobs = _jobs(arguments, work)
    params = PreprocessParams(bias_correction="n4", registration=arguments.kind)
    rows: list[dict[str, float]] = []
    for count in arguments.workers:
        seconds = _wall(jobs, params, count, work)
        hourly = len(jobs) / seconds * 3600
        rows.append({"workers": count, "seconds": seconds, "scans_an_hour": hourly})
        print(
            f"{count} workers: {seconds:.1f} s for {len(jobs)} scans, {hourly:.0f} an hour, "
            f"{COHORT / hourly:.1f} h for {COHORT}; {rows[0]['seconds'] / seconds:.2f} times one"
        )
    return {"kind": arguments.kind, "rows": rows}


def device(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the wall time of the same scans by all cores, and with a GPU, rigid and syn."""
    jobs = _jobs(arguments, work)
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    ways: list[dict[str, Any]] = [{"device": "cpu", "workers": cores}]
    for count, batch in itertools.product(arguments.workers, arguments.batches):
        ways.append({"device": "cuda", "workers": count, "batch": batch})
    if gpu is None:
        print("torch finds no GPU here: the CPU alone is timed")
        del ways[1:]
    rows: list[dict[str, Any]] = []
    for kind in arguments.kinds:
        for way in ways:
            params = PreprocessParams(
                bias_correction="n4",
                registration=kind,
                device=way["device"],
                batch=way.get("batch", 1),
            )
            minutes = _wall(jobs, params, way["workers"], work) / 60
            row = {"kind": kind, **way, "scans_a_minute": round(len(jobs) / minutes, 2)}
            cpu = next(r for r in [*rows, row] if r["kind"] == kind and r["device"] == "cpu")
            row["times_cpu"] = round(row["scans_a_minute"] / cpu["scans_a_minute"], 2)
            print(json.dumps(row), flush=True)
            rows.append(row)
    return {"gpu": gpu, "cores": cores, "scans": len(jobs), "rows": rows}


def _jobs(arguments: argparse.Namespace, work: Path) -> list[Job]:
    paths = [scan.path for scan in _scans(arguments, work)] * getattr(arguments, "repeat", 1)
    return [Job(path, f"scan{n}", hash_file(path), key="") for n, path in enumerate(paths)]


def _wall(jobs: Sequence[Job], params: PreprocessParams, count: int, work: Path) -> float:
    """Return the seconds that ``count`` running workers need for all scans."""
    batches = in_batches(jobs, params)
    with pool(count, params) as executor:
        for first in [executor.submit(preprocess_batch, b, work) for b in batches[:count]]:
            first.result()
        started = time.perf_counter()
        for future in [executor.submit(preprocess_batch, batch, work) for batch in batches]:
            assert all(result.volume_sha256 for result in future.result()[0])
        return time.perf_counter() - started


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1))


def _scans(arguments: argparse.Namespace, work: Path) -> Iterator[Scan]:
    yield from (Scan(path) for path in arguments.heads)
    atlas = build_atlas(2) if arguments.phantoms else None
    for index in range(arguments.phantoms):
        assert atlas is not None
        subject = sample_subject(PhantomParams(seed=SEED), index)
        session = subject.sessions[0][0]
        scan = head(subject, session, SITES[subject.site], atlas, arguments.spacing)
        names = (f"{name}-{index}.nii.gz" for name in ("phantom", "tissue", "brain"))
        path, tissue, brain_file = (work / name for name in names)
        labels = np.where(scan.brain & np.isin(scan.labels, list(TISSUES)), scan.labels, 0)
        nib.save(nib.Nifti1Image(scan.image.astype(np.int16), scan.affine), path)
        nib.save(nib.Nifti1Image(labels.astype(np.float32), scan.affine), tissue)
        nib.save(nib.Nifti1Image(scan.brain.astype(np.uint8), scan.affine), brain_file)
        yield Scan(path, scan.pose, tissue, brain_file)


def _ours(
    path: Path, params: PreprocessParams, prepared: template.Template, work: Path
) -> Registered:
    job = Job(path, "ours", hash_file(path), key="")

    def process() -> None:
        (result,) = preprocess_scans([job], out=work, params=params, template=prepared)
        assert result.volume_sha256, result.reason

    seconds = _cpu(process)
    layout = Layout.of(params)
    affine = work / layout.transform.format("ours")
    volume: Any = nib.load(work / layout.volume.format("ours"))
    image = Image(np.asarray(volume.dataobj, np.float32), volume.affine)
    if params.registration == "syn":
        warp = str(work / layout.warps[0].format("ours"))
        return Registered(seconds, None, image, [warp, str(affine)], warp)
    return Registered(seconds, read_affine(affine), image, [str(affine)], None)


def _theirs(path: Path, kind: str, target: Path, work: Path) -> Registered:
    import ants

    # Their mask, SynthStrip, needs weights; ours stands in, and its time counts for neither.
    scan = read_scan(path)
    inside = fill(find_brain(scan, PreprocessParams()).surface, scan.affine, scan.values.shape)
    native, masked = work / "native.nii.gz", work / "mask.nii.gz"
    nib.save(nib.Nifti1Image(scan.values, scan.affine), native)
    nib.save(nib.Nifti1Image(inside.astype(np.float32), scan.affine), masked)
    registered: dict[str, Any] = {}

    def process() -> None:
        image = ants.image_read(str(native))
        corrected = ants.n4_bias_field_correction(image, shrink_factor=3)
        stripped = corrected * ants.image_read(str(masked))
        result = ants.registration(
            ants.image_read(str(target)), stripped, type_of_transform=THEIRS[kind], random_seed=1
        )
        values = result["warpedmovout"].numpy()
        registered["values"] = intensity.whitestripe(values, values > 0)
        registered["transforms"] = result["fwdtransforms"]

    seconds = _cpu(process)
    reference: Any = nib.load(target)
    volume = Image(registered["values"].astype(np.float32), reference.affine)
    transforms = registered["transforms"]
    if kind == "syn":
        return Registered(seconds, None, volume, transforms, transforms[0])
    return Registered(
        seconds, _matrix(ants.read_transform(transforms[-1])), volume, transforms, None
    )


def _brain(path: Path) -> Image:
    """Return the brain alone, as `_theirs` and the direct maps get it."""
    scan = read_scan(path)
    inside = fill(find_brain(scan, PreprocessParams()).surface, scan.affine, scan.values.shape)
    return Image(np.where(inside, scan.values, 0).astype(np.float32), scan.affine)


def _direct(first: Image, second: Image, spacing: float) -> Matrix:
    """Return the rigid map from mm of one scan to mm of another, by our engine alone."""
    fixed, moving = (_to_unit(coarsen(image, spacing)) for image in (first, second))
    centres = [
        apply_affine(image.affine, np.argwhere(image.values > 0).mean(axis=0))
        for image in (fixed, moving)
    ]
    levels = template.levels_of(fixed, centres[0], spacing)
    (affine,) = registration.register([moving], [centres[1]], levels, centres[0])
    return registration.closest_rigid(affine, centres[0])


def _to_unit(image: Image) -> Image:
    top = np.percentile(image.values[image.values > 0], 99.5)
    return Image((image.values / top).clip(0, 1).astype(np.float32), image.affine)


def _matrix(transform: Any) -> Matrix:
    """Return an affine transform of ANTs as a map of RAS+ mm."""
    linear = transform.parameters[:9].reshape(3, 3)
    centre, shift = transform.fixed_parameters, transform.parameters[9:]
    offset = shift + centre - linear @ centre
    return RAS_TO_LPS @ from_matvec(linear, offset) @ RAS_TO_LPS


def _cpu(process: Callable[[], None]) -> float:
    started = time.process_time()
    process()
    return time.process_time() - started


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)


def _write_template(work: Path) -> Path:
    path = work / "template.nii.gz"
    t1 = template.load("t1")
    nib.save(nib.Nifti1Image(t1.values, t1.affine), path)
    return path


def _shared(volumes: list[Image]) -> np.ndarray:
    """Return the voxels of the template's brain that every volume shows: a smaller mask must not
    count as a better fit."""
    t1 = template.load("t1")
    seen = [resample(volume, t1.affine, t1.values.shape).values != 0 for volume in volumes]
    return np.logical_and.reduce([t1.values > 0, *seen])


def _correlation(volume: Image, shared: np.ndarray) -> float:
    """Return the correlation with the template over the voxels of ``shared``."""
    t1 = template.load("t1")
    values = resample(volume, t1.affine, t1.values.shape).values
    return round(float(np.corrcoef(t1.values[shared], values[shared])[0, 1]), 4)


def _tissue_dice(scan: Scan, way: Registered, target: Path, shared: np.ndarray) -> dict[str, float]:
    """Return the overlap of the scan's tissue with the template's, at 1 mm."""
    inside = template.load("t1").values > 0
    grey, white = template.load("gm").values, template.load("wm").values
    shares = {CSF: 1 - grey - white, GREY: grey, WHITE: white}
    expected = np.array(list(shares))[np.argmax(list(shares.values()), axis=0)] * inside
    if scan.tissue is not None:
        import ants

        warped = ants.apply_transforms(
            ants.image_read(str(target)),
            ants.image_read(str(scan.tissue)),
            way.transforms,
            interpolator="nearestNeighbor",
        )
        labels = np.rint(warped.numpy()).astype(int)
    else:
        expected = expected * shared
        affine = template.load("t1").affine
        labels = _three_classes(resample(way.volume, affine, inside.shape).values, shared)
    return {
        f"dice_{name}": round(_dice(labels == label, expected == label), 4)
        for label, name in TISSUES.items()
    }


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def _three_classes(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return labels of the voxels of ``seen`` by three means of intensity, darkest first."""
    means = np.percentile(values[seen], [10, 50, 90])
    for _ in range(30):
        nearest = np.abs(values[seen][:, None] - means).argmin(axis=1)
        means = np.array([values[seen][nearest == n].mean() for n in range(3)])
    labels = np.zeros(values.shape, int)
    labels[seen] = np.array([CSF, GREY, WHITE])[nearest]
    return labels


def _folds(warp: str, target: Path) -> tuple[float, int]:
    """Return the smallest Jacobian in the template's brain, and how often it is not positive."""
    field = SimpleITK.ReadImage(warp, SimpleITK.sitkVectorFloat64)
    # ITK's filter knows the spacing of the voxels, but not the direction of their axes.
    axes = np.reshape(field.GetDirection(), (3, 3))
    along_axes = SimpleITK.GetImageFromArray(SimpleITK.GetArrayFromImage(field) @ axes, True)
    along_axes.SetSpacing(field.GetSpacing())
    determinant = SimpleITK.DisplacementFieldJacobianDeterminant(along_axes)
    determinant.CopyInformation(field)
    fixed = SimpleITK.ReadImage(str(target))
    on_grid = SimpleITK.GetArrayFromImage(SimpleITK.Resample(determinant, fixed))
    values = on_grid[SimpleITK.GetArrayFromImage(fixed) > 0]
    return round(float(values.min()), 4), int((values <= 0).sum())


def _apart(first: Matrix, second: Matrix, prepared: template.Template) -> float:
    """Return the mean distance in mm between where two maps put points of the brain."""
    spread = np.random.default_rng(0).normal(size=(500, 3)) * [28, 35, 28]
    points: Array = prepared.centre + spread
    difference = apply_affine(first, points) - apply_affine(second, points)
    return round(float(np.linalg.norm(difference, axis=1).mean()), 3)


if __name__ == "__main__":
    main()
