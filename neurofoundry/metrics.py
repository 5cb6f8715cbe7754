"""Metrics, with intervals that allow for several scans of one person.

Every metric takes ``weights`` of shape (resamples, scans), how often each scan counts in each
resample, and gives one number a resample: NaN where a resample cannot give one (one class only).
All resamples are computed at once, and models that share the weights can be compared in pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from sklearn.metrics import roc_curve

Values = NDArray[np.float64]

LEVEL = 0.95
"""Coverage that every interval aims at."""


@dataclass(frozen=True)
class Scale:
    """Where an estimate is nearly normal: its interval is symmetric there, and never leaves the
    values that the metric can take."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]
    """Derivative of ``to``."""
    few_persons: bool = False
    """Whether resamples vary less than samples do by a factor that matters, √((n − 1)/n)."""


LINEAR = Scale(lambda v: v, lambda u: u, lambda v: 1.0, few_persons=True)
LOGIT = Scale(
    lambda v: math.log(v / (1 - v)),
    lambda u: 0.5 + 0.5 * math.tanh(u / 2),
    lambda v: 1 / (v * (1 - v)),
)
LOG = Scale(math.log, math.exp, lambda v: 1 / v, few_persons=True)
LOG_REMAINDER = Scale(lambda v: -math.log(1 - v), lambda u: 1 - math.exp(-u), lambda v: 1 / (1 - v))
FISHER = Scale(math.atanh, math.tanh, lambda v: 1 / (1 - v**2), few_persons=True)


@dataclass(frozen=True)
class Metric:
    """How people call a metric, which way is better, and the scale of its interval."""

    title: str
    higher_is_better: bool | None
    """None: neither; the best value lies between."""
    scale: Scale


METRICS = {
    "auc": Metric("AUC", True, LOGIT),
    "balanced_accuracy": Metric("Balanced accuracy", True, LOGIT),
    "sensitivity": Metric("Sensitivity", True, LOGIT),
    "specificity": Metric("Specificity", True, LOGIT),
    "f1": Metric("F1", True, LOGIT),
    "average_precision": Metric("Average precision", True, LOGIT),
    "brier": Metric("Brier score", False, LOG),
    "ece": Metric("Calibration error", False, LINEAR),
    "calibration_slope": Metric("Calibration slope", None, LINEAR),
    "calibration_intercept": Metric("Calibration intercept", None, LINEAR),
    "mae": Metric("Mean absolute error", False, LOG),
    "rmse": Metric("Root mean square error", False, LOG),
    "r2": Metric("R²", True, LOG_REMAINDER),
    "correlation": Metric("Correlation", True, FISHER),
    "icc_agreement": Metric("Agreement, ICC(2,1)", True, FISHER),
    "icc_consistency": Metric("Consistency, ICC(3,1)", True, FISHER),
    "identification": Metric("Identification rate", True, LOGIT),
    "distance_ratio": Metric("Distance within over between persons", False, LOG),
    "bias_slope": Metric("Slope of the error", None, LINEAR),
}

PRIMARY: Mapping[Literal["classification", "regression"], str] = {
    "classification": "auc",
    "regression": "mae",
}
"""The metric that a task is judged by."""


