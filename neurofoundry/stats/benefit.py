"""Net benefit: whether to act on a risk does more good than to treat everybody, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofoundry.stats.intervals import NORMAL, mean_with_error, share_interval
from neurofoundry.stats.metrics import Values

THRESHOLDS = np.arange(1, 100) / 100
"""Risks from which one may decide to act."""


@dataclass(frozen=True, eq=False)
class Benefit:
    """Net benefit at each of ``THRESHOLDS``, in true calls a person less what the false ones cost;
    to treat nobody has none."""

    value: Values
    low: Values
    high: Values
    treat_all: Values
    """Of treating everybody."""


def net_benefit(
    sick: NDArray[np.bool_],
    risks: Values,
    persons: NDArray[Any],
    counts: Sequence[int],
    prevalence: float,
    *,
    widening: float = 1.0,
) -> Benefit:
    """Return the net benefit of acting on ``risks`` (seeds, scans) at a prevalence that is known.

    π·sensitivity − (1 − π)·(1 − specificity)·t/(1 − t) at threshold t (Vickers & Elkin, Medical
    Decision Making 26, 2006), a mean over seeds. The intervals are those of the two shares, of the
    persons of each class (``counts``: healthy, ill), combined (Zou & Donner, Statistics in Medicine
    27, 2008); they hold for each threshold, not for all at once. ``widening`` as in `Evidence`.
    """
    odds = THRESHOLDS / (1 - THRESHOLDS)
    called = (risks[:, :, None] >= THRESHOLDS).mean(axis=0)
    found = _shares(called[sick], persons[sick], counts[1], widening)
    alarms = _shares(called[~sick], persons[~sick], counts[0], widening)
    good, harm = prevalence * found, (1 - prevalence) * odds * alarms
    value = good[0] - harm[0]
    below = np.hypot(good[0] - good[1], harm[2] - harm[0])
    above = np.hypot(good[2] - good[0], harm[0] - harm[1])
    treat_all = prevalence - (1 - prevalence) * odds
    return Benefit(value, value - below, value + above, treat_all)


def _shares(hits: Values, persons: NDArray[Any], count: int, widening: float) -> Values:
    """Return shares of scans (scans, thresholds) with the ends of their intervals:
    (3, thresholds)."""
    means, errors = mean_with_error(hits, persons)
    ends = [
        share_interval(float(mean), widening * float(error), "sensitivity", [count], NORMAL)
        for mean, error in zip(means, errors, strict=True)
    ]
    return np.stack([means, *np.array(ends).T])


def useful(benefit: Benefit) -> tuple[float, float] | None:
    """Return the widest range of thresholds over which acting on the risks is shown, at each of
    them, to do better than treating everybody and than treating nobody; None where there is
    none."""
    shown = benefit.low > np.maximum(0, benefit.treat_all)
    edges = np.flatnonzero(np.diff(np.r_[False, shown, False].astype(int)))
    ranges = list(zip(edges[::2], edges[1::2] - 1, strict=True))
    if not ranges:
        return None
    first, last = max(ranges, key=lambda ends: ends[1] - ends[0])
    return float(THRESHOLDS[first]), float(THRESHOLDS[last])
