"""The largest gap between groups of persons, and what of it chance would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurofoundry.stats.intervals import LEVEL, NORMAL
from neurofoundry.stats.metrics import Values

DRAWS = 4000

Ends = Callable[[float], Sequence[tuple[float, float]]]
"""The interval of every group, so many standard errors wide."""


@dataclass(frozen=True)
class Gap:
    """The largest difference between two of several groups."""

    lowest: int
    highest: int
    """Places of the two groups."""
    observed: float
    by_chance: float
    """What chance alone gives on average (root of the mean square) if no group differs."""
    value: float
    """The observed gap less what chance gives: √(observed² − by_chance²), 0 at least."""
    low: float
    high: float
    """Of the true largest gap, 95 %."""


def largest_gap(values: Sequence[float], ends: Ends) -> Gap:
    """Return the largest gap between independent groups, of their values and intervals.

    The largest of several noisy differences is larger than the true one, so that it is neither
    reported bare nor with the interval of one difference. The intervals of all pairs hold together:
    they are as many standard errors wide as all pairs stay within in 95 % of normal draws (Tukey's
    method for unequal errors), each combined from those of its groups (Zou & Donner, Statistics in
    Medicine 27, 2008). The largest of their lower ends, and of their upper ones, then hold the true
    largest gap between them.
    """
    theta = np.asarray(values, float)
    errors = np.array([(high - low) / 2 / NORMAL for low, high in ends(NORMAL)])
    one, two = np.triu_indices(len(theta), 1)
    drawn = np.random.default_rng(0).normal(size=(DRAWS, len(theta))) * errors
    apart = np.abs(drawn[:, one] - drawn[:, two])
    by_chance = float(np.sqrt((apart.max(axis=1) ** 2).mean()))
    scaled = (apart / np.maximum(1e-12, np.hypot(errors[one], errors[two]))).max(axis=1)
    low, high = np.array(ends(float(np.quantile(scaled, LEVEL)))).T
    below, above = _together(theta, low, high, one, two)
    observed = float(np.ptp(theta))
    return Gap(
        lowest=int(theta.argmin()),
        highest=int(theta.argmax()),
        observed=observed,
        by_chance=by_chance,
        value=float(np.sqrt(max(0.0, observed**2 - by_chance**2))),
        low=max(0.0, float(np.maximum(below, -above).max())),
        high=float(np.maximum(above, -below).max()),
    )


def _together(
    theta: Values, low: Values, high: Values, one: NDArray[np.intp], two: NDArray[np.intp]
) -> tuple[Values, Values]:
    """Return the ends of the interval of the difference of each pair of groups."""
    difference = theta[one] - theta[two]
    below = np.hypot(theta[one] - low[one], high[two] - theta[two])
    above = np.hypot(high[one] - theta[one], theta[two] - low[two])
    return difference - below, difference + above