def classification(
    labels: NDArray[np.integer],
    probabilities: Values,
    weights: Values,
    *,
    threshold: float | None = None,
) -> dict[str, Values]:
    """All metrics of a classification.

    ``labels`` (scans,) are indices of classes, ``probabilities`` (scans, classes). With two
    classes the second is the one of interest and is called at ``threshold`` or above; without a
    threshold what depends on it is NaN. With more, the likeliest class is called, AUC, F1 and
    average precision are means of one class against the rest, and calibration is that of the call.
    Beside the metrics stands ``ece_by_chance``, which ``estimate`` needs for the interval of ece.
    """
    classes = probabilities.shape[1]
    of_interest = [1] if classes == 2 else range(classes)
    ranked = [ranking(labels == k, probabilities[:, k], weights) for k in of_interest]
    if classes > 2:
        called = probabilities.argmax(axis=1)
    elif threshold is not None:
        called = (probabilities[:, 1] >= threshold).astype(int)
    else:
        called = np.full(len(labels), -1)
    recalls = [share(called == k, weights, among=labels == k) for k in range(classes)]
    harmonic = [f1(labels == k, called == k, weights) for k in of_interest]
    if called.min(initial=0) < 0:
        unknown = np.full(len(weights), np.nan)
        recalls, harmonic = [unknown] * classes, [unknown]
    metrics = {
        "auc": np.mean([area for area, _ in ranked], axis=0),
        "balanced_accuracy": np.mean(recalls, axis=0),
    }
    if classes == 2:
        metrics |= {"sensitivity": recalls[1], "specificity": recalls[0]}
        confidence, right = probabilities[:, 1], labels == 1
    else:
        confidence, right = probabilities.max(axis=1), labels == called
    error, by_chance = calibration_error(right, confidence, weights)
    return metrics | {
        "f1": np.mean(harmonic, axis=0),
        "average_precision": np.mean([precision for _, precision in ranked], axis=0),
        "brier": brier(labels, probabilities, weights),
        "ece": error,
        "ece_by_chance": by_chance,
    }


def regression(labels: Values, outputs: Values, weights: Values) -> dict[str, Values]:
    """All metrics of a regression, errors in the unit of the labels: labels, outputs (scans,)."""
    total = weights.sum(axis=1)
    errors = outputs - labels
    squared = _mean(errors**2, weights, total)
    # Centred first: moments of raw ages would lose digits to cancellation.
    y, p = labels - labels.mean(), outputs - outputs.mean()
    mean_y, mean_p = _mean(y, weights, total), _mean(p, weights, total)
    variance_y = _mean(y**2, weights, total) - mean_y**2
    variance_p = _mean(p**2, weights, total) - mean_p**2
    covariance = _mean(y * p, weights, total) - mean_y * mean_p
    variance_y[variance_y <= 1e-12 * np.mean(y**2)] = np.nan
    variance_p[variance_p <= 1e-12 * np.mean(p**2)] = np.nan
    return {
        "mae": _mean(np.abs(errors), weights, total),
        "rmse": np.sqrt(squared),
        "r2": 1 - squared / variance_y,
        "correlation": covariance / np.sqrt(variance_y * variance_p),
    }


def auc(labels: ArrayLike, scores: Values, weights: Values) -> Values:
    """Area under the ROC curve: how often a positive scan ranks above a negative; ties half.

    ``labels`` (scans,) are true for positives.
    """
    return ranking(labels, scores, weights)[0]


def average_precision(labels: ArrayLike, scores: Values, weights: Values) -> Values:
    """Mean precision over the recalls reached by lowering the threshold; labels as in ``auc``."""
    return ranking(labels, scores, weights)[1]


def ranking(labels: ArrayLike, scores: Values, weights: Values) -> tuple[Values, Values]:
    """``auc`` and ``average_precision``, each (resamples,): both are sums over positives of what
    ranks above them, so that they are found in one pass."""
    positive = np.asarray(labels, bool)
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    up, down = (each[np.argsort(-scores[each], kind="stable")] for each in (up, down))
    of_up, below_up, below_down = weights[:, up], -scores[up], -scores[down]
    # How many stand above each positive, and how many above or level with it.
    above, level = (np.searchsorted(below_down, below_up, side) for side in ("left", "right"))
    negatives = np.zeros((len(weights), len(down) + 1))
    np.cumsum(weights[:, down], axis=1, out=negatives[:, 1:])
    found = np.cumsum(of_up, axis=1)
    found = found[:, np.searchsorted(below_up, below_up, "right") - 1]
    alarms = negatives[:, level]
    wrong = alarms if (above == level).all() else (negatives[:, above] + alarms) / 2
    positives, total = of_up.sum(axis=1), negatives[:, -1]
    called = found + alarms
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    with np.errstate(invalid="ignore"):
        area = 1 - (of_up * wrong).sum(axis=1) / (positives * total)
        return area, (of_up * precision).sum(axis=1) / positives


