"""Metrics of predictions, for the sample and its resamples at once.

Every metric takes ``weights`` (resamples, scans), how often each scan counts in each resample, and
returns (resamples,) numbers, NaN where a resample has none (one class only). Models that share the
weights can be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from sklearn.metrics import roc_curve

from neurofoundry.stats.scales import FISHER, JACCARD, LINEAR, LOG, LOG_REMAINDER, SHARE, Scale

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, which way is better, and the scale of its interval."""

    title: str
    higher_is_better: bool | None
    """None: neither, the best value lies between."""
    scale: Scale
    if_normal: float | None = None
    """Of an error: the variance of its logarithm times the number of persons, if their errors are
    normal."""


METRICS = {
    "auc": Metric("AUC", True, SHARE),
    "balanced_accuracy": Metric("Balanced accuracy", True, SHARE),
    "sensitivity": Metric("Sensitivity", True, SHARE),
    "specificity": Metric("Specificity", True, SHARE),
    "f1": Metric("F1", True, JACCARD),
    "average_precision": Metric("Average precision", True, SHARE),
    "brier": Metric("Brier score", False, LOG),
    "ece": Metric("Calibration error", False, LINEAR),
    "calibration_slope": Metric("Calibration slope", None, LINEAR),
    "calibration_intercept": Metric("Calibration intercept", None, LINEAR),
    "mae": Metric("Mean absolute error", False, LOG, np.pi / 2 - 1),
    "rmse": Metric("Root mean square error", False, LOG, 0.5),
    "r2": Metric("R²", True, LOG_REMAINDER),
    "correlation": Metric("Correlation", True, FISHER),
    "icc_agreement": Metric("Agreement, ICC(2,1)", True, FISHER),
    "icc_consistency": Metric("Consistency, ICC(3,1)", True, FISHER),
    "identification": Metric("Identification rate", True, SHARE),
    "distance_ratio": Metric("Distance within over between persons", False, LOG),
    "bias_slope": Metric("Slope of the error", None, LINEAR),
}


EXACT = range(41, 401)
"""Resamples (persons left out) for which calibration lines are fitted to the end: with one step,
those of good models of 70 persons covered in 93 %. With fewer persons than these the whole way
covers in up to 99.8 %, and with more it makes no difference."""

FEWEST_FOR_ECE = 20
"""Scans that a calibration error is measured on."""


