"""What happens to a scan: one at a time, or several that are registered together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import T1W, further, scan_path
from neurofoundry.contracts.sketches import sketch
from neurofoundry.contracts.volumes import Grid, open_volume, write_volume
from neurofoundry.errors import UsageError
from neurofoundry.preprocess import bias, intensity, picture, quality
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.coregistration import coregister, shading_of
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.load import UnusableScanError, read_scan, read_with_gaps
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import Placement, brain_mask, place
from neurofoundry.preprocess.resample import Image, Mask, Matrix, antialias, interpolate
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.transform import write_affine, write_warp
from neurofoundry.runtime.files import hash_file, stamp, write_json

CHANGING = "the file has changed while it was read: let it come to rest, then run ingest again"

UNDECIDED = "undecided"
"""Instead of a key, while it is not known which image of a session will be used."""


@dataclass(frozen=True)
class Alternate:
    """Another image of a scan's session."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Further:
    """The image of a scan's session in another contrast than T1w."""

    contrast: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Job:
    """A scan to preprocess."""

    path: Path
    scan_id: str
    sha256: str
    """Of the image, as ingest saw it."""
    key: str
    """Hash of everything that the scan's files depend on."""
    alternates: tuple[Alternate, ...] = ()
    """Images that stand in where this one fails quality control, the best first."""
    begins: str = ""
    """How the names of its files begin (layout.py), if not with ``scan_id``."""
    further: tuple[Further, ...] = ()

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return self.begins or self.scan_id


@dataclass(frozen=True)
class FurtherResult:
    """What is known about a further contrast of a scan."""

    reason: str | None
    """Why nothing could be made of it."""
    volume_sha256: str | None = None
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What is known about a scan when it is done. Contains no time: it is the same every run."""

    key: str
    """Of the job."""
    reason: str | None
    """Why nothing could be made of the scan; None when something was, whatever its quality."""
    sha256: str | None = None
    """Of the image that it was made of: the job's, or that of an alternate."""
    volume_sha256: str | None = None
    measures: dict[str, float] = field(default_factory=dict)
    sketch: str | None = None
    """By which copies of the image are known."""
    further: dict[str, FurtherResult] = field(default_factory=dict)
    """By contrast; empty where there are none, and where nothing could be made of the scan."""


@dataclass(frozen=True)
class _Opened:
    """A scan that is ready for registration."""

    image: Image
    brain: Brain
    intensities: Image
    """The brain alone, 0..1."""
    gaps: Mask | None
    """Voxels that held no intensity."""


@dataclass(frozen=True)
class _Resampled:
    """A brain on the standard grid, before its intensities are normalized."""

    values: NDArray[np.float32]
    """Intensities of the scan; 0 outside the mask."""
    mask: Mask
    """The brain as far as the scan's field of view shows it."""
    points: NDArray[np.float64]
    """Its voxels in mm of MNI space, in view or not, (n, 3)."""


def to_jobs(
    scans: pd.DataFrame,
    *,
    data: Path,
    cohort: Path,
    begins: Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    alternates: pd.DataFrame | None = None,
    contrasts: Sequence[str] = (T1W,),
) -> list[Job]:
    """Return the jobs of rows of the cohort.

    ``begins`` and ``keys`` are by ``scan_id``; without them the jobs are for looking at scans only.
    ``alternates`` are those of the cohort, if they may stand in, and ``contrasts`` what is made of
    a session, T1w first.
    """
    others: dict[str, list[Mapping[Any, str]]] = {}
    for other in [] if alternates is None else alternates.to_dict("records"):
        others.setdefault(other["scan_id"], []).append(other)
    rows: list[dict[Any, str]] = scans.to_dict("records")
    return [
        Job(
            scan_path(row, data=data, cohort=cohort),
            row["scan_id"],
            row["sha256"],
            keys[row["scan_id"]] if keys else "",
            tuple(
                Alternate(
                    scan_path({**row, "path": other["path"]}, data=data, cohort=cohort),
                    other["sha256"],
                )
                for other in others.get(row["scan_id"], ())
            ),
            begins[row["scan_id"]] if begins else "",
            tuple(
                Further(
                    contrast,
                    scan_path(row, data=data, cohort=cohort, contrast=contrast),
                    row[further("sha256", contrast)],
                )
                for contrast in contrasts[1:]
                if isinstance(row[further("path", contrast)], str)
            ),
        )
        for row in rows
    ]