def sensitivity_at(
    labels: ArrayLike, scores: Values, weights: Values, false_alarms: Values
) -> Values:
    """The ROC curve at given shares of false alarms, rising: (shares, resamples).

    ``labels`` (scans,) are true for positives. Between the points of the curve lie straight lines;
    where it climbs at one share, its end counts. NaN where a resample lacks a class.
    """
    order = np.argsort(-scores, kind="stable")
    positive, ranked = np.asarray(labels, bool)[order], scores[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # of scans with equal scores
    drawn = weights[:, order]
    hits, alarms = (
        np.pad(np.cumsum(drawn * mine, axis=1)[:, last], ((0, 0), (1, 0)))
        for mine in (positive, ~positive)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        hits, alarms = hits / hits[:, -1:], alarms / alarms[:, -1:]
    found = np.stack([np.interp(false_alarms, *row) for row in zip(alarms, hits, strict=True)])
    found[np.isnan(hits[:, -1]) | np.isnan(alarms[:, -1])] = np.nan
    return found.T


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


def share(hits: NDArray[np.bool_], weights: Values, *, among: NDArray[np.bool_]) -> Values:
    """Share of scans ``among`` some that are hits: sensitivity among the diseased."""
    with np.errstate(invalid="ignore"):
        return (weights @ (hits & among)) / (weights @ among.astype(float))


def f1(positive: NDArray[np.bool_], called: NDArray[np.bool_], weights: Values) -> Values:
    """Harmonic mean of precision and recall: 2·hits / (positives + calls), (resamples,)."""
    with np.errstate(invalid="ignore"):
        return 2 * (weights @ (positive & called)) / (weights @ (positive.astype(float) + called))


def brier(labels: NDArray[np.integer], probabilities: Values, weights: Values) -> Values:
    """Mean squared error of probabilities (scans, classes), summed over classes; halved for two."""
    errors = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    total = errors.sum(axis=1) / (2 if probabilities.shape[1] == 2 else 1)
    return _mean(total, weights, weights.sum(axis=1))


def calibration_bins(confidence: Values) -> NDArray[np.intp]:
    """The bin of every scan: up to ten of equal mass, each of ten scans or more.

    Ties share a bin. With fewer than 20 scans there is one bin, which says little.
    """
    count = int(np.clip(len(confidence) // 10, 1, 10))
    edges = np.unique(np.quantile(confidence, np.arange(1, count) / count))
    return np.searchsorted(edges, confidence, side="right")


def calibration_error(
    right: NDArray[np.bool_], confidence: Values, weights: Values
) -> tuple[Values, Values]:
    """Expected calibration error over ``calibration_bins``: mean |share right − confidence|.

    The second result is the error that chance alone gives in each resample: that of the resample
    measured from the sample, so that it is what a perfectly calibrated model would show. The bins
    are those of the sample in all resamples. NaN with fewer than 20 scans.
    """
    if len(confidence) < 20:
        unknown = np.full(len(weights), np.nan)
        return unknown, unknown
    bins = calibration_bins(confidence)
    excess = np.where(bins[:, None] == np.unique(bins), (right - confidence)[:, None], 0.0)
    found = (weights @ excess) / weights.sum(axis=1, keepdims=True)
    return np.abs(found).sum(axis=1), np.abs(found - excess.mean(axis=0)).sum(axis=1)


def calibration_line(
    positive: NDArray[np.bool_], probabilities: Values, weights: Values
) -> tuple[Values, Values]:
    """Intercept and slope of calibration, each (resamples,); perfect ones are 0 and 1.

    The slope is b of logit P(positive) = a + b·logit p, the intercept is a where b is held at 1:
    above 0 the risks stated are too low (Van Calster et al., BMC Medicine 17, 2019). Resamples
    take one Newton step from the fit to the sample. NaN where the outputs separate the classes.
    """
    x = special.logit(np.clip(probabilities, 1e-9, 1 - 1e-9))
    fitted = logistic_line(x, positive.astype(float))
    shift = logistic_line(x, positive.astype(float), slope=1)
    if fitted is None or shift is None:
        unknown = np.full(len(weights), np.nan)
        return unknown, unknown
    p = special.expit(fitted[0] + fitted[1] * x)
    error, spread = positive - p, p * (1 - p)
    g0, g1 = weights @ error, weights @ (error * x)
    h00, h01, h11 = weights @ spread, weights @ (spread * x), weights @ (spread * x**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = fitted[1] + (h00 * g1 - h01 * g0) / (h00 * h11 - h01**2)
        p = special.expit(shift[0] + x)
        intercept = shift[0] + (weights @ (positive - p)) / (weights @ (p * (1 - p)))
    return intercept, slope


def logistic_line(
    x: Values, targets: Values, *, slope: float | None = None
) -> tuple[float, float] | None:
    """Intercept and slope of a logistic regression of ``targets`` (0 to 1) on x, both (scans,).

    ``slope`` holds it. By Newton's method; None where the likelihood has no maximum.
    """
    line = np.array([0.0, 1.0 if slope is None else slope])
    design = np.stack([np.ones_like(x), x if slope is None else np.zeros_like(x)])
    for _ in range(60):
        p = special.expit(line[0] + line[1] * x)
        hessian = (design * (p * (1 - p))) @ design.T
        if slope is not None:
            hessian[1, 1] = 1
        if np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, design @ (targets - p))
        line += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            return float(line[0]), float(line[1])
    return None


def bias_slope(labels: Values, outputs: Values, weights: Values) -> Values:
    """Slope of the error on the label (resamples,): below 0 the old are taken for younger."""
    total = weights.sum(axis=1)
    y = labels - labels.mean()
    e = outputs - labels - (outputs - labels).mean()
    mean = _mean(y, weights, total)
    variance = _mean(y**2, weights, total) - mean**2
    variance[variance <= 1e-12 * np.mean(y**2)] = np.nan
    return (_mean(y * e, weights, total) - mean * _mean(e, weights, total)) / variance


def icc(ratings: Values, weights: Values) -> tuple[Values, Values]:
    """Intraclass correlations ICC(2,1) and ICC(3,1) of ratings (persons, raters, ...), each
    (resamples, ...).

    Shrout & Fleiss (Psychological Bulletin 86, 1979): of absolute agreement, where raters count as
    a sample of raters, and of consistency, where what each adds to everybody is forgiven.
    ``weights`` are those of persons. NaN where all ratings are the same.
    """
    bms, jms, ems = _mean_squares(ratings, weights)
    raters = ratings.shape[1]
    persons = weights.sum(axis=1).reshape(-1, *[1] * (ratings.ndim - 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = (bms - ems) / (bms + (raters - 1) * ems + raters * (jms - ems) / persons)
        consistency = (bms - ems) / (bms + (raters - 1) * ems)
    return agreement, consistency


def icc_estimates(ratings: Values, *, reason: str = "") -> tuple[Estimate, Estimate]:
    """ICC(2,1) and ICC(3,1) of ratings (persons, raters) with intervals from quantiles of F.

    McGraw & Wong (Psychological Methods 1, 1996, table 7). That of consistency is exact for normal
    ratings, that of agreement approximate, with Satterthwaite's degrees of freedom. An ICC(2,1) of
    few persons can lie below −1. ``reason`` explains a value where all ratings are the same.
    """
    n, k = ratings.shape
    if np.ptp(ratings) == 0:
        unknown = Estimate(None, None, None, reason or "all ratings are the same")
        return unknown, unknown
    agreement, consistency = (float(each[0]) for each in icc(ratings, np.ones((1, n))))
    bms, jms, ems = (float(each[0]) for each in _mean_squares(ratings, np.ones((1, n))))
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


def _mean_squares(ratings: Values, weights: Values) -> tuple[Values, Values, Values]:
    """Of persons, raters and what is left, each (resamples, ...): ratings and weights as in icc."""
    raters = ratings.shape[1]
    x = ratings - ratings.mean(axis=(0, 1))
    persons = weights.sum(axis=1).reshape(-1, *[1] * (ratings.ndim - 2))
    of_rater = np.tensordot(weights, x, 1) / persons[:, None]
    correction = persons * raters * of_rater.mean(axis=1) ** 2
    between = raters * np.tensordot(weights, x.mean(axis=1) ** 2, 1) - correction
    by_rater = persons * (of_rater**2).sum(axis=1) - correction
    residual = np.tensordot(weights, (x**2).sum(axis=1), 1) - correction - between - by_rater
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            np.maximum(between, 0) / (persons - 1),
            np.maximum(by_rater, 0) / (raters - 1),
            np.maximum(residual, 0) / ((persons - 1) * (raters - 1)),
        )


def youden_threshold(labels: NDArray[np.bool_], scores: Values) -> float | None:
    """The threshold with the largest sensitivity + specificity, between two observed scores.

    Of equal ones the nearest to 0.5. None when a class is missing or all scores are the same.
    """
    if labels.all() or not labels.any() or np.ptp(scores) == 0:
        return None
    alarms, hits, cuts = roc_curve(labels, scores, drop_intermediate=False)
    between = (cuts[1:-1] + cuts[2:]) / 2
    gain = (hits - alarms)[1:-1]
    best = between[np.isclose(gain, gain.max())]
    return float(best[np.abs(best - 0.5).argmin()])


def _mean(values: Values, weights: Values, total: Values) -> Values:
    return (weights @ values) / total


def resample(
    statistic: Callable[[Values], Values],
    persons: Sequence[str] | NDArray,
    *,
    count: int,
    seed: int,
    key: str = "",
) -> Values:
    """A statistic of the sample, and of ``count`` resamples of its persons with replacement.

    ``persons`` (scans,) says whose each scan is: a person's scans are drawn together.
    ``statistic`` maps weights (rows, scans) to values (..., rows). The result is
    (..., 1 + count), the sample itself first, and does not depend on the order of the scans.
    Another ``key`` draws independently.
    """
    names, person = np.unique(np.asarray(persons), return_inverse=True)
    digest = hashlib.sha256(f"bootstrap\0{seed}\0{key}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    parts = [statistic(np.ones((1, len(person))))]
    rows_at_once = max(1, 1_000_000 // len(person))
    for start in range(0, count, rows_at_once):
        rows = min(rows_at_once, count - start)
        drawn = random.integers(len(names), size=(rows, len(names)))
        drawn += np.arange(rows)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=rows * len(names)).reshape(rows, -1)
        parts.append(statistic(times[:, person].astype(float)))
    return np.concatenate(parts, axis=-1)


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
    """Value and interval of a metric from what ``resample`` gave for it, (1 + count,).

    The interval is value ± t · SE on the metric's own scale: SE is the spread of the resamples,
    and t has the quantile of a t distribution whose degrees of freedom are those of a sample with
    every class as small as the smallest. ``persons`` are those of every class (of a regression:
    all). docs/evaluation.md has the coverage in simulated cohorts: where percentiles of the
    resamples hold the truth in 83 to 91 %, at 10 to 14 persons a class, this does in 93 to 98 %.

    Where everybody was judged rightly (or wrongly), all resamples agree and say nothing of the
    uncertainty. The interval then ends where so perfect a result has a chance of 2.5 %: P(perfect)
    is at most (true value)^exponent, see ``perfection_exponent``. Metrics without an exponent have
    no interval there.

    ``by_chance``: resampling noise adds to an error that cannot be negative, so that neither
    percentiles nor the above ever reach a true zero. The interval then begins at the value less
    the 95 % quantile of what chance alone gives, a valid bound by the triangle inequality, and
    ends with the percentile.

    ``reason`` explains a value that is NaN.
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
    if _constant(samples):
        exponent = perfection_exponent(metric, persons)
        if exponent is None and abs(value - 1) < 1e-12:
            return Estimate(value, None, None, "perfect in this sample: no interval can be given")
        low = tail ** (1 / exponent) if exponent and value > 1 - 1e-12 else value
        high = 1 - tail ** (1 / exponent) if exponent and value < 1e-12 else value
        return Estimate(value, low, high)
    inflation = _inflation(persons) if METRICS[metric].scale.few_persons else 1
    return with_error(value, float(valid.std(ddof=1)) * inflation, metric, persons, level=level)


def with_error(
    value: float, error: float, metric: str, persons: Sequence[int], *, level: float = LEVEL
) -> Estimate:
    """A value and the interval that its standard error gives, as in ``estimate``."""
    if error < 1e-12:
        return estimate(np.full(3, value), metric, persons, level=level)
    scale = METRICS[metric].scale
    try:
        centre, slope = scale.to(value), scale.slope(value)
    except (ValueError, ZeroDivisionError):
        why = "at the end of what it can be in this sample: no interval can be given"
        return Estimate(value, None, None, why)
    reach = float(stats.t.ppf((1 + level) / 2, _degrees(persons))) * error * slope
    return Estimate(value, scale.back(centre - reach), scale.back(centre + reach))


def mean_with_error(values: Values, persons: Sequence[str] | NDArray) -> tuple[float, float]:
    """Mean of values (scans,), and its standard error with the scans clustered by person."""
    _, person = np.unique(np.asarray(persons), return_inverse=True)
    mean = float(values.mean())
    sums = np.bincount(person, values - mean)
    return mean, float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)) / len(values))


def _degrees(persons: Sequence[int]) -> int:
    return max(1, len(persons) * (min(persons) - 1))


def _inflation(persons: Sequence[int]) -> float:
    return math.sqrt(min(persons) / max(1, min(persons) - 1))


def _constant(samples: Values) -> bool:
    return bool(np.nanmax(samples) - np.nanmin(samples) < 1e-12)


def perfection_exponent(metric: str, persons: Sequence[int]) -> int | None:
    """k in P(perfect result) ≤ (true value)^k, given the persons of every class; None if unknown.

    Sensitivity: each of n persons is found with the true sensitivity, so k = n. AUC: among m =
    min(n) disjoint pairs of a positive and a negative all must be ranked rightly, so k = m.
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
    if ends[1] or (ends[0] and not _constant(second)):
        return _beside_an_end(first, second, metric, persons, reason)
    if known and _constant(second):
        return _from_constant(first, float(second[0]), metric, persons, reason)
    value, valid = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    if np.isnan(value) or len(valid) < 0.9 * (len(samples) - 1):
        return estimate(samples, metric, persons, reason=reason)
    error = standard_error or float(valid.std(ddof=1)) * _inflation(persons)
    if error < 1e-12:
        return Estimate(value, value, value, p=1.0 if abs(value) < 1e-12 else 0.0)
    degrees = _degrees(persons)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(value) / error, degrees))
    return Estimate(value, value - reach, value + reach, p=p)


def _at_an_end(samples: Values, metric: str) -> bool:
    """Whether everybody was judged rightly, or wrongly, in the sample and so in all resamples."""
    value = float(samples[0])
    return (
        METRICS[metric].scale is LOGIT
        and _constant(samples)
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
    if _constant(first):
        exponent = perfection_exponent(metric, persons)
        # How likely is so perfect (or hopeless) a result when the truth is the constant?
        p = 2 * abs(1 - value - constant) ** exponent if exponent and value in (0, 1) else 1.0
    else:
        valid = first[1:][~np.isnan(first[1:])]
        scale = METRICS[metric].scale
        error = float(valid.std(ddof=1)) * (_inflation(persons) if scale.few_persons else 1)
        try:
            distance = (scale.to(value) - scale.to(constant)) / (error * scale.slope(value))
        except (ValueError, ZeroDivisionError):  # the constant is an end of the scale
            distance = math.inf
        p = float(2 * stats.t.sf(abs(distance), _degrees(persons)))
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
