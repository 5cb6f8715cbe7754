"""Corrections of calibration: functions of outputs that are learned from some persons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from neurofoundry.stats import metrics
from neurofoundry.stats.metrics import Values

Correction = Callable[[Values], Values]


def platt(labels: NDArray[np.integer], probabilities: Values, where: str) -> Correction | str:
    """p → σ(a + b·logit p) of two classes, probabilities (scans, 2); or why there is none.

    With Platt's smoothed targets (Platt 1999), which keep a and b finite. ``where`` names the
    scans in a sentence.
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
    """Logits over the temperature of least cross-entropy (Guo et al. 2017), of probabilities
    (scans, classes)."""
    logits, rows = _logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.sum(special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x
    scale = float(np.exp(best))
    return lambda values: special.softmax(_logits(values) / scale, axis=1)


def line(labels: Values, outputs: Values, where: str) -> Correction | str:
    """With output = a + b·label by least squares, output → (output − a)/b, which does not use the
    label of whom it corrects (Smith et al., NeuroImage 200, 2019); or why there is none."""
    if len(labels) < 5 or np.ptp(labels) == 0:
        return f"{where} has too few labels to learn a correction from"
    slope, intercept = np.polyfit(labels, outputs, 1)
    if slope < 0.05:
        return f"on {where} the outputs do not follow the label: nothing to correct by"
    return lambda values: (values - intercept) / slope


def _log_odds(probabilities: Values) -> Values:
    logits = _logits(probabilities)
    return logits[:, 1] - logits[:, 0]


def _logits(probabilities: Values) -> Values:
    return np.log(np.clip(probabilities, 1e-9, 1))