def preprocess_scans(
    jobs: Sequence[Job],
    *,
    out: Path,
    params: PreprocessParams,
    template: Template,
    standard: Sequence[float] = (),
) -> list[Result]:
    """Mask, register, resample, normalize and measure scans; write their files into ``out``.

    They are registered together; an unusable one costs the others nothing. Where one fails quality
    control, its alternates are tried, one after another. ``standard`` are the standard landmarks,
    which nyul needs. Raises UsageError where a scan cannot be read for no fault of its own.
    """

    def attempt(jobs: Sequence[Job]) -> list[Result]:
        return _attempt(jobs, out, params, template, standard)

    # A result that a kill leaves behind must not count before the alternates had their turn.
    first = attempt([replace(job, key=UNDECIDED) if job.alternates else job for job in jobs])
    return [
        _with_stand_in(job, result, attempt, out, params) if job.alternates else result
        for job, result in zip(jobs, first, strict=True)
    ]


def _with_stand_in(
    job: Job,
    first: Result,
    attempt: Callable[[Sequence[Job]], list[Result]],
    out: Path,
    params: PreprocessParams,
) -> Result:
    """Return the result of the first usable image, that of the scan's own where none is."""

    def usable(result: Result) -> bool:
        return not (result.reason or quality.judge(result.measures, params.quality))

    own = replace(job, key=UNDECIDED, alternates=())
    result, tried = first, [own]
    if not usable(first) and change_since_ingest(own):
        return first
    for other in job.alternates:
        if not usable(result):
            tried.append(replace(own, path=other.path, sha256=other.sha256))
            result = attempt(tried[-1:])[0]
    if not usable(result):
        result = attempt([own])[0]
    # What is made without an image that ingest saw is not kept for good: it may come back.
    if any(change_since_ingest(each) for each in tried):
        return result
    return _keep(job, replace(result, key=job.key), out, Layout.of(params))


def _attempt(
    jobs: Sequence[Job],
    out: Path,
    params: PreprocessParams,
    template: Template,
    standard: Sequence[float],
) -> list[Result]:
    results: dict[Job, Result] = {}
    opened: dict[Job, _Opened] = {}
    layout = Layout.of(params)
    for job in jobs:
        of_others = (layout.of_contrast(each.contrast) for each in job.further)
        for name in (*reversed(layout.files), *itertools.chain.from_iterable(of_others)):
            (out / name.format(job.stem)).unlink(missing_ok=True)
        (out / job.stem).parent.mkdir(parents=True, exist_ok=True)
        # The key speaks of the image as ingest saw it. What another image gives must not be kept
        # under it: the right one may come back.
        seen = stamp(job.path)
        if (change := change_since_ingest(job)) is not None:
            results[job] = Result(job.key, change)
            continue
        try:
            opened[job] = _open(job.path, params)
        except UnusableScanError as unusable:
            if stamp(job.path) == seen:
                results[job] = _keep(job, Result(job.key, str(unusable)), out, layout)
        if stamp(job.path) != seen:
            opened.pop(job, None)
            results[job] = Result(job.key, CHANGING)
    placed = place(
        [scan.brain for scan in opened.values()],
        [scan.intensities for scan in opened.values()],
        params,
        template,
    )
    for (job, scan), (placement, brain) in zip(opened.items(), placed, strict=True):
        try:
            result = _finish(job, scan, brain, placement, out, params, template, standard)
        except UnusableScanError as unusable:
            result = Result(job.key, str(unusable))
        results[job] = _keep(job, result, out, layout)
    return [results[job] for job in jobs]


