"""Sets of answers that hold the truth with a stated probability (split conformal prediction)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

COVERAGE = 0.9
"""Aimed at."""


def limit(scores: Values, persons: NDArray[Any], coverage: float = COVERAGE) -> float:
    """Return the score that a scan of a new person stays within with a probability of ``coverage``
    or more, from the scores (scans,) of other persons; infinite where they are too few.

    Each person counts as one, however many scans there are (hierarchical conformal prediction; Lee,
    Barber & Willett, arXiv 2306.06342). With one scan a person it is the ⌈(n + 1)·coverage⌉-th
    smallest score (Vovk et al. 2005; Lei et al., JASA 113, 2018).
    """
    if not len(scores):
        return math.inf
    names, person, scans = np.unique(persons, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / scans[person][order]) / (len(names) + 1)
    enough = np.flatnonzero(reached >= coverage - 1e-9)
    return float(scores[order][enough[0]]) if len(enough) else math.inf


def fewest(coverage: float = COVERAGE) -> int:
    """Return how many persons a limit takes: 9 for 90 %."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def spread(persons: int, coverage: float = COVERAGE) -> tuple[float, float]:
    """Return between what the true coverage of a limit lies in 95 % of draws of so many persons.

    The promise is kept on average over who calibrates; for one choice of them the coverage follows
    a beta distribution (Vovk, Asian Conference on Machine Learning 2012).
    """
    from scipy import stats

    beyond = math.floor((persons + 1) * (1 - coverage) + 1e-9)
    if not beyond:
        return 1.0, 1.0
    low, high = stats.beta.ppf((0.025, 0.975), persons + 1 - beyond, beyond)
    return float(low), float(high)


def sets(probabilities: Values, limits: Values) -> NDArray[np.bool_]:
    """Return which classes are in the set of each scan, (scans, classes), from limits of
    1 − probability for each class (Sadinle, Lei & Wasserman, JASA 114, 2019); the likeliest always
    is."""
    inside: NDArray[np.bool_] = 1 - probabilities <= limits
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside
