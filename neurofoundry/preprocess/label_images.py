"""Carries label images to the standard grid, once, with the transform of their scan, and back what
a network finds there.

A voxel of the grid gets the class that has the largest share, the background's included, of where
its centre lies between the voxels of the label image (trilinear). Unlike the scan, shares are not
smoothed to the grid's resolution first: that would shrink what is convex, and small lesions most
(docs/decisions/segmentation.md). What lies mostly beside the brain is not carried: networks see
nothing there, and it is most likely of another scan, turned or inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts.cohort import SCANS, scan_path
from neurofoundry.contracts.labels import (
    CARRIED,
    FILE,
    LABELS,
    TABLE,
    classify,
    geometry,
    read_labels,
    read_placed,
    write_classes,
)
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import DAMAGED, Grid, open_volume
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import Placement
from neurofoundry.preprocess.resample import Image, Matrix, look_up, resample
from neurofoundry.preprocess.transform import read_affine, read_warp
from neurofoundry.runtime.files import hash_file, stamp
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.progress import Progress

ROUNDING = 1e-6
"""By how much a share must be larger than another to count."""

MOST_OUTSIDE = 0.5
"""Share of what is outlined that may lie beside the brain, by more than a voxel of the grid."""
_LOOKED_AT = 10_000
"""Outlined voxels, spread evenly, that stand for all of a label image."""
_SLAB = 1 << 20
"""Voxels of a scan that are looked at once."""
_NEAR = 2
"""Voxels of the grid around what is found: one to interpolate, one for the error of an inverse."""


CHANGED = "the label image has changed since ingest: run ingest again"


@dataclass(frozen=True)
class _Job:
    """A label image to carry."""

    task: str
    scan_id: str
    stem: str
    """How the names of the scan's files begin (layout.py)."""
    values: str
    label: Path
    sha256: str
    """Of the label image, as ingest saw it."""
    scan: Path
    """The image of its scan."""
    volume: str
    """The scan on the grid."""
    problem: str | None
    """Why it cannot be carried, as far as the tables tell."""


@dataclass(frozen=True)
class _Carried:
    label_sha256: str | None
    grid_ml: float
    voxel_ml: float
    reason: str | None


def carry(
    table: pd.DataFrame,
    folder: Path,
    *,
    data: Path,
    cohort: Path,
    params: PreprocessParams,
    workers: int,
) -> pd.DataFrame:
    """Write the label images of the scans of ``table`` (volumes/scans.tsv), and labels.tsv; return
    the table without what could not be carried.

    ``folder`` has the transforms of the scans.
    """
    labels = read_labels(cohort, LABELS)
    labels = labels[labels["scan_id"].isin(table["scan_id"])].reset_index(drop=True)
    volume = Layout.of(params).volume.format("")
    jobs = _jobs(labels, table, volume, data=data, cohort=cohort)
    carried = list(_carry_all(jobs, partial(_carry, folder=folder, params=params), workers))
    labels = labels.assign(
        label_sha256=pd.Series([each.label_sha256 for each in carried], dtype=object),
        grid_ml=pd.Series([each.grid_ml for each in carried], dtype=float),
        voxel_ml=pd.Series([each.voxel_ml for each in carried], dtype=float),
        reason=pd.Series([each.reason for each in carried], dtype=object),
    )
    write_table(labels, folder / TABLE, CARRIED)
    return _without(table, labels[labels["reason"].notna()])


def passing(folder: Path) -> int:
    """Count the label images that were not carried and that the next run may carry."""
    return int((read_labels(folder, CARRIED)["reason"] == CHANGED).sum())


