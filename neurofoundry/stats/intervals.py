"""Estimates with 95 % intervals that allow for several scans per person."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from neurofoundry.stats.metrics import METRICS, Values, icc, mean_squares

LEVEL = 0.95
"""Coverage that every interval aims at."""


def icc_estimates(ratings: Values, *, reason: str = "") -> tuple[Estimate, Estimate]:
    """Return ICC(2,1) and ICC(3,1) of ratings (persons, raters), with intervals from F quantiles.

    McGraw & Wong (Psychological Methods 1, 1996, table 7). That of consistency is exact for normal
    ratings, that of agreement approximate, with Satterthwaite's degrees of freedom. An ICC(2,1) of
    few persons can lie below −1. ``reason`` says why there is no value where all ratings are the
    same.
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
        return Estimate(agreement, None, None, why), Estimate(consistency, None, None, why)
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
    return (
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


def estimate(
    samples: Values,
    metric: str,
    persons: Sequence[int],
    *,
    by_chance: Values | None = None,
    reason: str = "",
    level: float = LEVEL,
) -> Estimate:
    """Return the value and interval of a metric, from ``samples`` (1 + count,) of ``resample``.

    The interval is value ± t · SE on the scale of the metric: SE is the spread of the resamples,
    and t the quantile of a t distribution whose degrees of freedom are those of a sample in which
    every class is as small as the smallest. ``persons`` are the numbers of persons of every class
    (of a regression: of all). docs/measurements.md has the coverage in simulated cohorts: at 10 to
    14 persons a class, where percentiles of the resamples hold the truth in 83 to 91 %, this does
    in 93 to 98 %.

    Where a model is right (or wrong) for everybody, all resamples agree and say nothing of the
    uncertainty. The interval then ends where so perfect a result has a chance of 2.5 %: P(perfect)
    is at most (true value)^exponent, see ``perfection_exponent``. Metrics without an exponent have
    no interval there.

    ``by_chance``, (1 + count,): resampling noise adds to an error that cannot be negative, so that
    neither percentiles nor the above ever reach a true zero. The interval then begins at the value
    minus the 95 % quantile of what chance alone gives, a valid bound by the triangle inequality,
    and ends with the percentile.

    ``reason`` says why a value is NaN.
    """
    value, valid = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    if np.isnan(value):
        return Estimate(None, None, None, reason or "not defined in this sample")
    if len(valid) < 0.9 * (len(samples) - 1):
        return Estimate(None, None, None, "too few subjects: many resamples lack a class")
    tail = (1 - level) / 2
    if by_chance is not None:
        low = max(0.0, value - float(np.nanquantile(by_chance[1:], level)))
        return Estimate(value, low, max(value, float(np.quantile(valid, 1 - tail))))
    if is_constant(samples):
        exponent = perfection_exponent(metric, persons)
        if exponent is None and abs(value - 1) < 1e-12:
            return Estimate(value, None, None, "perfect in this sample: no interval can be given")
        low = tail ** (1 / exponent) if exponent and value > 1 - 1e-12 else value
        high = 1 - tail ** (1 / exponent) if exponent and value < 1e-12 else value
        return Estimate(value, low, high)
    inflation = small_sample_inflation(persons) if METRICS[metric].scale.few_persons else 1
    return with_error(value, float(valid.std(ddof=1)) * inflation, metric, persons, level=level)


def with_error(
    value: float, error: float, metric: str, persons: Sequence[int], *, level: float = LEVEL
) -> Estimate:
    """Return a value with the interval that its standard error gives, as in ``estimate``."""
    if error < 1e-12:
        return estimate(np.full(3, value), metric, persons, level=level)
    scale = METRICS[metric].scale
    try:
        centre, slope = scale.to(value), scale.slope(value)
    except (ValueError, ZeroDivisionError):
        why = "at the end of what it can be in this sample: no interval can be given"
        return Estimate(value, None, None, why)
    reach = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom(persons))) * error * slope
    return Estimate(value, scale.back(centre - reach), scale.back(centre + reach))


def mean_with_error(values: Values, persons: Sequence[str] | NDArray[Any]) -> tuple[float, float]:
    """Return the mean of values (scans,), and its standard error with scans clustered by person
    (linearized, with n/(n − 1); Williams, Biometrics 56, 2000)."""
    _, person = np.unique(np.asarray(persons), return_inverse=True)
    mean = float(values.mean())
    sums = np.bincount(person, values - mean)
    return mean, float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)) / len(values))


def degrees_of_freedom(persons: Sequence[int]) -> int:
    """Return those of a sample in which every class has as many persons as the smallest."""
    return max(1, len(persons) * (min(persons) - 1))


def small_sample_inflation(persons: Sequence[int]) -> float:
    """Return √(n/(n − 1)), by which samples vary more than resamples; n is the smallest class."""
    return math.sqrt(min(persons) / max(1, min(persons) - 1))


def is_constant(samples: Values) -> bool:
    """Return whether all samples that are not NaN are the same."""
    return bool(np.nanmax(samples) - np.nanmin(samples) < 1e-12)


def perfection_exponent(metric: str, persons: Sequence[int]) -> int | None:
    """Return k in P(perfect result) ≤ (true value)^k, given the persons of every class; None if
    unknown.

    Sensitivity: each of n persons is found with the true sensitivity, so k = n. AUC: m = min(n)
    disjoint pairs of a positive and a negative must all be ranked correctly, so k = m.
    Balanced accuracy: the product of K recalls is at most their mean to the power of K, k = K·m.
    Identification: each of n persons is found, k = n, as if they were found independently.
    """
    if metric == "identification":
        return min(persons)
    if len(persons) < 2:
        return None
    fewest = min(persons)
    exponents = {"auc": fewest, "balanced_accuracy": len(persons) * fewest}
    if len(persons) == 2:
        exponents |= {"specificity": persons[0], "sensitivity": persons[1]}
    return exponents.get(metric) or None
