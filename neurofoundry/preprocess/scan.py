"""What happens to a scan: one at a time, or several that are registered together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from neurofoundry.contracts.volumes import write_volume
from neurofoundry.errors import UsageError
from neurofoundry.preprocess import bias, brain, intensity, picture, quality, registration
from neurofoundry.preprocess.extractor import extract
from neurofoundry.preprocess.load import UnusableScanError, read
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import (
    Array,
    Image,
    Mask,
    Matrix,
    antialias,
    coarsen,
    interpolate,
    look_up,
    resample,
)
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.transform import write_affine, write_warp
from neurofoundry.preprocess.warp import Warp
from neurofoundry.preprocess.warp import register as register_warps
from neurofoundry.runtime.files import hash_file, write_json

OUTPUTS = ("{}.nii", "{}_to-mni.txt", "{}.png", "{}.json")
"""Files of a scan; the last one is written last and holds the scan's ``Result``."""
WARPS = ("{}_warp.nii.gz", "{}_inverse-warp.nii.gz")
"""Further files of a scan that syn has registered, written before the others."""


@dataclass(frozen=True)
class Job:
    """A scan that is to be done."""

    path: Path
    scan_id: str
    sha256: str
    """Of the image, as ingest saw it."""
    key: str
    """Hash of everything the scan's files depend on."""


@dataclass(frozen=True)
class Result:
    """What is known about a scan when it is done. Contains no time: it is the same every run."""

    key: str
    """Of the job."""
    reason: str | None
    """Why nothing could be made of the scan; None when something was, whatever its quality."""
    volume_sha256: str | None = None
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Brain:
    """A brain as the scan alone shows it."""

    head: Image
    """As registration needs it, without shading."""
    inside: Mask
    """The brain's voxels of ``head``."""
    surface: Array
    """Vertices of the brain's surface, mm."""
    mask: Image | None
    """In the scan, where it is known better than by the surface."""
    field: Image | None
    """Logarithm of the shading that was removed."""


@dataclass(frozen=True)
class _Head:
    """A scan before it is registered."""

    scan: Image
    found: _Brain
    intensities: Image
    """The brain alone, 0..1."""
    centre: Array
    """Its centroid, mm."""


def outputs(registration: str) -> tuple[str, ...]:
    """The files of a scan, the last one last."""
    return (*WARPS, *OUTPUTS) if registration == "syn" else OUTPUTS


def preprocess_scans(
    jobs: Sequence[Job],
    *,
    out: Path,
    params: PreprocessParams,
    template: Template,
    standard: Sequence[float] = (),
) -> list[Result]:
    """Mask, register, resample, normalize and measure scans; write their files into ``out``.

    They are registered together; one that is unusable costs the others nothing. ``standard`` are
    the standard landmarks of nyul, which needs them.
    """
    results: dict[Job, Result] = {}
    heads: dict[Job, _Head] = {}
    for job in jobs:
        for name in reversed((*WARPS, *OUTPUTS)):
            (out / name.format(job.scan_id)).unlink(missing_ok=True)
        # The key speaks of the image as ingest saw it. What another image gives must not be kept
        # under it: the right one may come back.
        if (fault := not_as_ingested(job)) is not None:
            results[job] = Result(job.key, fault)
            continue
        try:
            heads[job] = _open(job.path, params)
        except UnusableScanError as unusable:
            results[job] = _keep(job, Result(job.key, str(unusable)), out)
    placed = _place(list(heads.values()), params, template)
    for (job, head), (affine, warp) in zip(heads.items(), placed, strict=True):
        try:
            result = _finish(job, head, affine, warp, out, params, template, standard)
        except UnusableScanError as unusable:
            result = Result(job.key, str(unusable))
        results[job] = _keep(job, result, out)
    return [results[job] for job in jobs]


def not_as_ingested(job: Job) -> str | None:
    """In words, how the file differs from what ingest saw; None when it does not."""
    if not job.path.exists():
        return "the file is gone: run ingest again, or bring it back"
    with _reading(job.path):
        changed = hash_file(job.path) != job.sha256
    return "the file has changed since ingest: run ingest again" if changed else None


