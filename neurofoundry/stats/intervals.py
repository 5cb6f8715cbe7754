"""Estimates with 95 % intervals that allow for several scans per person.

The uncertainty comes from leaving out each person in turn (the jackknife). Where a sample is too
small to show it, it is completed by what is known of shares without it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from neurofoundry.stats.metrics import METRICS, Values, icc, mean_squares
from neurofoundry.stats.scales import LINEAR, LOG, Scale

LEVEL = 0.95
"""Coverage that every interval aims at."""

MOST_GROUPS = 400
"""Above so many persons of a class, groups of persons are left out instead of each."""

MOST_REACH = 3.0
"""Of the logarithm of an error: above it, an interval would say no more than that there is one."""

PRIOR_PERSONS = 8
"""A variance that n persons show counts as n, and what is known without them as this many."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, or the reason why there is none.

    ``p`` is two-sided, for a difference of zero; only differences have it.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    p: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A statistic of a sample, and of the sample without each person (or group of persons)."""

    values: Values
    """(…, 1 + groups): of the whole sample first."""
    strata: NDArray[np.integer]
    """(groups,): the class that each comes from; a sample has as many of each as it has."""

    @property
    def value(self) -> float:
        """The statistic of the sample."""
        return float(self.values[0])

    def __getitem__(self, index: Any) -> Jackknife:
        return Jackknife(self.values[index], self.strata)

    def mean(self) -> Jackknife:
        """Return the mean over the first axis, such as seeds."""
        return Jackknife(self.values.mean(axis=0), self.strata)

    def of_folds(self, repeats: int, widening: float) -> Jackknife:
        """Return what a cross-validation shows, of values (runs, 1 + groups) in which the
        ``repeats`` of a seed follow each other: each run's value, with the spread of the first
        repeat, since dealing persons again adds none, times ``widening``."""
        first = np.arange(len(self.values)) // repeats * repeats
        value = self.values[:, :1]
        moved = widening * (self.values[first, 1:] - self.values[first, :1])
        return Jackknife(np.concatenate([value, value + moved], axis=1), self.strata)

    def moves(self, scale: Scale = LINEAR) -> Values:
        """Return by how much each group moves the statistic on a scale, (…, groups); the sum of
        their squares is its variance.

        Shares have the factor (n − 1)/n of each stratum, with which this is DeLong's variance of an
        AUC (Biometrics 44, 1988). The others have n/(n − 3) of all, which offsets that errors of
        few persons are skewed: without it, the RMSE of 16 persons covered in 92 to 93 %.
        """
        everybody = max(4, len(self.strata))
        with np.errstate(invalid="ignore", divide="ignore"):
            moves: Values = scale.to(self.values[..., 1:]).astype(float)
            for stratum in np.unique(self.strata):
                inside = self.strata == stratum
                factor = 1 - 1 / inside.sum() if scale.share else everybody / (everybody - 3)
                of_stratum = moves[..., inside]
                of_stratum -= of_stratum.mean(axis=-1, keepdims=True)
                moves[..., inside] = math.sqrt(factor) * of_stratum
        return moves

    def error(self, scale: Scale = LINEAR) -> float:
        """Return the standard error on a scale; NaN where the statistic needs all persons."""
        return float(np.sqrt((self.moves(scale) ** 2).sum()))


def jackknife(
    statistic: Callable[[Values], Values],
    persons: Sequence[str] | NDArray[Any],
    strata: NDArray[np.integer] | None = None,
) -> Jackknife:
    """Return a statistic of the sample, and without each person.

    ``persons`` (scans,) says whose each scan is, ``strata`` (scans,) the class of each; a person
    with scans of several belongs to the last. ``statistic`` maps weights (samples, scans) to values
    (…, samples). With more than ``MOST_GROUPS`` persons in a stratum, so many groups are left out.
    """
    names, person = np.unique(np.asarray(persons), return_inverse=True)
    of_person = np.zeros(len(names), int)
    if strata is not None:
        np.maximum.at(of_person, person, strata)
    group = np.zeros(len(names), int)
    of_group: list[int] = []
    for stratum in np.unique(of_person):
        members = np.flatnonzero(of_person == stratum)
        count = min(len(members), MOST_GROUPS)
        group[members] = len(of_group) + np.arange(len(members)) % count
        of_group += [int(stratum)] * count
    scans = group[person]
    values = [statistic(np.ones((1, len(person))))]
    rows_at_once = max(1, 1_000_000 // len(person))
    for start in range(0, len(of_group), rows_at_once):
        left_out = np.arange(start, min(start + rows_at_once, len(of_group)))
        values.append(statistic((scans != left_out[:, None]).astype(float)))
    return Jackknife(np.concatenate(values, axis=-1), np.array(of_group))


def estimate(
    sample: Jackknife,
    metric: str,
    persons: Sequence[int],
    *,
    spread: float = 0,
    reason: str = "",
) -> Estimate:
    """Return the value and interval of a metric. ``persons`` are the numbers of persons of every
    class (of a regression: of all).

    Shares (AUC, sensitivity, F1 …) have the interval of Wilson (JASA 22, 1927) for as many
    independent scans as would vary like these persons: value·(1 − value) / variance (Korn &
    Graubard, Survey Methodology 24, 1998). As few persons show a variance badly, and none where a
    model is right for everybody, it is mixed with that of as many independent persons, see
    ``PRIOR_PERSONS`` and ``independent``. Errors and correlations have a t interval on the scale
    of the metric. docs/measurements.md has the coverage of both in simulated cohorts.

    ``spread``: the variance between scans that a model announces for its Brier score; it is mixed
    in alike, where it is larger, and so is that of normal errors for their mean. ``reason`` says
    why a value is NaN.
    """
    if np.isnan(sample.value):
        return Estimate(None, None, None, reason or "not defined in this sample")
    error = sample.error(METRICS[metric].scale)
    if np.isnan(sample.values).any():
        why = "too few subjects: without some one of them there is no value"
        return Estimate(None, None, None, why)
    known = METRICS[metric].if_normal
    if spread and sample.value > 1e-9:
        known = spread / sample.value**2
    if known and (spread or error > 1e-12):
        error = max(error, _mixed(error, known / sum(persons), sum(persons)))
    return _interval(sample.value, error, metric, persons)


def with_error(value: float, error: float, metric: str, persons: Sequence[int]) -> Estimate:
    """Return a value with the interval that its standard error gives, as in ``estimate``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = float(METRICS[metric].scale.slope(np.float64(value)))
    return _interval(value, error * slope if error else 0.0, metric, persons)


