"""Differences between models that were judged on the same persons, with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

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


def auc_covariance(
    labels: NDArray[np.integer], probabilities: Values, persons: Sequence[str] | NDArray
) -> tuple[Values, Values]:
    """AUCs of several models on the same scans, and their covariance matrix, by formula.

    ``labels`` (scans,) are indices of classes, ``probabilities`` (models, scans, classes),
    ``persons`` (scans,) whose each scan is. The results are (models,) and (models, models).
    With one scan a person it is the covariance of DeLong et al. (Biometrics 44, 1988); with
    several, whatever their labels, that of Obuchowski (Biometrics 53, 1997, equation 3). With
    more than two classes the AUC is the mean of each against the rest, and what a scan adds to it
    is the mean of what it adds to each.
    """
    models, scans, classes = probabilities.shape
    names, person = np.unique(np.asarray(persons), return_inverse=True)
    areas = np.zeros(models)
    added = np.zeros((models, scans))
    of_interest = [1] if classes == 2 else range(classes)
    for k in of_interest:
        scores, positive = probabilities[:, :, k], labels == k
        ranks = stats.rankdata(scores, axis=1)
        # Of the other class, the share that each scan is ranked rightly against; ties half.
        right = np.empty((models, scans))
        own = stats.rankdata(scores[:, positive], axis=1)
        right[:, positive] = (ranks[:, positive] - own) / (~positive).sum()
        own = stats.rankdata(scores[:, ~positive], axis=1)
        right[:, ~positive] = 1 - (ranks[:, ~positive] - own) / positive.sum()
        area = right[:, positive].mean(axis=1)
        counts = np.where(positive, positive.sum(), (~positive).sum())
        areas += area / len(of_interest)
        added += (right - area[:, None]) / counts / len(of_interest)
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


def difference(
    first: Values,
    second: Values,
    metric: str,
    persons: Sequence[int],
    *,
    standard_error: float | None = None,
    reason: str = "",
) -> Estimate:
    """first − second, from resamples of the same persons (or of two independent groups).

    The interval is that of a t test, p its two-sided p-value. ``standard_error`` takes the place
    of the spread of the resamples: DeLong's, for two AUCs. ``persons`` as in ``estimate``; of two
    groups, those of the smaller.

    Against something that never varies, such as chance, it is ``first`` and its interval, shifted.
    Whoever judged everybody rightly in this sample is not that: resamples say nothing of the
    uncertainty, so that the intervals of the two are put together (see ``_beside_an_end``).
    """
    samples = first - second
    known = not np.isnan(samples[0])
    ends = [known and _at_an_end(each, metric) for each in (first, second)]
    if ends[1] or (ends[0] and not is_constant(second)):
        return _beside_an_end(first, second, metric, persons, reason)
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
    """Whether everybody was judged rightly, or wrongly, in the sample and so in all resamples."""
    value = float(samples[0])
    return (
        METRICS[metric].scale is LOGIT
        and is_constant(samples)
        and min(abs(value), abs(1 - value)) < 1e-12
    )


def _beside_an_end(
    first: Values, second: Values, metric: str, persons: Sequence[int], reason: str
) -> Estimate:
    """A difference from (or of) a perfect result, from the intervals of the two.

    Their distances from the values are added in squares (Newcombe, Statistics in Medicine 17, 1998;
    Zou & Donner, ibid. 27, 2008), as if the two were independent: that they judge the same persons
    makes the truth narrower. p is the level at which the interval touches zero.
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

    found = at(LEVEL)
    if found.value is None or found.low is None:
        return found
    least = 1e-9
    if not at(0.0).excludes_zero:
        return replace(found, p=1.0)
    if at(1 - least).excludes_zero:
        return replace(found, p=least)
    p = optimize.bisect(lambda p: at(1 - p).excludes_zero - 0.5, least, 1.0, xtol=1e-6)
    return replace(found, p=float(p))


def _from_constant(
    first: Values, constant: float, metric: str, persons: Sequence[int], reason: str
) -> Estimate:
    result = _shift(estimate(first, metric, persons, reason=reason), -constant)
    if result.value is None or result.low is None:
        return result
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
    return replace(result, p=min(1.0, float(p)))


def _shift(found: Estimate, by: float) -> Estimate:
    if found.value is None or found.low is None or found.high is None:
        return found
    return replace(found, value=found.value + by, low=found.low + by, high=found.high + by)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]