def classification(
    labels: NDArray[np.integer],
    probabilities: Values,
    weights: Values,
    *,
    threshold: float | Values | None = None,
) -> dict[str, Values]:
    """Return all metrics of a classification by name.

    ``labels`` (scans,) are indices of classes, ``probabilities`` (scans, classes). With two
    classes the second is the one of interest and is called at ``threshold`` (or that of each scan)
    or above; without a
    threshold, what depends on it is NaN. With more, the likeliest class is called; AUC, F1 and
    average precision are means of one class against the rest. ``brier_spread`` is no metric:
    ``estimate`` needs it for the interval of the Brier score.
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
    values = {
        "auc": np.mean([area for area, _ in ranked], axis=0),
        "balanced_accuracy": np.mean(recalls, axis=0),
    }
    if classes == 2:
        values |= {"sensitivity": recalls[1], "specificity": recalls[0]}
    return values | {
        "f1": np.mean(harmonic, axis=0),
        "average_precision": np.mean([precision for _, precision in ranked], axis=0),
        "brier": brier(labels, probabilities, weights),
        "brier_spread": np.full(len(weights), brier_spread(probabilities)),
    }


def regression(labels: Values, outputs: Values, weights: Values) -> dict[str, Values]:
    """Return all metrics of a regression by name, of labels and outputs (scans,); errors are in the
    unit of the labels."""
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


def ranking(labels: ArrayLike, scores: Values, weights: Values) -> tuple[Values, Values]:
    """Return the area under the ROC curve and the average precision, each (resamples,).

    ``labels`` (scans,) are true for positives. The area is how often a positive scan has a higher
    score than a negative, ties counting half (Hanley & McNeil, Radiology 143, 1982); the average
    precision is Σ (Rₙ − Rₙ₋₁)·Pₙ over the thresholds (scikit-learn's). Both are sums over positives
    of what ranks above them, and so come out of one pass.
    """
    positive = np.asarray(labels, bool)
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    up, down = (each[np.argsort(-scores[each], kind="stable")] for each in (up, down))
    of_up, rank_up, rank_down = weights[:, up], -scores[up], -scores[down]
    # How many negatives are above each positive, and how many above or level with it.
    above, level = (np.searchsorted(rank_down, rank_up, side) for side in ("left", "right"))
    negatives = np.zeros((len(weights), len(down) + 1))
    np.cumsum(weights[:, down], axis=1, out=negatives[:, 1:])
    hits = np.cumsum(of_up, axis=1)
    hits = hits[:, np.searchsorted(rank_up, rank_up, "right") - 1]
    alarms = negatives[:, level]
    wrong = alarms if (above == level).all() else (negatives[:, above] + alarms) / 2
    positives, total = of_up.sum(axis=1), negatives[:, -1]
    called = hits + alarms
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    with np.errstate(invalid="ignore"):
        area = 1 - (of_up * wrong).sum(axis=1) / (positives * total)
        return area, (of_up * precision).sum(axis=1) / positives


def sensitivity_at(
    labels: ArrayLike, scores: Values, weights: Values, false_alarms: Values
) -> Values:
    """Return the ROC curve at given, rising shares of false alarms: (shares, resamples).

    ``labels`` (scans,) are true for positives. The points of the curve are joined by straight
    lines; where it climbs at one share, its end counts. NaN where a resample lacks a class.
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
    curves = np.stack([np.interp(false_alarms, *row) for row in zip(alarms, hits, strict=True)])
    curves[np.isnan(hits[:, -1]) | np.isnan(alarms[:, -1])] = np.nan
    return curves.T


def share(hits: NDArray[np.bool_], weights: Values, *, among: NDArray[np.bool_]) -> Values:
    """Return the share of scans ``among`` some that are hits: sensitivity among the diseased."""
    with np.errstate(invalid="ignore"):
        shares: Values = (weights @ (hits & among)) / (weights @ among.astype(float))
    return shares


def f1(positive: NDArray[np.bool_], called: NDArray[np.bool_], weights: Values) -> Values:
    """Return the harmonic mean of precision and recall, 2·hits / (positives + calls)."""
    counts = positive.astype(float) + called
    with np.errstate(invalid="ignore"):
        harmonic: Values = 2 * (weights @ (positive & called)) / (weights @ counts)
    return harmonic


def brier(labels: NDArray[np.integer], probabilities: Values, weights: Values) -> Values:
    """Return the mean squared error of probabilities (scans, classes), summed over the classes;
    half of it for two classes (Brier, Monthly Weather Review 78, 1950)."""
    losses = _squared_errors(probabilities)[np.arange(len(labels)), labels]
    return _mean(losses, weights, weights.sum(axis=1))


def brier_spread(probabilities: Values) -> float:
    """Return the variance of the Brier score of a scan, within its class, that the probabilities
    themselves announce: (scans, classes).

    In a sample in which a good model errs nowhere, its losses hardly vary, though it says how often
    it will err. As it may say too little, every class keeps a chance of one in (scans + 1).
    """
    scans, classes = probabilities.shape
    chance = (scans * probabilities + 1 / classes) / (scans + 1)
    losses, share = _squared_errors(probabilities), chance.sum(axis=0)
    mean = (chance * losses).sum(axis=0) / share
    return float((chance * (losses - mean) ** 2).sum() / scans)


def _squared_errors(probabilities: Values) -> Values:
    """Return the Brier score of every scan, were it of each class: (scans, classes)."""
    classes = probabilities.shape[1]
    errors = (probabilities**2).sum(axis=1, keepdims=True) - 2 * probabilities + 1
    halved: Values = errors / (2 if classes == 2 else 1)
    return halved


def calibration_bins(confidence: Values) -> NDArray[np.intp]:
    """Return the bin of every scan: up to ten of equal mass, each of ten scans or more.

    Ties share a bin. With fewer than 20 scans there is one bin, which says little.
    """
    count = int(np.clip(len(confidence) // 10, 1, 10))
    edges = np.unique(np.quantile(confidence, np.arange(1, count) / count))
    return np.searchsorted(edges, confidence, side="right")


def calibration_error(
    right: NDArray[np.bool_], confidence: Values, weights: Values
) -> tuple[Values, Values]:
    """Return the expected calibration error, mean |share right − confidence| over
    ``calibration_bins`` (Naeini et al., AAAI 2015), and the error that chance alone gives.

    The latter is the deviation of each resample from the sample: what a perfectly calibrated model
    would show. The bins are those of the sample in all resamples. NaN with fewer than
    FEWEST_FOR_ECE scans.
    """
    if len(confidence) < FEWEST_FOR_ECE:
        unknown = np.full(len(weights), np.nan)
        return unknown, unknown
    bins = calibration_bins(confidence)
    excess = np.zeros((len(bins), int(bins.max()) + 1))
    excess[np.arange(len(bins)), bins] = right - confidence
    by_bin = (weights @ excess) / weights.sum(axis=1, keepdims=True)
    return np.abs(by_bin).sum(axis=1), np.abs(by_bin - excess.mean(axis=0)).sum(axis=1)


def calibration_line(
    positive: NDArray[np.bool_], probabilities: Values, weights: Values
) -> tuple[Values, Values]:
    """Return the intercept and the slope of calibration; perfect ones are 0 and 1.

    The slope is b of logit P(positive) = a + b·logit p, the intercept is a where b is held at 1:
    above 0, the risks stated are too low (Van Calster et al., BMC Medicine 17, 2019). Resamples
    take one Newton step from the fit to the sample, up to ``EXACT`` of them a second one. NaN where
    the outputs separate the classes.
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
        if len(weights) in EXACT:
            start = fitted[0] + (h11 * g0 - h01 * g1) / (h00 * h11 - h01**2)
            slope += _second_step(x, positive, weights, start, slope)
        p = special.expit(shift[0] + x)
        intercept = shift[0] + (weights @ (positive - p)) / (weights @ (p * (1 - p)))
    return intercept, slope


def _second_step(
    x: Values, positive: NDArray[np.bool_], weights: Values, intercept: Values, slope: Values
) -> Values:
    """Return the Newton step of the slope from other lines (resamples,) for each resample."""
    p = special.expit(intercept[:, None] + slope[:, None] * x)
    error, spread = weights * (positive - p), weights * p * (1 - p)
    g0, g1, h00 = error.sum(axis=1), error @ x, spread.sum(axis=1)
    h01, h11 = spread @ x, spread @ x**2
    step: Values = (h00 * g1 - h01 * g0) / (h00 * h11 - h01**2)
    return step


def logistic_line(
    x: Values, targets: Values, *, slope: float | None = None
) -> tuple[float, float] | None:
    """Return intercept and slope of a logistic regression of ``targets`` (0 to 1) on x, (scans,).

    A ``slope`` that is given is held. By Newton's method; None where the likelihood has no maximum.
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
    """Return the slope of the error on the label: below 0, the old are taken for younger."""
    total = weights.sum(axis=1)
    y = labels - labels.mean()
    e = outputs - labels - (outputs - labels).mean()
    mean = _mean(y, weights, total)
    variance = _mean(y**2, weights, total) - mean**2
    variance[variance <= 1e-12 * np.mean(y**2)] = np.nan
    return (_mean(y * e, weights, total) - mean * _mean(e, weights, total)) / variance


def icc(ratings: Values, weights: Values) -> tuple[Values, Values]:
    """Return the intraclass correlations ICC(2,1) and ICC(3,1) of ratings (persons, raters, …),
    each (resamples, …).

    Shrout & Fleiss (Psychological Bulletin 86, 1979): of absolute agreement, where raters count as
    a sample of raters, and of consistency, where what each adds to everybody is forgiven.
    ``weights`` are (resamples, persons). NaN where all ratings are the same.
    """
    bms, jms, ems = mean_squares(ratings, weights)
    raters = ratings.shape[1]
    persons = weights.sum(axis=1).reshape(-1, *[1] * (ratings.ndim - 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = (bms - ems) / (bms + (raters - 1) * ems + raters * (jms - ems) / persons)
        consistency = (bms - ems) / (bms + (raters - 1) * ems)
    return agreement, consistency


def mean_squares(ratings: Values, weights: Values) -> tuple[Values, Values, Values]:
    """Return the mean squares of persons, raters and residual, each (resamples, …), of ratings and
    weights as in ``icc``."""
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
    """Return the threshold with the largest sensitivity + specificity (Youden, Cancer 3, 1950),
    midway between two observed scores.

    Of several, the one nearest to 0.5. None when a class is missing or all scores are the same.
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
