"""How often 95 % intervals hold the truth, and how often tests find equals different.

    python benchmarks/coverage.py [COHORTS] [SEED] [--to neurofoundry/evaluate/report/coverage.md]

Simulated cohorts (1,000 by default) of persons with one to three scans that correlate by 0.8.
Models of two classes are good (true AUC 0.97), middling (0.75), poor (0.55) or constant: as poor,
and ill is called so rarely (2 to 3 %) that in most cohorts nobody is. Regressions are off by 3, 9
or 20 of a label whose standard deviation is 12, or predict nearly the same for everybody. Of each
cohort the intervals of the evaluation are compared with the truth, which is what the same metrics
say of 200,000 persons; a value that an evaluation calls not estimable has none. Then two models
that are equally good on the same persons are compared, and a constant model with one that guesses.
The standard error of a share of 0.95 among 1,000 is 0.007. docs/measurements.md has what it found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import special, stats

from neurofoundry.stats import comparisons, intervals, metrics
from neurofoundry.stats.intervals import Estimate, Jackknife

ALIKE = 0.8
RESAMPLES = 200
POPULATION = 200_000
CLASSES = ((8, 8), (4, 12), (16, 9), (35, 35), (100, 30))
PERSONS = (16, 25, 70, 130)
SKILLS = {"good": 0.97, "middling": 0.75, "poor": 0.55, "constant": 0.55}
ERRORS = {"good": 3.0, "middling": 9.0, "poor": 20.0, "constant": 0.3}
RARELY = 2.05
"""Score above which a constant model calls somebody ill."""

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Person (scans,), label (scans,) and outputs (models, scans, 2) or (models, scans)."""


def _traits(random: np.random.Generator, persons: int, models: int) -> tuple[np.ndarray, ...]:
    """Person (scans,) and standard normal errors (models, scans); half of the error of a person is
    shared by the models."""
    person = np.arange(persons).repeat(random.integers(1, 4, persons))
    hard, own = random.normal(size=(1, persons)), random.normal(size=(models, persons))
    trait = own if models == 1 else np.sqrt(0.5) * (hard + own)
    noise = random.normal(size=(models, len(person)))
    return person, np.sqrt(ALIKE) * trait[:, person] + np.sqrt(1 - ALIKE) * noise


def classes(
    random: np.random.Generator, sizes: Sequence[int], kinds: Sequence[str], seen: float = 1
) -> Drawn:
    """Draw healthy and ill persons, and a model of each kind; ``seen`` scales its skill."""
    sick = np.arange(sum(sizes)) >= sizes[0]
    person, errors = _traits(random, len(sick), len(kinds))
    outputs = []
    for kind, error in zip(kinds, errors, strict=True):
        apart = seen * np.sqrt(2) * stats.norm.ppf(SKILLS[kind])
        score = apart * sick[person] + error
        outputs.append(
            0.3 * (score - RARELY) if kind == "constant" else apart * (score - apart / 2)
        )
    p = special.expit(np.array(outputs))
    return person, sick[person].astype(int), np.stack([1 - p, p], axis=-1)


def values(random: np.random.Generator, sizes: Sequence[int], kinds: Sequence[str]) -> Drawn:
    """Draw persons with a label of 60 ± 12, and a model of each kind."""
    person, errors = _traits(random, sizes[0], len(kinds))
    label = random.normal(60, 12, sizes[0])[person]
    signal = {"good": 1.0, "middling": 1.0, "poor": 0.3, "constant": 0.0}
    outputs = [
        60 + signal[kind] * (label - 60) + ERRORS[kind] * (signal[kind] or 1) * error
        for kind, error in zip(kinds, errors, strict=True)
    ]
    return person, label, np.array(outputs)