def _carry_all(
    jobs: Sequence[_Job], carry: Callable[[_Job], _Carried], workers: int
) -> Iterator[_Carried]:
    """Yield what becomes of each job, in their order."""
    if not jobs:
        return
    with (
        Progress("carry label images", len(jobs), unit="images") as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        for each in pool.map(carry, jobs):
            yield each
            progress.advance(failed=each.reason is not None)


def _without(table: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """Return the scans without the label images that are ``lost``, and log how many are."""
    table = table.copy()
    for task, rows in lost.groupby("task"):
        table.loc[table["scan_id"].isin(rows["scan_id"]), task] = None
        LOGGER.warning(
            "task '%s': %d label images could not be carried; labels.tsv says why.", task, len(rows)
        )
    return table


def _jobs(
    labels: pd.DataFrame, table: pd.DataFrame, volume: str, *, data: Path, cohort: Path
) -> list[_Job]:
    """Return a job for each label image; ``volume`` is how the names of all volumes end."""
    rows: list[dict[Any, Any]] = table.to_dict("records")
    scans = {row["scan_id"]: row for row in rows}
    ingested = read_table(cohort / "scans.tsv", SCANS).set_index("scan_id")["sha256"]
    jobs = []
    for label in labels.to_dict("records"):
        scan = scans[label["scan_id"]]
        problem = None
        if not isinstance(scan["volume_sha256"], str):
            problem = "the scan has no volume"
        elif scan["sha256"] != ingested[label["scan_id"]]:
            problem = "another image of the session stands in for the one that was labelled"
        jobs.append(
            _Job(
                task=label["task"],
                scan_id=label["scan_id"],
                stem="" if problem else str(scan["volume"]).removesuffix(volume),
                values=label["values"],
                label=data / label["path"],
                sha256=label["sha256"],
                scan=scan_path(scan, data=data, cohort=cohort),
                volume=str(scan["volume"]),
                problem=problem,
            )
        )
    return jobs


def _carry(job: _Job, folder: Path, params: PreprocessParams) -> _Carried:
    """Write one label image on the grid."""
    if job.problem:
        return _Carried(None, np.nan, np.nan, job.problem)
    if (classes := _read(job)) is None:
        return _Carried(None, np.nan, np.nan, CHANGED)
    placement = read_placement(folder, job.stem, params)
    # The label image has the voxels of the scan: what little its own affine differs is rounding.
    _, affine = geometry(job.scan)
    brain = open_volume(folder / job.volume, params.grid).transpose(2, 1, 0) != 0
    outside = _outside(classes, affine, placement, brain, params.grid)
    if outside > MOST_OUTSIDE:
        why = f"{outside:.0%} of what it outlines lies outside the brain mask, expected "
        why += f"{MOST_OUTSIDE:.0%} at most: is it of this scan, and not turned or inverted?"
        return _Carried(None, np.nan, np.nan, why)
    on_grid = to_grid(classes, affine, placement, params.grid)
    path = folder / FILE.format(scan_id=job.scan_id, task=job.task)
    write_classes(path, on_grid, params.grid.affine)
    voxel_ml = params.grid.spacing**3 / 1000 * float(abs(np.linalg.det(placement.to_scan)))
    grid_ml = round(np.count_nonzero(on_grid) * voxel_ml, 4)
    return _Carried(hash_file(path), grid_ml, voxel_ml, None)


def _outside(
    classes: NDArray[np.uint8],
    affine: Matrix,
    placement: Placement,
    brain: NDArray[np.bool_],
    grid: Grid,
) -> float:
    """Return which share of the outlined voxels of a scan lies beside its ``brain`` on the grid, by
    more than a voxel of the grid."""
    outlined = np.argwhere(classes)
    some = outlined[:: 1 + len(outlined) // _LOOKED_AT]
    points = placement.in_mni(apply_affine(affine, some))
    near = ndimage.binary_dilation(brain).astype(np.uint8)
    at = apply_affine(np.linalg.inv(grid.affine), points)
    found = ndimage.map_coordinates(near, at.T, order=0, mode="constant")
    return 1 - float(found.mean()) if len(some) else 0.0


def _read(job: _Job) -> NDArray[np.uint8] | None:
    """Return the classes of a label image; None where it is not, or no more, what ingest saw."""
    seen = stamp(job.label)
    if seen is None or hash_file(job.label) != job.sha256:
        return None
    try:
        classes = classify(read_placed(job.label).voxels, job.values)
    except (OSError, *DAMAGED):
        if stamp(job.label) == seen:
            raise
        return None
    return classes if stamp(job.label) == seen else None


def read_placement(folder: Path, stem: str, params: PreprocessParams) -> Placement:
    """Read the transform that preprocess has found for a scan whose files' names begin so."""
    layout = Layout.of(params)
    to_scan = read_affine(folder / layout.transform.format(stem))
    warp = None
    if layout.warps:
        forward, inverse = (folder / name.format(stem) for name in layout.warps)
        warp = read_warp(forward, inverse)
    return Placement(to_scan, to_scan, warp)


def to_grid(
    classes: NDArray[np.uint8], affine: Matrix, placement: Placement, grid: Grid
) -> NDArray[np.uint8]:
    """Return the classes (x, y, z) of a scan, whose voxels ``affine`` takes to mm, on the grid."""
    best = np.zeros(grid.shape, np.uint8)
    if not classes.any():
        return best
    shares = {
        number: _share(classes == number, affine, placement, grid)
        for number in np.unique(classes[classes > 0]).tolist()
    }
    most = 1 - sum(shares.values(), np.zeros(grid.shape, np.float32))
    for number, share in shares.items():
        more = share > most + ROUNDING
        best[more], most[more] = number, share[more]
    return best


def _share(
    inside: NDArray[np.bool_], affine: Matrix, placement: Placement, grid: Grid
) -> NDArray[np.float32]:
    """Return which share of its place at each voxel of the grid is ``inside``."""
    image = Image(inside.astype(np.float32), affine)
    if placement.warp is None:
        return resample(image, grid.affine, grid.shape, transform=placement.to_scan).values
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    points = placement.in_scan(apply_affine(grid.affine, voxels))
    return look_up(image, points).reshape(grid.shape)


def to_scan(
    shares: NDArray[np.float32],
    placement: Placement,
    grid: Grid,
    affine: Matrix,
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Return the classes of the voxels of a scan, which ``affine`` takes to mm: `to_grid` reversed.

    ``shares`` (1 + classes, x, y, z) are those of the background and of each class on the grid,
    which add up to 1. They are interpolated at the centre of each voxel, and the largest counts: an
    outline then runs between the voxels of the grid, where that of interpolated classes would have
    their corners.
    """
    classes = np.zeros(shape, np.uint8)
    low, high = _reach(shares, placement, grid, affine, shape)
    if (low >= high).any():
        return classes
    to_grid_voxels = np.linalg.inv(grid.affine)
    rows = max(1, _SLAB // int(np.prod((high - low)[1:])))
    for first in range(low[0], high[0], rows):
        slab = (slice(first, min(first + rows, high[0])), *map(slice, low[1:], high[1:]))
        voxels = np.moveaxis(np.mgrid[slab], 0, -1)
        points = placement.in_mni(apply_affine(affine, voxels.reshape(-1, 3)))
        classes[slab] = _largest(shares, apply_affine(to_grid_voxels, points)).reshape(
            voxels.shape[:3]
        )
    return classes


def _reach(
    shares: NDArray[np.float32],
    placement: Placement,
    grid: Grid,
    affine: Matrix,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners of the box of a scan's voxels beyond which all are background."""
    found = shares[1:].max(axis=0) > shares[0]
    near = ndimage.binary_dilation(found, np.ones((3, 3, 3)), iterations=_NEAR)
    if not near.any():
        return np.zeros(3, np.int64), np.zeros(3, np.int64)
    points = placement.in_scan(apply_affine(grid.affine, np.argwhere(near)))
    voxels = apply_affine(np.linalg.inv(affine), points)
    low = np.clip(np.floor(voxels.min(axis=0)), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(voxels.max(axis=0)) + 1, 0, shape).astype(np.int64)
    return low, high


def _largest(shares: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the class with the largest share ``at`` each of some voxels (n, 3) of the grid, which
    need not be whole."""
    best = np.zeros(len(at), np.uint8)
    most = ndimage.map_coordinates(shares[0], at.T, order=1, cval=1.0)
    for number, share in enumerate(shares[1:], 1):
        here = ndimage.map_coordinates(share, at.T, order=1, cval=0.0)
        more = here > most + ROUNDING
        best[more], most[more] = number, here[more]
    return best