def _keep(job: Job, result: Result, out: Path) -> Result:
    write_json(out / OUTPUTS[-1].format(job.scan_id), asdict(result))
    return result


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises UsageError where a disk or rights keep a file from being read: no scan's fault."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Mend the disk or the permissions, then run "
            "the same command again; finished scans are kept."
        ) from error


def brain_histogram(
    path: Path, params: PreprocessParams
) -> tuple[list[float], float, float] | None:
    """Landmarks, mean and standard deviation of a brain's intensities, for the standard scale.

    None where the scan shows no brain; what is wrong with it is for `preprocess_scans` to say.
    Raises UsageError where it cannot be read for no fault of its own.
    """
    try:
        with _reading(path):
            scan = read(path)
        found = _find_brain(scan, params)
    except UnusableScanError:
        return None
    values = found.head.values[found.inside].astype(np.float64)
    if values.size == 0 or values.std() == 0:
        return None
    return intensity.landmarks(values).tolist(), float(values.mean()), float(values.std())


def _open(path: Path, params: PreprocessParams) -> _Head:
    with _reading(path):
        scan = read(path)
    found = _find_brain(scan, params)
    return _Head(scan, found, *_scale(found))


def _place(
    heads: Sequence[_Head], params: PreprocessParams, template: Template
) -> list[tuple[Matrix, Warp | None]]:
    """Affine maps from mm of the template to mm of each scan, and the warps of syn before them."""
    if not heads:
        return []
    device = torch.device(params.device)
    brains, centres = [head.intensities for head in heads], [head.centre for head in heads]
    affines = registration.register(brains, centres, template.levels, template.centre, device)
    if params.registration != "syn":
        return [(affine, None) for affine in affines]
    moving = [
        _straighten(head.found, affine, template)
        for head, affine in zip(heads, affines, strict=True)
    ]
    return list(zip(affines, register_warps(template.fine, moving, device), strict=True))


def _finish(
    job: Job,
    head: _Head,
    affine: Matrix,
    warp: Warp | None,
    out: Path,
    params: PreprocessParams,
    template: Template,
    standard: Sequence[float],
) -> Result:
    scan, found = head.scan, head.found
    to_scan = affine
    if params.registration == "rigid":
        to_scan = registration.closest_rigid(affine, template.centre)
    to_template = np.linalg.inv(affine) @ to_scan

    grid = params.grid
    depth = resample(template.depth, grid.affine, grid.shape, transform=to_template, outside=-100)
    mask = _inside(found, depth, to_scan, warp)
    voxels = apply_affine(grid.affine, np.argwhere(mask))
    points = apply_affine(to_scan, voxels if warp is None else warp(voxels))
    in_view = quality.in_view(scan, points)
    seen = mask.copy()
    seen[mask] = in_view
    values = np.zeros(grid.shape, np.float32)
    # The one interpolation: from the scan as it was stored to the standard grid.
    values[seen] = interpolate(antialias(scan, grid.spacing), points[in_view])
    if found.field is not None:
        values[seen] /= bias.field_at(found.field, points[in_view])
    if found.mask is None:
        background = float(np.percentile(found.head.values, 2))
        mask &= ~brain.rim(values, seen, depth.values, background, grid.spacing)
    voxels = apply_affine(grid.affine, np.argwhere(mask))  # of the brain, in view or not
    ml = len(voxels) * grid.spacing**3 / 1000 * abs(np.linalg.det(to_scan))
    mask &= seen
    if mask.sum() < 2:
        raise UnusableScanError("registration failed: the brain does not lie in the standard box")
    values[~mask] = 0
    if values[mask].std() == 0:
        raise UnusableScanError("empty: the brain is uniform")

    measures = quality.measure(
        scan,
        found.head,
        head.intensities,
        surface=found.surface,
        affine=affine,
        to_scan=to_scan,
        mask_ml=ml if warp is None else ml * warp.growth(voxels),
        template=template,
        jacobian=None if warp is None else warp.jacobian(),
    )
    volume, transform, image = (out / name.format(job.scan_id) for name in OUTPUTS[:-1])
    if warp is not None:
        forward, inverse = (out / name.format(job.scan_id) for name in WARPS)
        write_warp(forward, inverse, warp)
    write_volume(volume, _normalize(values, mask, found, params, standard), mask, grid)
    write_affine(transform, to_scan)
    picture.write(
        image,
        scan,
        to_scan,
        mask=Image(mask.astype(np.float32), grid.affine),
        depth=template.depth,
        to_template=to_template,
        warp=warp,
    )
    return Result(job.key, None, hash_file(volume), measures)