def change_since_ingest(job: Job) -> str | None:
    """Return how the files differ from what ingest saw, in words; None when they do not."""
    changes = [f"{each.contrast}: {why}" for each in job.further if (why := _change(each))]
    return _change(job) or next(iter(changes), None)


def _change(image: Job | Further) -> str | None:
    if not image.path.exists():
        return "the file is gone: run ingest again, or bring it back"
    with _reading(image.path):
        changed = hash_file(image.path) != image.sha256
    return "the file has changed since ingest: run ingest again" if changed else None


def brain_histogram(
    path: Path, params: PreprocessParams
) -> tuple[list[float], float, float] | None:
    """Return landmarks, mean and standard deviation of a brain's intensities, for Nyúl's scale.

    None where the scan shows no brain; `preprocess_scans` says why. Raises UsageError where it
    cannot be read for no fault of its own.
    """
    try:
        with _reading(path):
            scan = read_scan(path)
        brain = _as_delivered(find_brain(scan, params), params)
    except UnusableScanError:
        return None
    values = brain.head.values[brain.inside].astype(np.float64)
    if values.size == 0 or values.std() == 0:
        return None
    return intensity.landmarks(values).tolist(), float(values.mean()), float(values.std())


def _keep(job: Job, result: Result, out: Path, layout: Layout) -> Result:
    made = replace(result, sha256=result.sha256 or job.sha256)
    record = asdict(made)
    if not record["further"]:
        del record["further"]
    write_json(out / layout.result.format(job.stem), record)
    return made


def read_result(record: Mapping[str, Any]) -> Result:
    """Return the result of which a scan's ``.json`` tells. Raises TypeError."""
    others = {name: FurtherResult(**each) for name, each in record.get("further", {}).items()}
    return Result(**{**record, "further": others})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UsageError where a disk or permissions keep a file from being read: no scan's fault."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Fix the disk or the permissions, then run "
            "the same command again; finished scans are kept."
        ) from error


def _open(path: Path, params: PreprocessParams) -> _Opened:
    with _reading(path):
        image, gaps = read_with_gaps(path)
    brain = find_brain(image, params)
    return _Opened(image, brain, brain.intensities(), gaps)


def _as_delivered(brain: Brain, params: PreprocessParams) -> Brain:
    """Return the brain with its shading, unless the volume is to be without."""
    return brain if params.bias_correction == "n4" else brain.as_scanned()


def _finish(
    job: Job,
    scan: _Opened,
    brain: Brain,
    placement: Placement,
    out: Path,
    params: PreprocessParams,
    template: Template,
    standard: Sequence[float],
) -> Result:
    quality.check_gaps(scan.image, scan.gaps, brain)
    grid, brain = params.grid, _as_delivered(brain, params)
    resampled = _resample(scan.image, brain, placement, grid)
    measures = quality.measure(
        scan.image,
        brain,
        placement,
        template,
        mask_ml=_volume_ml(resampled.points, placement, grid),
    )
    files = (out / name.format(job.stem) for name in Layout.of(params).files)
    *warps, volume, transform, png, _ = files
    if placement.warp is not None:
        forward, inverse = warps
        write_warp(forward, inverse, placement.warp)
    write_volume(
        volume,
        _normalize(resampled, _as_delivered(scan.brain, params), params, standard),
        resampled.mask,
        grid,
    )
    write_affine(transform, placement.to_scan)
    mask = Image(resampled.mask.astype(np.float32), grid.affine)
    picture.write(png, scan.image, placement, mask=mask, depth=template.depth)
    drawn = sketch(open_volume(volume, grid))
    others = {
        each.contrast: _finish_further(
            each, job.stem, brain, placement, resampled.mask, out, params
        )
        for each in job.further
    }
    return Result(job.key, None, job.sha256, hash_file(volume), measures, drawn, others)