def measured(drawn: Drawn, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All metrics, (models, samples) each; the threshold is the one that is right on average."""
    _, labels, outputs = drawn
    if outputs.ndim == 2:
        by_model = [metrics.regression(labels, each, weights) for each in outputs]
    else:
        by_model = [metrics.classification(labels, p, weights, threshold=0.5) for p in outputs]
        for each, p in zip(by_model, outputs, strict=True):
            line = metrics.calibration_line(labels == 1, p[:, 1], weights)
            each |= dict(zip(("calibration_intercept", "calibration_slope"), line, strict=True))
    return {name: np.stack([each[name] for each in by_model]) for name in by_model[0]}


def left_out(drawn: Drawn) -> dict[str, Jackknife]:
    """The same without each person."""
    names = list(measured(drawn, np.ones((1, len(drawn[0])))))
    found = intervals.jackknife(
        lambda weights: np.stack(list(measured(drawn, weights).values())),
        drawn[0],
        None if drawn[2].ndim == 2 else drawn[1],
    )
    return {name: found[place] for place, name in enumerate(names)}


def calibration(drawn: Drawn, seed: int) -> np.ndarray:
    """The calibration error, and that by chance, of each model in resamples: (models, 2, …)."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        sick = drawn[1] == 1
        return np.stack([metrics.calibration_error(sick, p[:, 1], weights) for p in drawn[2]])

    return intervals.resample(statistic, drawn[0], count=RESAMPLES, seed=seed)


def coverage(
    draw: Callable[..., Drawn], sizes: tuple[int, ...], kind: str, cohorts: int, seed: int
):
    """Return, of each metric, the shares of cohorts whose interval holds the truth, and of those
    that have one."""
    people = draw(np.random.default_rng(1), [POPULATION // sum(sizes) * s for s in sizes], [kind])
    once = np.ones((1, len(people[0])))
    truth = {name: float(each[0, 0]) for name, each in measured(people, once).items()}
    random = np.random.default_rng([seed, *sizes, len(kind)])
    holds: dict[str, list[bool]] = {name: [] for name in truth if name in metrics.METRICS}
    if draw is classes:
        sick, p = people[1] == 1, people[2][0, :, 1]
        truth["ece"] = float(metrics.calibration_error(sick, p, once)[0][0])
        holds["ece"] = []
    for number in range(cohorts):
        drawn = draw(random, sizes, [kind])
        sample = left_out(drawn)
        found = {name: _estimate(sample, name, sizes) for name in holds if name != "ece"}
        if "ece" in holds:
            found["ece"] = intervals.excess_error(*calibration(drawn, number)[0])
        for name, each in found.items():
            if each.low is not None:
                holds[name].append(each.low <= truth[name] <= each.high)
    return {
        name: [float(np.mean(each)) if each else None, len(each) / cohorts]
        for name, each in holds.items()
    }


def _estimate(sample: dict[str, Jackknife], name: str, sizes: tuple[int, ...]) -> Estimate:
    spread = sample["brier_spread"][0].value if name == "brier" else 0
    return intervals.estimate(sample[name][0], name, sizes, spread=spread)


def equals(draw: Callable[..., Drawn], sizes: tuple[int, ...], kind: str, cohorts: int, seed: int):
    """Return, of each metric, the share of cohorts in which equals differ with p < 0.05."""
    random = np.random.default_rng([seed, 1, *sizes, len(kind)])
    differ: dict[str, list[bool]] = {}
    for number in range(cohorts):
        drawn = draw(random, sizes, [kind, kind])
        sample = left_out(drawn)
        found = {
            name: comparisons.difference(each[0], each[1], name, sizes).p
            for name, each in sample.items()
            if name in metrics.METRICS and not name.startswith("calibration")
        }
        if draw is classes:
            one, two = calibration(drawn, number)[:, 0]
            error = float((one - two)[1:].std(ddof=1))
            found["ece"] = comparisons.t_test(float(one[0] - two[0]), error, sizes).p
        for name, p in found.items():
            differ.setdefault(name, []).append(p is not None and p < 0.05)
    return {name: float(np.mean(each)) for name, each in differ.items()}


def guesses(sizes: tuple[int, ...], cohorts: int, seed: int):
    """Return how often a constant model and one that guesses differ, and how often a guess differs
    from chance: with no skill, all have an AUC and a balanced accuracy of 0.5."""
    random = np.random.default_rng([seed, 2, *sizes])
    differ: dict[str, list[bool]] = {"auc": [], "balanced_accuracy": [], "auc of chance": []}
    for _ in range(cohorts):
        sample = left_out(classes(random, sizes, ["constant", "poor"], seen=1e-9))
        chance = sample["auc"][1]
        chance = Jackknife(np.full_like(chance.values, 0.5), chance.strata)
        for name in ("auc", "balanced_accuracy"):
            each = sample[name]
            differ[name].append(comparisons.difference(each[0], each[1], name, sizes).p < 0.05)
        found = comparisons.difference(sample["auc"][1], chance, "auc", sizes, known=True)
        differ["auc of chance"].append(found.p < 0.05)
    return {name: float(np.mean(each)) for name, each in differ.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohorts", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--to", type=Path, help="write the tables there")
    options = parser.parse_args()
    cohorts, seed = options.cohorts, options.seed
    found: dict[str, dict[str, dict]] = {"coverage": {}, "differ": {}}
    cells = [(classes, sizes) for sizes in CLASSES] + [(values, (count,)) for count in PERSONS]
    for draw, sizes in cells:
        persons = " + ".join(map(str, sizes))
        for kind in SKILLS:
            for title, simulate in {"coverage": coverage, "differ": equals}.items():
                shares = simulate(draw, sizes, kind, cohorts, seed)
                found[title][f"{persons}, {kind}"] = shares
                print(f"{title}, {persons} persons, {kind}: {_text(shares)}", flush=True)
        if draw is classes:
            shares = guesses(sizes, cohorts, seed)
            found["differ"][f"{persons}, guesses"] = shares
            print(f"differ, {persons} persons, guesses: {_text(shares)}", flush=True)
    if options.to:
        options.to.write_text(_page(found, f"{cohorts} {seed}"))


def _page(found: dict[str, dict[str, dict]], arguments: str) -> str:
    """The tables of all shares, in %, as the report reads and the documentation shows them."""
    titles = {
        "coverage": "Cohorts whose 95 % interval holds the truth, %",
        "differ": "Cohorts in which equals differ with p < 0.05, %",
    }
    page = [f"Written by `python benchmarks/coverage.py {arguments}`."]
    for title, rows in found.items():
        columns = {tuple(row): None for row in rows.values()}
        for names in columns:
            page += ["", f"{titles[title]}:", "", f"| persons | model | {' | '.join(names)} |"]
            page.append("|---" * (2 + len(names)) + "|")
            for key, row in rows.items():
                if tuple(row) == names:
                    cells = " | ".join(_cell(each) for each in row.values())
                    page.append(f"| {' | '.join(key.split(', '))} | {cells} |")
    return "\n".join(page) + "\n"


def _cell(share: float | list[float | None]) -> str:
    value = share[0] if isinstance(share, list) else share
    return "–" if value is None else f"{100 * value:.1f}"


def _text(shares: dict) -> str:
    pairs = {name: each if isinstance(each, list) else [each, 1] for name, each in shares.items()}
    return ", ".join(
        f"{name} "
        + ("not estimable" if share is None else f"{share:.1%}")
        + f" (of {part:.0%})" * (0 < part < 1)
        for name, (share, part) in pairs.items()
    )


if __name__ == "__main__":
    main()
