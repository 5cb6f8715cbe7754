"""Simple morphometry of a preprocessed volume: sizes of the brain, its tissues and its fluid.

A baseline for models of images. Registration is rigid, so that volumes keep their true size;
tissues are separated by brightness, and regions by their coordinates in MNI space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.volumes import Grid, Volumes
from neurofoundry.runtime.progress import Progress
from neurofoundry.stats.metrics import Values

SIZES = (
    *("brain_ml", "width_mm", "length_mm", "height_mm"),
    *("fluid_share", "grey_share", "white_share", "grey_over_white"),
    *("ventricles_ml", "ventricles_share", "rim_fluid_share", "left_temporal", "right_temporal"),
    *("largest_asymmetry", "mean_asymmetry"),
)
"""Tissues are shares of the brain; temporal: share of fluid in a box around the hippocampus.
Asymmetry: of the share of fluid in blocks of 12 mm, left minus right."""

WORKING_MM = 3.0
"""Voxels are skipped on finer grids: volumes of structures do not need them."""

VENTRICLES = ((-30, 30), (-55, 40), (-8, 32))
TEMPORAL = ((15, 42), (-42, 2), (-32, 0))
"""Boxes in mm of MNI space, (x, y, z); the temporal one is of the right side."""


def measure(volumes: Volumes, scan_ids: Sequence[str]) -> Values:
    """Return the SIZES of scans, (scans, sizes)."""
    sizes = []
    with Progress("morphometry", len(scan_ids), unit="scans") as progress:
        for scan_id in scan_ids:
            sizes.append(sizes_of(volumes.open(scan_id), volumes.grid))
            progress.advance()
    return np.array(sizes)


def sizes_of(volume: NDArray[np.int16], grid: Grid) -> Values:
    """Return the SIZES of a volume, axes (z, y, x), 0 outside the brain."""
    step = max(1, round(WORKING_MM / grid.spacing))
    first = step // 2
    volume = np.asarray(volume[first::step, first::step, first::step])
    brain = volume != 0
    edge = grid.spacing * step
    voxel_ml = edge**3 / 1000
    if not brain.any():
        return np.zeros(len(SIZES))
    low, high = tissue_thresholds(volume[brain])
    fluid, white = brain & (volume < low), brain & (volume >= high)
    extents = [np.ptp(np.flatnonzero(brain.any(axis=other))) for other in ((0, 1), (0, 2), (1, 2))]
    size = brain.sum()
    places = [
        start + grid.spacing * first + edge * np.arange(count)
        for start, count in zip(grid.affine[:3, 3], volume.shape[::-1], strict=True)
    ]
    ventricles = _box(fluid, VENTRICLES, places).sum()
    rim = _rim(brain, max(1, round(6 / edge)))
    (near, far), *rest = TEMPORAL
    temporal = [
        _share(_box(fluid, box, places), _box(brain, box, places))
        for box in (((-far, -near), *rest), ((near, far), *rest))
    ]
    uneven = _asymmetry(fluid, brain, round(12 / edge))
    grey_share = 1 - (fluid.sum() + white.sum()) / size
    return np.array(
        [
            size * voxel_ml,
            *(edge * (extent + 1) for extent in extents),
            fluid.sum() / size,
            grey_share,
            white.sum() / size,
            grey_share * size / max(1, white.sum()),
            ventricles * voxel_ml,
            ventricles / size,
            _share(fluid & rim, rim),
            *temporal,
            uneven.max(initial=0),
            uneven.mean() if len(uneven) else 0,
        ]
    )


def tissue_thresholds(values: NDArray[np.int16]) -> tuple[float, float]:
    """Return the two thresholds between fluid, grey and white matter: those with the largest
    variance between the three (Otsu, IEEE Trans. SMC 9, 1979), on a histogram of 96 bins."""
    ends = np.quantile(values, [0.002, 0.998])
    counts, edges = np.histogram(np.clip(values, *ends), bins=96)
    centres = (edges[1:] + edges[:-1]) / 2
    mass = np.r_[0, np.cumsum(counts)].astype(float)
    moment = np.r_[0, np.cumsum(counts * centres)]

    def between(start: NDArray[np.intp], end: NDArray[np.intp]) -> Values:
        inside = np.maximum(mass[end] - mass[start], 1)
        squares: Values = (moment[end] - moment[start]) ** 2 / inside
        return squares

    first, second = np.triu_indices(97, 1)
    last = np.full_like(first, 96)
    gain = between(0 * first, first) + between(first, second) + between(second, last)
    best = int(gain.argmax())
    return float(edges[first[best]]), float(edges[second[best]])


def _rim(brain: NDArray[np.bool_], depth: int) -> NDArray[np.bool_]:
    """Return the part of the brain from which ``depth`` voxels along some axis lead out of it."""
    deep = brain.copy()
    for axis in range(3):
        for way in (depth, -depth):
            deep &= np.roll(brain, way, axis)
    return brain & ~deep


def _box(
    mask: NDArray[np.bool_], box: Sequence[tuple[float, float]], places: Sequence[Values]
) -> NDArray[np.bool_]:
    x, y, z = (
        slice(*np.searchsorted(place, ends)) for place, ends in zip(places, box, strict=True)
    )
    return mask[z, y, x]


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(part.sum() / max(1, whole.sum()))


def _asymmetry(fluid: NDArray[np.bool_], brain: NDArray[np.bool_], edge: int) -> Values:
    """Return |left − right| of the share of fluid in blocks that are mostly brain on both sides."""
    shape = [count // edge for count in fluid.shape]
    shape[2] -= shape[2] % 2

    def blocks(mask: NDArray[np.bool_]) -> Values:
        # x is centred, so that a block and its mirror image lie on the two sides.
        spare = (mask.shape[2] - shape[2] * edge) // 2
        z, y, x = (count * edge for count in shape)
        part = mask[:z, :y, spare : spare + x]
        sums = part.reshape(shape[0], edge, shape[1], edge, shape[2], edge).sum(axis=(1, 3, 5))
        values: Values = sums.astype(float)
        return values

    of_brain = blocks(brain)
    dark = blocks(fluid) / np.maximum(1, of_brain)
    inside = (of_brain > 0.8 * edge**3) & (of_brain[:, :, ::-1] > 0.8 * edge**3)
    asymmetry: Values = np.abs(dark - dark[:, :, ::-1])[inside]
    return asymmetry
