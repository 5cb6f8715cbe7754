"""Cohorts that the tests share."""

from __future__ import annotations

import numpy as np
from scipy import special


def cohort(seed: int, scans: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, scans)
    labels[:classes] = range(classes)
    scores = np.round(random.dirichlet(np.ones(classes), scans), 1) + 0.05
    scores[np.arange(scans), labels] += 0.2
    return labels, scores / scores.sum(axis=1, keepdims=True)


def weights(seed: int, scans: int = 60, rows: int = 8) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 4, (rows, scans)).astype(float)
    drawn[:, :3] += 1  # every class is there
    return drawn


def two_sided(scores: np.ndarray) -> np.ndarray:
    """Scores (models, scans) as what a two-class model says."""
    p = special.expit(scores)
    return np.stack([1 - p, p], axis=-1)


RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
"""Six targets rated by four judges: table 2 of Shrout & Fleiss (1979)."""