def stretched(
    value: float, low: float, high: float, metric: str, quantile: float
) -> tuple[float, float]:
    """Return a 95 % interval made so many standard errors wide, on the scale of the metric."""
    scale = METRICS[metric].scale
    to = LINEAR.to if scale.share else scale.to
    back = LINEAR.back if scale.share else scale.back
    middle, factor = to(value), quantile / NORMAL
    ends = (back(middle + factor * (to(end) - middle)) for end in (low, high))
    below, above = ((min(1.0, max(0.0, end)) if scale.share else end) for end in ends)
    return float(below), float(above)


def _interval(value: float, error: float, metric: str, persons: Sequence[int]) -> Estimate:
    """Return an estimate from the error on the scale of the metric."""
    scale = METRICS[metric].scale
    if scale.share:
        low, high = share_interval(value, error, metric, persons, NORMAL)
        return Estimate(value, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = float(scale.to(np.float64(value)))
    freedom = max(1, sum(persons) - len(persons))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    if error < 1e-12 or not np.isfinite(centre + error) or (scale is LOG and reach > MOST_REACH):
        why = "the same for all" if error < 1e-12 else "at the end of what it can be"
        return Estimate(value, None, None, f"{why} in this sample: no interval can be given")
    return Estimate(value, float(scale.back(centre - reach)), float(scale.back(centre + reach)))


NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))


