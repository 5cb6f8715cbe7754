"""Corrections of calibration: functions of outputs, fitted to the outputs and labels of some
scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from neurofoundry.stats import metrics
from neurofoundry.stats.metrics import Values

Correction = Callable[[Values], Values]
"""From outputs (scans, …) to better calibrated ones of the same shape."""

FEWEST_LABELS = 5
"""Scans that a line is fitted to."""

LEAST_SLOPE = 0.05
"""Slope of the outputs on the labels, below which undoing it would blow up the noise."""


def platt(labels: NDArray[np.integer], probabilities: Values, where: str) -> Correction | str:
    """Fit p → σ(a + b·logit p) to probabilities (scans, 2) of two classes, by maximum likelihood.

    The targets are Platt's (Advances in Large Margin Classifiers, 1999), (n₁ + 1)/(n₁ + 2) and
    1/(n₀ + 2) for n₁ and n₀ scans of the classes instead of 1 and 0: they keep a and b finite where
    the classes are separated. Returns the reason where nothing can be fitted; ``where`` names the
    scans in it.
    """
    x = _log_odds(probabilities)
    if np.ptp(x) == 0:
        return "the same output for everybody"
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    fitted = metrics.logistic_line(x, targets)
    if fitted is None:
        return f"no line fits the {where} subjects"
    a, b = fitted

    def corrected(values: Values) -> Values:
        p = special.expit(a + b * _log_odds(values))
        return np.stack([1 - p, p], axis=1)

    return corrected


def temperature(labels: NDArray[np.integer], probabilities: Values) -> Correction:
    """Fit the temperature that logits are divided by, to probabilities (scans, classes), by least
    cross-entropy (Guo et al., ICML 2017)."""
    logits, rows = _logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.sum(special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x
    scale = float(np.exp(best))
    return lambda values: special.softmax(_logits(values) / scale, axis=1)


def line(labels: Values, outputs: Values, where: str) -> Correction | str:
    """Fit output = a + b·label by least squares, to undo it: output → (output − a)/b.

    It does not use the label of whom it corrects (Smith et al., NeuroImage 200, 2019). Labels and
    outputs are (scans,). Returns the reason where nothing can be fitted; ``where`` names the scans
    in it.
    """
    if len(labels) < FEWEST_LABELS or np.ptp(labels) == 0:
        return f"{where} has too few labels to learn a correction from"
    slope, intercept = np.polyfit(labels, outputs, 1)
    if slope < LEAST_SLOPE:
        return f"on {where} the outputs do not follow the label: nothing to correct by"
    return lambda values: (values - intercept) / slope


def _log_odds(probabilities: Values) -> Values:
    logits = _logits(probabilities)
    return logits[:, 1] - logits[:, 0]


def _logits(probabilities: Values) -> Values:
    return np.log(np.clip(probabilities, 1e-9, 1))
