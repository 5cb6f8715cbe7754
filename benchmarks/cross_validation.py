"""How often the intervals of a cross-validation hold the truth.

    python benchmarks/cross_validation.py [COHORTS]

Simulated cohorts (500 by default) of two classes with ten normal features; in each, five folds of a
linear discriminant are tested on their persons, what they predict is pooled, and the AUC gets the
interval of the evaluation. ``way`` is how often it holds the mean
true AUC of all models made in this way, ``own`` that of the five models of the cohort itself. A
true AUC is known by formula. ``repeats`` deals each cohort to folds anew and takes means. The
standard error of a share of 0.95 among 500 is 0.010.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from neurofoundry.stats import intervals, metrics

FEATURES = 10
FOLDS = 5
WIDENING = (FOLDS / (FOLDS - 2)) ** 0.5
"""As in Evidence.widening."""
CLASSES = ((12, 12), (20, 20), (33, 12), (60, 60))
DISTANCES = (0.0, 1.0, 2.0)
"""Mahalanobis distances of the classes: hopeless, middling and good models."""


def discriminant(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and threshold of a discriminant with a covariance that is shrunk by half."""
    means = [features[labels == k].mean(axis=0) for k in (0, 1)]
    within = np.concatenate([features[labels == k] - means[k] for k in (0, 1)])
    covariance = within.T @ within / max(1, len(within) - 2)
    shrunk = 0.5 * covariance + 0.5 * np.trace(covariance) / FEATURES * np.eye(FEATURES)
    weights = np.linalg.solve(shrunk, means[1] - means[0])
    return weights, float(weights @ (means[0] + means[1]) / 2)


def cohort(
    random: np.random.Generator, healthy: int, ill: int, distance: float, repeats: int
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Pooled scores of each repeat, the labels, and the mean true AUC of the models."""
    labels = np.repeat([0, 1], [healthy, ill])
    features = random.normal(size=(len(labels), FEATURES))
    features[:, 0] += distance * labels
    pooled, true = [], []
    for _ in range(repeats):
        fold = np.empty(len(labels), int)
        for k in (0, 1):
            inside = random.permutation(np.flatnonzero(labels == k))
            fold[inside] = np.arange(len(inside)) % FOLDS
        scores = np.empty(len(labels))
        for number in range(FOLDS):
            train = (fold != number) & (fold != (number + 1) % FOLDS)
            weights, middle = discriminant(features[train], labels[train])
            tested = fold == number
            scores[tested] = features[tested] @ weights - middle
            shift = distance * weights[0] / np.sqrt(2 * weights @ weights)
            true.append(float(stats.norm.cdf(shift)))
        pooled.append(scores)
    return pooled, labels, float(np.mean(true))


def interval(pooled: list[np.ndarray], labels: np.ndarray) -> intervals.Estimate:
    """The AUC, mean over repeats, with its interval."""
    found = intervals.jackknife(
        lambda w: np.array([metrics.ranking(labels == 1, each, w)[0] for each in pooled]),
        [f"p{number:03d}" for number in range(len(labels))],
        labels,
    )
    sample = found.of_folds(len(pooled), WIDENING).mean()
    persons = [round(count / WIDENING**2) for count in np.bincount(labels)]
    return intervals.estimate(sample, "auc", persons)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohorts", type=int, nargs="?", default=500)
    count = parser.parse_args().cohorts
    print("persons  distance  repeats  true AUC  pooled  way   own    width")
    for healthy, ill in CLASSES:
        for distance in DISTANCES:
            for repeats in (1, 3):
                drawn = [
                    cohort(np.random.default_rng(seed), healthy, ill, distance, repeats)
                    for seed in range(count)
                ]
                estimates = [interval(*each[:2]) for each in drawn]
                own = np.array([each[2] for each in drawn])
                low, high, value = (
                    np.array([getattr(e, end) for e in estimates], float)
                    for end in ("low", "high", "value")
                )
                way = np.mean((low <= own.mean()) & (own.mean() <= high))
                held = np.mean((low <= own) & (own <= high))
                print(
                    f"{healthy:3}+{ill:<3} {distance:7.1f} {repeats:8} {own.mean():10.3f} "
                    f"{value.mean():7.3f} {way:6.3f} {held:5.3f} {np.mean(high - low):7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