def _finish_further(
    image: Further,
    stem: str,
    brain: Brain,
    placement: Placement,
    mask: Mask,
    out: Path,
    params: PreprocessParams,
) -> FurtherResult:
    """Write the volume, picture and transform of a further contrast, within the brain ``mask`` that
    the T1w image shows on the grid."""
    files = (out / name.format(stem) for name in Layout.of(params).of_contrast(image.contrast))
    volume, png, transform = files
    grid = params.grid
    try:
        with _reading(image.path):
            scan, gaps = read_with_gaps(image.path)
        device = torch.device(params.device)
        found = coregister(brain, scan, params.registration_spacing, device)
        quality.check_gaps(scan, gaps, brain, found.to_other)
        whole = placement.then(found.to_other)
        values, seen = _resample_further(scan, brain, found.to_other, whole, mask, params)
    except UnusableScanError as unusable:
        return FurtherResult(str(unusable))
    write_volume(volume, intensity.zscore(values, seen), seen, grid)
    write_affine(transform, found.to_other)
    picture.write_further(png, scan, whole, t1w=brain.head, of_t1w=placement)
    return FurtherResult(None, hash_file(volume), found.measures)


def _resample_further(
    scan: Image,
    brain: Brain,
    to_other: Matrix,
    placement: Placement,
    mask: Mask,
    params: PreprocessParams,
) -> tuple[NDArray[np.float32], Mask]:
    """Return a further contrast on the grid, and the brain as far as it shows it.

    Raises UnusableScanError where it shows nothing of it.
    """
    grid, seen = params.grid, mask.copy()
    points = placement.in_scan(apply_affine(grid.affine, np.argwhere(mask)))
    in_view = quality.in_view(scan, points)
    seen[mask] = in_view
    values = np.zeros(grid.shape, np.float32)
    if seen.sum() > 1:
        # The one interpolation, as of the T1w image.
        values[seen] = interpolate(antialias(scan, grid.spacing), points[in_view])
        if params.bias_correction != "none":
            log_bias = shading_of(scan, brain, to_other)
            values[seen] /= bias.bias_at(log_bias, points[in_view])
    if seen.sum() < 2 or values[seen].std() == 0:
        raise UnusableScanError("it shows nothing of the brain that the T1w image shows")
    return values, seen


def _resample(scan: Image, brain: Brain, placement: Placement, grid: Grid) -> _Resampled:
    """Bring the brain onto the grid. Raises UnusableScanError where nothing of it lies there."""
    mask = brain_mask(brain, grid.affine, grid.shape, placement)
    voxels = np.argwhere(mask)
    points = placement.in_scan(apply_affine(grid.affine, voxels))
    in_view = quality.in_view(scan, points)
    mask[mask] = in_view
    if mask.sum() < 2:
        raise UnusableScanError("registration failed: the brain does not lie in the standard box")
    values = np.zeros(grid.shape, np.float32)
    # The one interpolation: from the scan as it was stored to the standard grid.
    values[mask] = interpolate(antialias(scan, grid.spacing), points[in_view])
    if brain.log_bias is not None:
        shading = bias.bias_at(brain.log_bias, points[in_view])
        values[mask] = (values[mask] - brain.zero) / shading + brain.zero
    if values[mask].std() == 0:
        raise UnusableScanError("empty: the brain is uniform")
    return _Resampled(values, mask, apply_affine(grid.affine, voxels))


def _volume_ml(points: NDArray[np.float64], placement: Placement, grid: Grid) -> float:
    """Return the volume of a brain in the scan, ml, from its voxels (n, 3) in mm of MNI space."""
    ml = len(points) * grid.spacing**3 / 1000 * abs(np.linalg.det(placement.to_scan))
    return float(ml if placement.warp is None else ml * placement.warp.growth(points))


def _normalize(
    resampled: _Resampled, brain: Brain, params: PreprocessParams, standard: Sequence[float]
) -> NDArray[np.float32]:
    values, mask = resampled.values, resampled.mask
    if params.normalization == "whitestripe":
        return intensity.whitestripe(values, mask)
    if params.normalization == "nyul":
        own = intensity.landmarks(brain.head.values[brain.inside])
        return intensity.nyul(values, mask, own=own, standard=standard)
    return intensity.zscore(values, mask)