def share_interval(
    value: float, error: float, metric: str, persons: Sequence[int], quantile: float
) -> tuple[float, float]:
    """Return Wilson's interval of a share, from its error on the scale of the metric, so many
    ``quantile`` of standard errors wide."""
    scale = METRICS[metric].scale
    share = min(1.0, max(0.0, float(scale.to(value))))
    trials, weight = independent(metric, persons)
    binomial = share * (1 - share)
    shown = (error**2 / binomial) if binomial > 1e-12 and error > 1e-9 else 1 / trials
    count = 1 / _mixed(math.sqrt(shown), 1 / trials, weight) ** 2
    middle = (share + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    reach = math.sqrt(binomial / count + (quantile / (2 * count)) ** 2)
    reach *= quantile / (1 + quantile**2 / count)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return min(value, float(scale.back(low))), max(value, float(scale.back(high)))


def _mixed(error: float, variance: float, persons: int) -> float:
    """Return the root of error² and of a variance that is known without these persons, mixed."""
    weight = shown_weight(persons)
    return math.sqrt(weight * error**2 + (1 - weight) * variance)


def shown_weight(persons: int) -> float:
    """Return how much counts what so many persons show, against what is known without them."""
    return persons / (persons + PRIOR_PERSONS)


def independent(metric: str, persons: Sequence[int]) -> tuple[int, int]:
    """Return as how many independent trials a share varies if nobody's scans tell more than one,
    and how many persons show its variance.

    A sensitivity has a trial for every ill person; so has F1, among all persons. An AUC has as many
    as there are disjoint pairs of an ill and a healthy person, a balanced accuracy of K classes K
    times as many.
    """
    fewest, classes = max(1, min(persons)), len(persons)
    own = {"specificity": persons[0], "sensitivity": persons[-1]}.get(metric, fewest)
    if classes == 2 and metric in ("f1", "average_precision"):
        own = persons[1]
    if metric == "auc":
        return fewest, classes * fewest
    if metric == "balanced_accuracy":
        return classes * fewest, classes * fewest
    return max(1, own), sum(persons) if metric == "f1" else max(1, own)


def excess_error(values: Values, by_chance: Values, *, reason: str = "") -> Estimate:
    """Return a calibration error with its interval, from resamples of it and of what chance alone
    gives, (1 + count,) each.

    Resampling noise adds to an error that cannot be negative, so that neither percentiles nor a
    t interval ever reach a true zero. The interval begins at the value less the 97.5 % quantile of
    what chance gives, a valid bound by the triangle inequality, and ends with the percentile.
    """
    value, valid = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not len(valid):
        return Estimate(None, None, None, reason or "not defined in this sample")
    low = max(0.0, value - float(np.nanquantile(by_chance[1:], (1 + LEVEL) / 2)))
    return Estimate(value, low, max(value, float(np.quantile(valid, (1 + LEVEL) / 2))))


def widening(folds: int) -> float:
    """Return by how much an interval of a cross-validation is wider than its persons alone would
    make it.

    Models of different folds share persons whom they have learned from, and differ by these as
    much as by those whom they are tested on (Nadeau & Bengio, Machine Learning 52, 2003). A
    cross-validation counts as if as many persons were tested as each model has learned from: k − 2
    of k folds. benchmarks/cross_validation.py has the coverage.
    """
    return math.sqrt(folds / (folds - 2))


def mean_with_error(values: Values, persons: Sequence[str] | NDArray[Any]) -> tuple[Values, Values]:
    """Return the mean of values (scans, …), and its standard error with scans clustered by person
    (linearized, with n/(n − 1); Williams, Biometrics 56, 2000), both (…)."""
    _, person = np.unique(np.asarray(persons), return_inverse=True)
    mean = np.asarray(values.mean(axis=0))
    sums = np.zeros((person.max(initial=0) + 1, *mean.shape))
    np.add.at(sums, person, values - mean)
    squares = (sums**2).sum(axis=0) * len(sums) / max(1, len(sums) - 1)
    return mean, np.sqrt(squares) / len(values)


def icc_estimates(ratings: Values, *, reason: str = "") -> tuple[Estimate, Estimate]:
    """Return ICC(2,1) and ICC(3,1) of ratings (persons, raters), with intervals from F quantiles.

    McGraw & Wong (Psychological Methods 1, 1996, table 7). That of consistency is exact for normal
    ratings, that of agreement approximate, with Satterthwaite's degrees of freedom. Neither can be
    below −1/(raters − 1), where estimates and ends of few persons are cut. ``reason`` says why
    there is no value where all ratings are the same.
    """
    n, k = ratings.shape
    if np.ptp(ratings) == 0:
        missing = Estimate(None, None, None, reason or "all ratings are the same")
        return missing, missing
    agreement, consistency = (float(each[0]) for each in icc(ratings, np.ones((1, n))))
    bms, jms, ems = (float(each[0]) for each in mean_squares(ratings, np.ones((1, n))))
    if min(bms, ems) <= 1e-12 * (bms + ems):
        extreme = "differ alike" if bms > ems else "have the same mean"
        why = f"all subjects {extreme} in this sample: no interval can be given"
        least = -1 / (k - 1)
        return (
            _cut(Estimate(agreement, None, None, why), least),
            _cut(Estimate(consistency, None, None, why), least),
        )
    upper = (1 + LEVEL) / 2
    freedom = (n - 1) * (k - 1)
    ratio = bms / ems
    f_low = ratio / stats.f.ppf(upper, n - 1, freedom)
    f_high = ratio * stats.f.ppf(upper, freedom, n - 1)
    shared = max(0.0, agreement)  # it estimates a share of the variance
    of_raters = k * shared * jms
    of_error = (n * (1 + (k - 1) * shared) - k * shared) * ems
    effective = freedom * (of_raters + of_error) ** 2 / ((n - 1) * of_raters**2 + of_error**2)
    rest = k * jms + (k * n - k - n) * ems
    low, high = stats.f.ppf(upper, n - 1, effective), stats.f.ppf(upper, effective, n - 1)
    estimates = (
        Estimate(
            agreement,
            float(n * (bms - low * ems) / (low * rest + n * bms)),
            float(n * (high * bms - ems) / (rest + n * high * bms)),
        ),
        Estimate(
            consistency,
            float((f_low - 1) / (f_low + k - 1)),
            float((f_high - 1) / (f_high + k - 1)),
        ),
    )
    return _cut(estimates[0], -1 / (k - 1)), _cut(estimates[1], -1 / (k - 1))


def _cut(estimate: Estimate, least: float) -> Estimate:
    """Return an estimate with nothing below the least that can be true."""
    value, low, high = (
        None if each is None else max(least, each)
        for each in (estimate.value, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, low=low, high=high)


def resample(
    statistic: Callable[[Values], Values],
    persons: Sequence[str] | NDArray[Any],
    *,
    count: int,
    seed: int,
    key: str = "",
) -> Values:
    """Return a statistic of the sample, and of ``count`` resamples of its persons with replacement:
    (…, 1 + count), the sample first.

    ``persons`` (scans,) says whose each scan is: a person's scans are drawn together (the cluster
    bootstrap; Davison & Hinkley 1997, section 3.8). ``statistic`` maps weights (resamples, scans)
    to values (…, resamples). The result does not depend on the order of the scans; another ``key``
    draws independently.
    """
    names, person = np.unique(np.asarray(persons), return_inverse=True)
    digest = hashlib.sha256(f"bootstrap\0{seed}\0{key}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    values = [statistic(np.ones((1, len(person))))]
    rows_at_once = max(1, 1_000_000 // len(person))
    for start in range(0, count, rows_at_once):
        rows = min(rows_at_once, count - start)
        drawn = random.integers(len(names), size=(rows, len(names)))
        drawn += np.arange(rows)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=rows * len(names)).reshape(rows, -1)
        values.append(statistic(times[:, person].astype(float)))
    return np.concatenate(values, axis=-1)


def degrees_of_freedom(persons: Sequence[int]) -> int:
    """Return those of a sample in which every class has as many persons as the smallest."""
    return max(1, len(persons) * (min(persons) - 1))
