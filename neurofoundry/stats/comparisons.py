"""Differences between models that predict for the same persons, with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from neurofoundry.stats.intervals import (
    LEVEL,
    NORMAL,
    Estimate,
    Jackknife,
    degrees_of_freedom,
    independent,
    share_interval,
    shown_weight,
)
from neurofoundry.stats.metrics import METRICS, Values
from neurofoundry.stats.scales import LINEAR

POWER = 0.8
"""Of the difference that a study is said to show."""

MOST_QUANTILES = 40.0
"""Standard errors within which the p-value of a difference is looked for."""


def auc_covariance(
    labels: NDArray[np.integer], probabilities: Values, persons: Sequence[str] | NDArray[Any]
) -> tuple[Values, Values]:
    """Return the AUCs of models on the same scans, (models,), and their covariance by formula,
    (models, models).

    ``labels`` (scans,) are indices of classes, ``probabilities`` (models, scans, classes),
    ``persons`` (scans,) whose each scan is. With one scan a person it is the covariance of DeLong
    et al. (Biometrics 44, 1988); with several, whatever their labels, that of Obuchowski
    (Biometrics 53, 1997, equation 3). With more than two classes the AUC is the mean of each
    against the rest, and what a scan adds to it is the mean of what it adds to each.
    """
    models, scans, classes = probabilities.shape
    names, person = np.unique(np.asarray(persons), return_inverse=True)
    areas = np.zeros(models)
    added = np.zeros((models, scans))
    of_interest = [1] if classes == 2 else range(classes)
    for k in of_interest:
        positive = labels == k
        placed = _placements(probabilities[:, :, k], positive)
        area = placed[:, positive].mean(axis=1)
        counts = np.where(positive, positive.sum(), (~positive).sum())
        areas += area / len(of_interest)
        added += (placed - area[:, None]) / counts / len(of_interest)
    by_class = [
        np.stack([np.bincount(person, row * (labels == c), len(names)) for row in added])
        for c in range(classes)
    ]
    covariance = np.zeros((models, models))
    for c, one in enumerate(by_class):
        for d, other in enumerate(by_class):
            drawn = len(names) if c != d else len(np.unique(person[labels == c]))
            covariance += drawn / max(1, drawn - 1) * one @ other.T
    return areas, covariance


def _placements(scores: Values, positive: NDArray[np.bool_]) -> Values:
    """Return for each scan the share of the other class that it is ranked correctly against, ties
    counting half: (models, scans)."""
    ranks = stats.rankdata(scores, axis=1)
    placed = np.empty_like(scores)
    own = stats.rankdata(scores[:, positive], axis=1)
    placed[:, positive] = (ranks[:, positive] - own) / (~positive).sum()
    own = stats.rankdata(scores[:, ~positive], axis=1)
    placed[:, ~positive] = 1 - (ranks[:, ~positive] - own) / positive.sum()
    return placed


def difference(
    first: Jackknife,
    second: Jackknife,
    metric: str,
    persons: Sequence[int],
    *,
    versus: Sequence[int] | None = None,
    known: bool = False,
    reason: str = "",
) -> Estimate:
    """Return first − second, of the same persons, with an interval and a two-sided p-value.

    Errors and correlations have those of a paired t test. Of shares, the distances of the two
    intervals from their values are added in squares, less what the two share (Newcombe, Statistics
    in Medicine 17, 1998; Zou & Donner, ibid. 27, 2008), and p is the level at which that touches
    zero: no model is certain, however perfect or hopeless it is in this sample.

    ``persons`` as in ``estimate``. ``versus`` are those behind ``second``, if it is of other
    persons. ``known`` says that ``second`` holds by construction, such as the AUC of chance.
    """
    if np.isnan(first.value) or np.isnan(second.value):
        return Estimate(None, None, None, reason or "not defined in this sample")
    scale = METRICS[metric].scale
    moves = [each.moves(scale if scale.share else LINEAR) for each in (first, second)]
    if np.isnan(moves[0]).any() or np.isnan(moves[1]).any():
        why = "too few subjects: without some one of them there is no value"
        return Estimate(None, None, None, why)
    if scale.share:
        return _of_shares(first, second, metric, persons, versus, known=known)
    errors = [moves[0], moves[1]] if versus else [moves[0] - moves[1]]
    error = math.sqrt(sum(float((each**2).sum()) for each in errors))
    return t_test(first.value - second.value, error, min(persons, versus or persons, key=min))


def t_test(value: float, error: float, persons: Sequence[int]) -> Estimate:
    """Return a difference with the interval and the p-value that its standard error gives."""
    if error < 1e-12:
        why = "the same difference for all in this sample: no interval can be given"
        return Estimate(value, None, None, why)
    freedom = degrees_of_freedom(persons)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Estimate(value, value - reach, value + reach, p=p)


def _of_shares(
    first: Jackknife,
    second: Jackknife,
    metric: str,
    persons: Sequence[int],
    versus: Sequence[int] | None,
    *,
    known: bool,
) -> Estimate:
    value = first.value - second.value
    others = versus or persons
    errors = [each.error(METRICS[metric].scale) for each in (first, second)]
    alike = 0.0 if versus else _correlation(first, second, metric, persons)

    def ends(quantile: float) -> tuple[float, float]:
        low, high = share_interval(first.value, errors[0], metric, persons, quantile)
        low2 = high2 = second.value
        if not known:
            low2, high2 = share_interval(second.value, errors[1], metric, others, quantile)
        below = _together(first.value - low, high2 - second.value, alike)
        return value - below, value + _together(high - first.value, second.value - low2, alike)

    freedom = degrees_of_freedom(min(persons, others, key=min))
    low, high = ends(float(stats.t.ppf((1 + LEVEL) / 2, freedom)))
    return Estimate(value, low, high, p=_touching(ends, value, freedom))


def _correlation(first: Jackknife, second: Jackknife, metric: str, persons: Sequence[int]) -> float:
    """Return how much the errors of two shares are alike, mixed with not knowing: none."""
    one, two = (each.moves(METRICS[metric].scale) for each in (first, second))
    product = math.sqrt(float((one**2).sum() * (two**2).sum()))
    if product < 1e-18:
        return 0.0
    return float((one * two).sum()) / product * shown_weight(independent(metric, persons)[1])


def _together(one: float, two: float, alike: float) -> float:
    return math.sqrt(max(0.0, one**2 + two**2 - 2 * alike * one * two))


def _touching(ends: Callable[[float], tuple[float, float]], value: float, freedom: int) -> float:
    """Return the p-value of the quantile at which an interval touches zero."""
    if abs(value) < 1e-12:
        return 1.0

    def beyond(quantile: float) -> float:
        return ends(quantile)[0] if value > 0 else -ends(quantile)[1]

    if beyond(MOST_QUANTILES) > 0:
        return float(2 * stats.t.sf(MOST_QUANTILES, freedom))
    quantile = optimize.brentq(beyond, 0, MOST_QUANTILES, xtol=1e-6)
    return float(2 * stats.t.sf(quantile, freedom))


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """Return one / other of two shares of different persons, with the interval that theirs give
    (Donner & Zou, Statistical Methods in Medical Research 21, 2012). None where the second, or the
    lower end of its interval, is zero."""
    for each in (one, other):
        if each.value is None or each.low is None or each.high is None:
            return Estimate(None, None, None, each.reason)
    a, below, above = (float(each or 0) for each in (one.value, one.low, one.high))
    b, least, most = (float(each or 0) for each in (other.value, other.low, other.high))
    if not b or not least:
        return Estimate(None, None, None, "a share of calls is zero in this sample")
    low = a * b - math.sqrt(max(0, (a * b) ** 2 - below * most * (2 * a - below) * (2 * b - most)))
    high = a * b + math.sqrt(
        max(0, (a * b) ** 2 - above * least * (2 * a - above) * (2 * b - least))
    )
    return Estimate(a / b, max(0, low / most / (2 * b - most)), high / least / (2 * b - least))


def detectable(half_width: float, compared: int) -> float:
    """Return the difference that a study shows with a power of 80 % if its 95 % intervals have this
    half-width: about, as if normal.

    With several comparisons the smallest p-value has to be below 0.05 / ``compared`` (Holm).
    """
    needed = stats.norm.ppf(1 - (1 - LEVEL) / 2 / compared) + stats.norm.ppf(POWER)
    return float(half_width * needed / NORMAL)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian J. of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]
