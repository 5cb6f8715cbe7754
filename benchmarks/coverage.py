"""How often 95 % intervals hold the truth, and how often tests find equals different.

    python benchmarks/coverage.py [COHORTS] [AUC]

Simulated cohorts (1,000 by default) of persons with one to three scans that correlate by 0.8, and
models of two classes whose true AUC is 0.90 by default. Of each cohort the intervals of the
evaluation, with 200 resamples of persons, are compared with the truth, which is what the same
metrics say of 200,000 persons. Then two models that are equally good on the same persons are
compared, by DeLong's test clustered by person (AUC) and by paired resampling. The standard error of
a share of 0.95 among 1,000 is 0.007. docs/measurements.md has what it found.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from scipy import special, stats

from neurofoundry.stats import comparisons, intervals, metrics

ALIKE = 0.8
RESAMPLES = 200
POPULATION = 200_000
CLASSES = ((10, 10), (14, 14), (35, 35), (50, 15))
PERSONS = (12, 24, 60)
NAMES = ("auc", "balanced_accuracy", "sensitivity", "specificity", "f1")
NAMES += ("average_precision", "brier", "ece")
COMPARED = ("auc", "balanced_accuracy", "average_precision", "brier")

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def classes(
    random: np.random.Generator, healthy: int, ill: int, models: int = 1, *, auc: float
) -> Drawn:
    """Person (scans,), class (scans,) and probabilities (models, scans, 2), calibrated where the
    classes are even. Models err independently, half of the error within a person being shared."""
    sick = np.arange(healthy + ill) >= healthy
    person = np.arange(len(sick)).repeat(random.integers(1, 4, len(sick)))
    hard, own = random.normal(size=(1, len(sick))), random.normal(size=(models, len(sick)))
    trait = own if models == 1 else np.sqrt(0.5) * (hard + own)
    noise = random.normal(size=(models, len(person)))
    apart = np.sqrt(2) * stats.norm.ppf(auc)
    score = apart * sick[person] + np.sqrt(ALIKE) * trait[:, person] + np.sqrt(1 - ALIKE) * noise
    p = special.expit(apart * (score - apart / 2))
    return person, sick[person].astype(int), np.stack([1 - p, p], axis=-1)


def errors(random: np.random.Generator, persons: int, models: int = 1) -> Drawn:
    """Person (scans,), label (scans,) and outputs (models, scans) that are off by 5 or so."""
    person = np.arange(persons).repeat(random.integers(1, 4, persons))
    hard, own = random.normal(size=(1, persons)), random.normal(size=(models, persons))
    trait = own if models == 1 else np.sqrt(0.5) * (hard + own)
    noise = random.normal(size=(models, len(person)))
    label = random.normal(60, 12, persons)[person]
    off = 5 * (np.sqrt(ALIKE) * trait[:, person] + np.sqrt(1 - ALIKE) * noise)
    return person, label, label + off


def measured(drawn: Drawn, weights: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All metrics of each model, the threshold being that which is right on average."""
    _, labels, outputs = drawn
    if outputs.ndim == 2:
        return [metrics.regression(labels, each, weights) for each in outputs]
    return [metrics.classification(labels, each, weights, threshold=0.5) for each in outputs]


def resampled(drawn: Drawn, seed: int) -> list[dict[str, np.ndarray]]:
    """The same, of the sample and of its resamples: (1 + RESAMPLES,) each."""
    names = list(measured(drawn, np.ones((1, len(drawn[0]))))[0])
    found = intervals.resample(
        lambda weights: np.array([list(each.values()) for each in measured(drawn, weights)]),
        drawn[0],
        count=RESAMPLES,
        seed=seed,
    )
    return [dict(zip(names, model, strict=True)) for model in found]


def coverage(draw, sizes: tuple[int, ...], names: tuple[str, ...], cohorts: int) -> None:
    """Print, of each metric, the share of cohorts whose interval holds the truth."""
    share = POPULATION // sum(sizes)
    people = draw(np.random.default_rng(1), *(share * size for size in sizes))
    truth = measured(people, np.ones((1, len(people[0]))))[0]
    random = np.random.default_rng(sum(sizes))
    holds: dict[str, list[bool]] = {name: [] for name in names}
    for number in range(cohorts):
        samples = resampled(draw(random, *sizes), number)[0]
        for name in names:
            by_chance = samples["ece_by_chance"] if name == "ece" else None
            found = intervals.estimate(samples[name], name, list(sizes), by_chance=by_chance)
            if found.low is not None:
                holds[name].append(found.low <= truth[name][0] <= found.high)
    texts = [
        f"{name} {np.mean(held):.1%}" + f" (of {len(held)})" * (len(held) < cohorts)
        for name, held in holds.items()
        if held
    ]
    print(f"coverage, {' + '.join(map(str, sizes))} persons: {', '.join(texts)}", flush=True)


def equals(draw, sizes: tuple[int, ...], names: tuple[str, ...], cohorts: int) -> None:
    """Print, of each metric, the share of cohorts in which equals differ with p < 0.05."""
    random = np.random.default_rng(1000 + sum(sizes))
    differ: dict[str, list[bool]] = {name: [] for name in names}
    for number in range(cohorts):
        drawn = draw(random, *sizes, models=2)
        first, second = resampled(drawn, number)
        error = None
        if "auc" in names:
            _, c = comparisons.auc_covariance(drawn[1], drawn[2], drawn[0])
            error = float(np.sqrt(max(0.0, c[0, 0] + c[1, 1] - 2 * c[0, 1])))
        for name in names:
            found = comparisons.difference(
                *(first[name], second[name], name, list(sizes)),
                standard_error=error if name == "auc" else None,
            )
            if found.p is not None:
                differ[name].append(found.p < 0.05)
    texts = [f"{name} {np.mean(each):.1%}" for name, each in differ.items()]
    print(f"equals differ, {' + '.join(map(str, sizes))} persons: {', '.join(texts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohorts", type=int, nargs="?", default=1000)
    parser.add_argument("auc", type=float, nargs="?", default=0.90)
    options = parser.parse_args()
    cohorts, two_classes = options.cohorts, partial(classes, auc=options.auc)
    for sizes in CLASSES:
        coverage(two_classes, sizes, NAMES, cohorts)
    for persons in PERSONS:
        coverage(errors, (persons,), ("mae", "rmse", "r2", "correlation"), cohorts)
    for sizes in CLASSES:
        equals(two_classes, sizes, COMPARED, cohorts)
    for persons in PERSONS:
        equals(errors, (persons,), ("mae",), cohorts)


if __name__ == "__main__":
    main()
