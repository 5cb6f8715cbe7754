"""Differences between models that predict for the same persons, with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from neurofoundry.stats.intervals import (
    LEVEL,
    Estimate,
    degrees_of_freedom,
    estimate,
    is_constant,
    perfection_exponent,
    small_sample_inflation,
)
from neurofoundry.stats.metrics import METRICS, Values
from neurofoundry.stats.scales import LOGIT

LEAST_P = 1e-9
"""The smallest p-value that combined intervals give."""


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
    first: Values,
    second: Values,
    metric: str,
    persons: Sequence[int],
    *,
    standard_error: float | None = None,
    reason: str = "",
) -> Estimate:
    """Return first − second, from resamples of the same persons (or of two independent groups).

    ``first`` and ``second`` are (1 + count,), as ``resample`` gives them. The interval is that of a
    t test, p its two-sided p-value. ``standard_error`` replaces the spread of the resamples:
    DeLong's, for two AUCs. ``persons`` as in ``estimate``; of two groups, those of the smaller.

    Against something that never varies, such as chance, it is ``first`` and its interval, shifted.
    A model that is right for everybody in this sample is not that: its resamples do not vary, but
    another sample might. The intervals of the two are then combined (see ``_square_and_add``).
    """
    samples = first - second
    known = not np.isnan(samples[0])
    ends = [known and _at_an_end(each, metric) for each in (first, second)]
    if ends[1] or (ends[0] and not is_constant(second)):
        return _square_and_add(first, second, metric, persons, reason)
    if known and is_constant(second):
        return _from_constant(first, float(second[0]), metric, persons, reason)
    value, valid = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    if np.isnan(value) or len(valid) < 0.9 * (len(samples) - 1):
        return estimate(samples, metric, persons, reason=reason)
    error = standard_error or float(valid.std(ddof=1)) * small_sample_inflation(persons)
    if error < 1e-12:
        return Estimate(value, value, value, p=1.0 if abs(value) < 1e-12 else 0.0)
    degrees = degrees_of_freedom(persons)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(value) / error, degrees))
    return Estimate(value, value - reach, value + reach, p=p)


def _at_an_end(samples: Values, metric: str) -> bool:
    """Return whether a model is right, or wrong, for everybody in the sample and so in all
    resamples."""
    value = float(samples[0])
    return (
        METRICS[metric].scale is LOGIT
        and is_constant(samples)
        and min(abs(value), abs(1 - value)) < 1e-12
    )


def _square_and_add(
    first: Values, second: Values, metric: str, persons: Sequence[int], reason: str
) -> Estimate:
    """Return a difference from (or of) a perfect result, from the intervals of the two.

    The distances of their ends from the values are added in squares (Newcombe, Statistics in
    Medicine 17, 1998; Zou & Donner, ibid. 27, 2008), as if the two were independent: as they are
    for the same persons, the interval is wider than it need be. p is the level at which it touches
    zero.
    """

    def at(level: float) -> Estimate:
        one, two = (
            estimate(each, metric, persons, reason=reason, level=level) for each in (first, second)
        )
        if one.value is None or two.value is None:
            return one if one.value is None else two
        value = one.value - two.value
        if one.low is None or two.low is None or one.high is None or two.high is None:
            return Estimate(value, None, None, one.reason or two.reason)
        low = math.hypot(one.value - one.low, two.high - two.value)
        return Estimate(
            value, value - low, value + math.hypot(one.high - one.value, two.value - two.low)
        )

    combined = at(LEVEL)
    if combined.value is None or combined.low is None:
        return combined
    if not at(0.0).excludes_zero:
        return replace(combined, p=1.0)
    if at(1 - LEAST_P).excludes_zero:
        return replace(combined, p=LEAST_P)
    p = optimize.bisect(lambda p: at(1 - p).excludes_zero - 0.5, LEAST_P, 1.0, xtol=1e-6)
    return replace(combined, p=float(p))


def _from_constant(
    first: Values, constant: float, metric: str, persons: Sequence[int], reason: str
) -> Estimate:
    """Return the difference from a value that never varies: the estimate, shifted, with the p-value
    on the scale of the metric."""
    shifted = _shift(estimate(first, metric, persons, reason=reason), -constant)
    if shifted.value is None or shifted.low is None:
        return shifted
    value = float(first[0])
    if is_constant(first):
        exponent = perfection_exponent(metric, persons)
        # How likely is so perfect (or hopeless) a result when the truth is the constant?
        p = 2 * abs(1 - value - constant) ** exponent if exponent and value in (0, 1) else 1.0
    else:
        valid = first[1:][~np.isnan(first[1:])]
        scale = METRICS[metric].scale
        error = float(valid.std(ddof=1)) * (
            small_sample_inflation(persons) if scale.few_persons else 1
        )
        try:
            distance = (scale.to(value) - scale.to(constant)) / (error * scale.slope(value))
        except (ValueError, ZeroDivisionError):  # the constant is an end of the scale
            distance = math.inf
        p = float(2 * stats.t.sf(abs(distance), degrees_of_freedom(persons)))
    return replace(shifted, p=min(1.0, float(p)))


def _shift(estimate: Estimate, by: float) -> Estimate:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    return replace(
        estimate, value=estimate.value + by, low=estimate.low + by, high=estimate.high + by
    )


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian J. of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]
