"""Intensities that mean the same in every scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from neurofoundry.preprocess.resample import Array, Mask

STRIPE = 0.05
"""Share of the brain's voxels that the stripe holds on either side of white matter's mode."""
STRIPE_UNIT = 10.0
"""Standard deviations of the stripe in one unit. The stripe is so narrow that in units of its own,
cerebrospinal fluid would lie beyond what a volume's int16 can hold."""
RARE = 0.2
"""A peak this much lower than the highest is noise, not tissue."""
PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""Landmarks of a histogram (Shah et al., Medical Image Analysis 15 (2011) 267-282)."""
FIT_SCANS = 100
"""Scans that the standard scale is fitted to; more hardly change it."""


def zscore(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Give the mask a mean of 0 and a standard deviation of 1; 0 outside."""
    inside = values[mask].astype(np.float64)
    return _spread((inside - inside.mean()) / inside.std(), mask)


def whitestripe(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Put white matter at 0, in units of the spread of its most typical voxels; 0 outside the mask.

    Shinohara et al., NeuroImage: Clinical 6 (2014) 9-19, in units of ``STRIPE_UNIT``.
    """
    inside = values[mask].astype(np.float64)
    rank = (inside < white_mode(inside)).mean()
    low, high = np.quantile(inside, [max(rank - STRIPE, 0), min(rank + STRIPE, 1)])
    stripe = inside[(inside >= low) & (inside <= high)]
    spread = stripe.std() or inside.std()
    return _spread((inside - stripe.mean()) / (spread * STRIPE_UNIT), mask)


def nyul(
    values: NDArray[np.float32], mask: Mask, *, own: ArrayLike, standard: ArrayLike
) -> NDArray[np.float32]:
    """Map a scan's ``own`` landmarks to the ``standard`` ones, linearly in between.

    Nyúl et al., IEEE Trans. Med. Imaging 19 (2000) 143-150. The first and the last segment go on
    beyond their landmarks; 0 outside the mask.
    """
    start, target = np.asarray(own, np.float64), np.asarray(standard, np.float64)
    # Integer intensities may put two landmarks at one value: they cannot both be met.
    distinct = np.flatnonzero(np.diff(start, prepend=-np.inf) > 0)
    if len(distinct) < 2:
        return zscore(values, mask)
    start, target = start[distinct], target[distinct]
    inside = values[mask].astype(np.float64)
    slope = np.diff(target) / np.diff(start)
    segment = np.searchsorted(start[1:-1], inside, side="right")
    return _spread(target[segment] + slope[segment] * (inside - start[segment]), mask)


def landmarks(inside: ArrayLike) -> Array:
    """Return the ``PERCENTILES`` of the intensities within a brain."""
    percentiles: Array = np.percentile(np.asarray(inside, np.float64), PERCENTILES)
    return percentiles


def standard_scale(brains: Sequence[tuple[ArrayLike, float, float]]) -> list[float]:
    """Return standard landmarks from the landmarks, mean and standard deviation of brains.

    They are the median over brains, each put to mean 0 and standard deviation 1, where Nyúl et al.
    take the mean: a few faulty scans do not move it.
    """
    scaled = [(np.asarray(own) - mean) / deviation for own, mean, deviation in brains]
    return [round(float(value), 6) for value in np.median(scaled, axis=0)]


def white_mode(inside: Array) -> float:
    """Return the intensity of white matter in a T1w brain: the brightest peak of the histogram."""
    low, high = np.percentile(inside, [0.1, 99.9])
    counts, edges = np.histogram(inside, bins=256, range=(low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 4, mode="constant")
    middle, before, after = smooth[1:-1], smooth[:-2], smooth[2:]
    peaks = 1 + np.flatnonzero(
        (middle >= before) & (middle > after) & (middle > RARE * smooth.max())
    )
    peak = int(peaks[-1]) if len(peaks) else int(smooth.argmax())
    return float((edges[peak] + edges[peak + 1]) / 2)


def _spread(inside: Array, mask: Mask) -> NDArray[np.float32]:
    values = np.zeros(mask.shape, np.float32)
    values[mask] = inside
    return values
