"""Intensities that mean the same in every scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from neurofoundry.preprocess.resample import Array, Mask

STRIPE = 0.05
"""Share of the brain's voxels on either side of white matter's mode that is the stripe."""
STRIPE_UNIT = 10.0
"""Standard deviations of the stripe that make one unit. The stripe is so narrow that in units of
its own, cerebrospinal fluid would lie beyond what a volume's int16 can hold."""
RARE = 0.2
"""A peak this much lower than the highest is noise, not tissue."""
PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""Landmarks of a histogram (Shah et al., Medical Image Analysis 15 (2011) 267-282)."""
FIT_SCANS = 100
"""Scans from whose landmarks the standard scale is made; more hardly change it."""


def zscore(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Mean 0 and standard deviation 1 within the mask; 0 outside."""
    inside = values[mask].astype(np.float64)
    return _spread((inside - inside.mean()) / inside.std(), mask)


def whitestripe(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """White matter at 0, and the spread of its most typical voxels as the unit; 0 outside.

    Shinohara et al., NeuroImage: Clinical 6 (2014) 9-19, in units of ``STRIPE_UNIT``.
    """
    inside = values[mask].astype(np.float64)
    rank = (inside < white_mode(inside)).mean()
    low, high = np.quantile(inside, [max(rank - STRIPE, 0), min(rank + STRIPE, 1)])
    stripe = inside[(inside >= low) & (inside <= high)]
    spread = stripe.std() or inside.std()
    return _spread((inside - stripe.mean()) / (spread * STRIPE_UNIT), mask)


def nyul(
    values: NDArray[np.float32], mask: Mask, *, found: ArrayLike, standard: ArrayLike
) -> NDArray[np.float32]:
    """The piecewise linear map of the landmarks ``found`` in a scan to the ``standard`` ones.

    Nyúl et al., IEEE Trans. Med. Imaging 19 (2000) 143-150. Beyond the first and the last landmark
    their segment goes on; 0 outside the mask.
    """
    start, target = np.asarray(found, np.float64), np.asarray(standard, np.float64)
    # Two landmarks at the same intensity, as whole numbers have, cannot both be met.
    distinct = np.flatnonzero(np.diff(start, prepend=-np.inf) > 0)
    if len(distinct) < 2:
        return zscore(values, mask)
    start, target = start[distinct], target[distinct]
    inside = values[mask].astype(np.float64)
    slope = np.diff(target) / np.diff(start)
    segment = np.searchsorted(start[1:-1], inside, side="right")
    return _spread(target[segment] + slope[segment] * (inside - start[segment]), mask)


def landmarks(inside: ArrayLike) -> Array:
    """``PERCENTILES`` of the intensities within a brain."""
    return np.percentile(np.asarray(inside, np.float64), PERCENTILES)


def standard_scale(brains: Sequence[tuple[ArrayLike, float, float]]) -> list[float]:
    """Standard landmarks from the landmarks, the mean and the standard deviation of brains.

    Each brain is put to mean 0 and standard deviation 1. The median over brains, where Nyúl et al.
    take the mean: a few scans that are not what they should be do not move it.
    """
    scaled = [(np.asarray(found) - mean) / deviation for found, mean, deviation in brains]
    return [round(float(value), 6) for value in np.median(scaled, axis=0)]


def white_mode(inside: Array) -> float:
    """The intensity of white matter in a T1w brain: the brightest peak of the histogram."""
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