def _find_brain(scan: Image, params: PreprocessParams) -> _Brain:
    background = float(scan.values.min())
    spacing = min(brain.SPACING_MM, params.registration_spacing)
    head = coarsen(scan, spacing, outside=background)
    mask = extract(scan, params.mask) if params.mask is not None else brain.stripped(scan)
    if mask is None:
        surface = brain.find_surface(coarsen(head, brain.SPACING_MM, outside=background))
        inside = brain.fill(surface, head.affine, head.values.shape)
    else:
        surface = brain.wrap(mask)
        inside = resample(mask, head.affine, head.values.shape).values > 0.5
    if params.bias_correction == "none":
        return _Brain(head, inside, surface, mask, None)
    field = bias.estimate(head, inside)
    return _Brain(bias.correct(head, field), inside, surface, mask, field)


def _inside(found: _Brain, depth: Image, to_scan: Matrix, warp: Warp | None = None) -> Mask:
    """The brain on the grid of ``depth``, the signed distance to the template's edge there."""
    if found.mask is None:
        surface = apply_affine(np.linalg.inv(to_scan), found.surface)
        filled = brain.fill(
            warp.back(surface) if warp else surface, depth.affine, depth.values.shape
        )
        return brain.correct(filled, depth.values)
    if warp is None:
        values = resample(found.mask, depth.affine, depth.values.shape, transform=to_scan).values
        return values > 0.5
    voxels = np.moveaxis(np.indices(depth.values.shape), 0, -1).reshape(-1, 3)
    points = apply_affine(to_scan, warp(apply_affine(depth.affine, voxels)))
    return (look_up(found.mask, points) > 0.5).reshape(depth.values.shape)


def _scale(found: _Brain) -> tuple[Image, Array]:
    """The brain alone with intensities 0..1, and its centroid (mm)."""
    head, inside = found.head, found.inside
    if not inside.any():
        raise UnusableScanError("no brain: the surface that should hold it is empty")
    low, high = np.percentile(head.values, 2), np.percentile(head.values[inside], 99.5)
    if high <= low:
        raise UnusableScanError("no brain: what should be it is as dark as the background")
    values = ((head.values - low) / (high - low)).clip(0, 1) * inside
    centre = apply_affine(head.affine, np.argwhere(inside).mean(axis=0))
    return Image(values.astype(np.float32), head.affine), centre


def _straighten(found: _Brain, affine: Matrix, template: Template) -> Image:
    """The scan's brain on the template's grid, 0..1, by the affine map alone."""
    fine = template.fine
    shape = fine.values.shape
    mask = _inside(found, resample(template.depth, fine.affine, shape, outside=-100), affine)
    head = resample(found.head, fine.affine, shape, transform=affine).values
    low = np.percentile(found.head.values, 2)
    high = np.percentile(found.head.values[found.inside], 99.5)
    moving = ((head - low) / (high - low)).clip(0, 1) * mask
    return Image(moving.astype(np.float32), fine.affine)


def _normalize(
    values: NDArray[np.float32],
    mask: Mask,
    found: _Brain,
    params: PreprocessParams,
    standard: Sequence[float],
) -> NDArray[np.float32]:
    if params.normalization == "whitestripe":
        return intensity.whitestripe(values, mask)
    if params.normalization == "nyul":
        own = intensity.landmarks(found.head.values[found.inside])
        return intensity.nyul(values, mask, found=own, standard=standard)
    return intensity.zscore(values, mask)
