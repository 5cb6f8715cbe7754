"""Every number of the evaluation, with its interval: one long table each of values, of paired
differences, and of changes out of distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts.models import ENSEMBLE, counterpart, initialization_of
from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.runtime.progress import Progress
from neurofoundry.stats import comparisons, intervals
from neurofoundry.stats.intervals import Estimate, Jackknife
from neurofoundry.stats.metrics import METRICS, Values

MEASURES = [
    *("task", "init", "fraction", "split", "metric", "value", "low", "high"),
    *("seed_sd", "seeds", "members", "subjects", "scans", "reason"),
]
DIFFERENCES = [
    *("task", "init", "versus", "fraction", "versus_fraction", "split", "metric"),
    *("value", "low", "high", "p", "p_holm", "verdict", "reason"),
]
GAPS = ["task", "init", "fraction", "metric", "value", "low", "high", "p", "reason"]

THRESHOLDED = ("balanced_accuracy", "sensitivity", "specificity", "f1")


@dataclass(frozen=True, eq=False)
class Sample:
    """What a split shows of a model."""

    left_out: Mapping[str, Jackknife]
    """Each metric, and what its interval needs, without each person: (seeds, 1 + persons)."""
    calibration: Values | None
    """The calibration error in resamples of the persons and the one by chance, means over seeds:
    (2, 1 + count). None where the task states no probabilities."""


Samples = Mapping[Model, Sample]
"""Of each model that has outputs."""

Thresholds = Mapping[Model, Sequence[Values | None]]
"""For each model and seed the threshold that val suggests, of a cross-validation in the fold of
each scan (scans,); None where it suggests none."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The three tables of an evaluation."""

    measures: pd.DataFrame
    """MEASURES: a row a task, model, fraction, split and metric."""
    differences: pd.DataFrame
    """DIFFERENCES: init − versus on the same resampled persons, learned from ``fraction`` and
    ``versus_fraction`` of the labels. ``verdict`` is better, worse or none: the side of zero on
    which the whole interval lies, if any."""
    gaps: pd.DataFrame
    """GAPS: ood − test of the same model."""


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams, seed: int) -> Measured:
    """Measure every model of every task on val, test and ood, and compare them in pairs."""
    measures: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    gaps: list[dict[str, object]] = []
    with Progress("resampling", len(tasks), unit="tasks") as progress:
        for evidence in tasks:
            samples: dict[str, Samples] = {}
            thresholds = thresholds_of(evidence)
            for split in _measured_splits(evidence):
                drawn = resample(evidence, split, thresholds, params=params, seed=seed)
                samples[split] = drawn
                measures += values(evidence, split, drawn, thresholds, params=params)
                if split != "val":
                    differences += compare(evidence, split, drawn, _pairs(evidence, params))
            gaps += _gaps(evidence, samples)
            progress.advance()
    return Measured(
        table_of(measures, MEASURES),
        _adjust(table_of(differences, DIFFERENCES), tasks, params.reference),
        table_of(gaps, GAPS),
    )


def _measured_splits(evidence: Evidence) -> tuple[str, ...]:
    """Return val and test, and ood where the cohort has one."""
    return ("val", "test", "ood") if evidence.inside("ood").any() else ("val", "test")


def shortage(evidence: Evidence, split: str, *, min_subjects: int) -> str | None:
    """Return why nothing can be measured in a split, in words; None when something can."""
    counts = persons_per_class(evidence, split)
    labels = [f" with {evidence.task.column}={name}" for name in evidence.task.classes] or [""]
    for count, label in zip(counts, labels, strict=True):
        if count < min_subjects:
            found = f"{counted(count, 'subject')}{label}"
            return f"split '{split}' has {found}, {min_subjects} are needed"
    return None


def persons_per_class(evidence: Evidence, split: str) -> list[int]:
    """Return the number of persons of every class (of a regression: of all) in a split."""
    return evidence.task.persons_per_class(
        evidence.persons, evidence.targets, evidence.inside(split)
    )


def persons_to_count(evidence: Evidence, split: str) -> list[int]:
    """Return the number of persons of every class in a split, for intervals; who has scans of
    several classes counts for none, being no whole pair. See `Evidence.widening`."""
    targets = pd.Series(evidence.targets, evidence.persons)
    counted = evidence.task.persons_to_count(targets[evidence.inside(split)])
    return [max(1, round(count / evidence.widening(split) ** 2)) for count in counted]


def thresholds_of(evidence: Evidence) -> Thresholds:
    """Return the threshold that val suggests for each model and seed of a two-class task."""
    return {
        model: [_threshold(evidence, number, each) for number, each in enumerate(model.outputs)]
        for model in evidence.models
    }


def _threshold(evidence: Evidence, number: int, outputs: Values) -> Values | None:
    """Return the threshold of each scan, from the val scans of the same fold alone."""
    thresholds = np.empty(len(evidence.targets))
    for _, made in evidence.by_fold(number):
        val = made & evidence.inside("val")
        found = evidence.task.threshold(evidence.targets[val], outputs[val]) if val.any() else None
        if found is None:
            return None
        thresholds[made] = found
    return thresholds


def on_validation(evidence: Evidence, model: Model) -> float:
    """Return the primary metric of the task on val, mean over seeds.

    Good enough to choose by, however few the subjects. NaN where val lacks a class.
    """
    rows = evidence.inside("val")
    if not rows.any():
        return float("nan")
    once = np.ones((1, int(rows.sum())))
    task, labels = evidence.task, evidence.labels[rows]
    by_seed = [task.measure(labels, each[rows], once)[task.primary][0] for each in model.outputs]
    return float(np.mean(by_seed))


def resample(
    evidence: Evidence,
    split: str,
    thresholds: Thresholds,
    *,
    params: EvaluateParams,
    seed: int,
) -> Samples:
    """Return what a split shows of every model. Empty where it has too few persons.

    All models see the same persons left out, and the same resamples, so that they can be compared
    in pairs; so do the models of two evaluations of the same scans.
    """
    models = [model for model in evidence.models if model.seeds]
    if not models or shortage(evidence, split, min_subjects=params.min_subjects):
        return {}
    left_out = _left_out(evidence, split, models, thresholds)
    errors = calibration_errors(
        evidence, split, [list(model.outputs) for model in models], params.bootstraps, seed
    )
    return {
        model: Sample(left_out[model], None if errors is None else errors[index])
        for index, model in enumerate(models)
    }


def _left_out(
    evidence: Evidence, split: str, models: Sequence[Model], thresholds: Thresholds
) -> dict[Model, dict[str, Jackknife]]:
    rows = evidence.inside(split)
    labels = evidence.labels[rows]
    runs = [(model, index) for model in models for index in range(len(model.seeds))]

    def measured(model: Model, index: int, weights: Values) -> dict[str, Values]:
        # A threshold measured on the scans that it was chosen on would flatter.
        threshold = None if split == "val" else thresholds[model][index]
        of_scans = threshold if threshold is None else threshold[rows]
        return evidence.task.measure(labels, model.outputs[index][rows], weights, of_scans)

    names = list(measured(*runs[0], np.ones((1, int(rows.sum())))))
    found = intervals.jackknife(
        lambda weights: np.array([list(measured(*run, weights).values()) for run in runs]),
        evidence.persons[rows],
        labels if evidence.task.classes else None,
    )
    return {
        model: {
            name: found[[run[0] is model for run in runs], position].of_folds(
                len(evidence.made_by), evidence.widening(split)
            )
            for position, name in enumerate(names)
        }
        for model in models
    }


def calibration_errors(
    evidence: Evidence, split: str, outputs: Sequence[Sequence[Values]], bootstraps: int, seed: int
) -> Values | None:
    """Return the calibration error of each model in resamples of a split, and the one by chance,
    means over its seeds: (models, 2, 1 + bootstraps). ``outputs`` are those of each seed."""
    rows = evidence.inside(split)
    labels, once = evidence.labels[rows], np.ones((1, int(rows.sum())))
    if evidence.task.calibration_error(labels, outputs[0][0][rows], once) is None:
        return None

    def of_model(seeds: Sequence[Values], weights: Values) -> Values:
        by_seed = (evidence.task.calibration_error(labels, each[rows], weights) for each in seeds)
        return np.asarray(np.mean([each for each in by_seed if each is not None], axis=0))

    return intervals.resample(
        lambda weights: np.stack([of_model(seeds, weights) for seeds in outputs]),
        evidence.persons[rows],
        count=bootstraps,
        seed=seed,
        key=split,
    )


def values(
    evidence: Evidence,
    split: str,
    samples: Samples,
    thresholds: Thresholds,
    *,
    params: EvaluateParams,
) -> list[dict[str, object]]:
    """Return rows of MEASURES: every model of the task in a split."""
    persons = evidence.persons[evidence.inside(split)]
    counted = {"subjects": len(set(persons)), "scans": len(persons)}
    too_few = shortage(evidence, split, min_subjects=params.min_subjects)
    of_classes = persons_to_count(evidence, split)
    rows: list[dict[str, object]] = []
    for model in evidence.models:
        sampled = samples.get(model)
        reason = f"no model was made: {model.reason}" if model.reason else too_few
        for name in evidence.task.metric_names:
            head = {"task": evidence.name, "init": model.name, "fraction": model.fraction}
            head |= {"split": split, "metric": name, "seeds": len(model.seeds)}
            head["members"] = model.members
            estimate, spread = Estimate(None, None, None, reason), None
            if sampled and not reason:
                missing = _why_missing(name, split, thresholds[model], len(persons))
                estimate = _estimate(sampled, name, of_classes, missing)
                if _is_chance(evidence, model, name) and estimate.value is not None:
                    estimate = Estimate(estimate.value, estimate.value, estimate.value)
                if len(model.seeds) > 1 and estimate.value is not None:
                    spread = float(_by_seed(evidence, split, model, sampled, name).std(ddof=1))
            rows.append({**head, **cells(estimate), "seed_sd": spread, **counted})
    return rows


def _estimate(sampled: Sample, name: str, of_classes: Sequence[int], reason: str) -> Estimate:
    """Return the estimate of a metric, mean over seeds."""
    if name == "ece" and sampled.calibration is not None:
        return intervals.excess_error(*sampled.calibration, reason=reason)
    spread = sampled.left_out["brier_spread"].mean().value if name == "brier" else 0
    sample = sampled.left_out[name].mean()
    return intervals.estimate(sample, name, of_classes, spread=spread, reason=reason)


def _by_seed(evidence: Evidence, split: str, model: Model, sampled: Sample, name: str) -> Values:
    if name != "ece":
        return sampled.left_out[name].values[:, 0]
    rows = evidence.inside(split)
    labels, once = evidence.labels[rows], np.ones((1, int(rows.sum())))
    errors = [evidence.task.calibration_error(labels, o[rows], once) for o in model.outputs]
    return np.array([error[0, 0] for error in errors if error is not None])


def _is_chance(evidence: Evidence, model: Model, name: str) -> bool:
    """Return whether a value holds by construction: the same answer for everybody ranks nobody."""
    return model.name == evidence.task.constant_baseline and name in ("auc", "balanced_accuracy")


def _why_missing(name: str, split: str, thresholds: Sequence[Values | None], scans: int) -> str:
    if name in THRESHOLDED and split == "val":
        return "the threshold was chosen on these scans"
    if name in THRESHOLDED and any(each is None for each in thresholds):
        return "validation gives no threshold: one class only, or the same output for everybody"
    if name == "ece":
        return f"{scans} scans, 20 are needed"
    if name == "r2":
        return "the labels are all the same"
    if name == "correlation":
        return "the outputs (or the labels) are all the same"
    return ""


def _pairs(evidence: Evidence, params: EvaluateParams) -> list[tuple[Model, Model]]:
    """Pair every initialization with the reference on as many labels, with all labels with the
    baselines, and with fewer labels with the reference on all of them; every ensemble with that of
    the reference, the baselines, and its own models one by one. All with what is promoted over."""
    over = {params.promotion.over} if params.promotion else set()
    pairs = []
    for model in evidence.models:
        own = {initialization_of(model.name)} if model.is_ensemble else set()
        named = {counterpart(model.name, params.reference)} | own | over
        pairs += [
            (model, other)
            for other in evidence.models
            if not model.is_baseline
            and model is not other
            and (
                model.fraction == evidence.fraction
                if other.is_baseline
                else other.name in named and other.fraction in (model.fraction, evidence.fraction)
            )
        ]
    return pairs


def compare(
    evidence: Evidence, split: str, samples: Samples, pairs: Sequence[tuple[Model, Model]]
) -> list[dict[str, object]]:
    """Return rows of DIFFERENCES, first − second, for pairs of models in a split."""
    of_classes, rows_inside = persons_to_count(evidence, split), evidence.inside(split)
    rows: list[dict[str, object]] = []
    for model, other in pairs:
        first, second = samples.get(model), samples.get(other)
        for name in evidence.task.metric_names:
            if first is None or second is None:
                estimate = Estimate(None, None, None, _why_no_pair(model, other))
            else:
                known = _is_chance(evidence, other, name)
                estimate = _difference(first, second, name, of_classes, known=known)
                if estimate.value == 0 and _same(model, other, first, second, rows_inside):
                    estimate = Estimate(0.0, 0.0, 0.0, p=1.0)
            head: dict[str, object] = {"task": evidence.name, "init": model.name}
            head |= {"versus": other.name, "fraction": model.fraction}
            head |= {"versus_fraction": other.fraction, "split": split, "metric": name}
            verdict = _verdict(estimate, name)
            rows.append({**head, **cells(estimate), "p": estimate.p, "verdict": verdict})
    return rows


def _why_no_pair(model: Model, other: Model) -> str:
    reasons = (f"no model was made: {each.reason}" for each in (model, other) if each.reason)
    return next(reasons, "too few subjects")


def _difference(
    first: Sample,
    second: Sample,
    name: str,
    of_classes: Sequence[int],
    *,
    versus: Sequence[int] | None = None,
    known: bool = False,
) -> Estimate:
    """Return the difference in a metric, each a mean over seeds; ``versus`` as in `difference`."""
    why = "one of the two cannot be measured"
    if name == "ece" and first.calibration is not None and second.calibration is not None:
        return _error_difference(first.calibration[0], second.calibration[0], of_classes, why)
    return comparisons.difference(
        first.left_out[name].mean(),
        second.left_out[name].mean(),
        name,
        of_classes,
        versus=versus,
        known=known,
        reason=why,
    )


def _error_difference(
    first: Values, second: Values, of_classes: Sequence[int], reason: str
) -> Estimate:
    """Return the difference of two calibration errors, from the same or independent resamples."""
    apart = first - second
    if np.isnan(apart).any():
        return Estimate(None, None, None, reason)
    return comparisons.t_test(float(apart[0]), float(apart[1:].std(ddof=1)), of_classes)


def _same(
    model: Model, other: Model, first: Sample, second: Sample, inside: NDArray[np.bool_]
) -> bool:
    """Return whether two models predict the same for everybody, called at the same threshold.

    Their metrics alone cannot tell: two perfect models need not agree on the next person.
    """
    return np.array_equal(model.outputs[:, inside], other.outputs[:, inside]) and all(
        np.array_equal(each.values, second.left_out[name].values, equal_nan=True)
        for name, each in first.left_out.items()
    )


def _gaps(evidence: Evidence, samples: Mapping[str, Samples]) -> list[dict[str, object]]:
    """Return rows of GAPS. Test and ood are of different persons: independent."""
    rows: list[dict[str, object]] = []
    test, ood = (persons_to_count(evidence, split) for split in ("test", "ood"))
    for model in evidence.models:
        inside, outside = (samples.get(split, {}).get(model) for split in ("test", "ood"))
        if inside and outside:
            for name in evidence.task.metric_names:
                estimate = _difference(outside, inside, name, ood, versus=test)
                head = {"task": evidence.name, "init": model.name, "fraction": model.fraction}
                rows.append({**head, "metric": name, **cells(estimate), "p": estimate.p})
    return rows


def _verdict(estimate: Estimate, name: str) -> str | None:
    """Return better, worse or none; None where there is no interval."""
    if estimate.low is None or estimate.value is None:
        return None
    if not estimate.excludes_zero:
        return "none"
    return "better" if (estimate.value > 0) == METRICS[name].higher_is_better else "worse"


def _adjust(differences: pd.DataFrame, tasks: Sequence[Evidence], reference: str) -> pd.DataFrame:
    """Adjust the p-values of the comparisons that a reader draws conclusions from.

    Three families a split, by the primary metric of the task: every initialization with all labels
    against the reference with all labels, every one with fewer, and every ensemble against that of
    the reference.
    """
    all_labels = differences["task"].map({each.name: each.fraction for each in tasks})
    primary = differences["task"].map({each.name: each.task.primary for each in tasks})
    headline = (
        (differences["metric"] == primary)
        & (
            differences["versus"]
            == differences["init"].map(partial(counterpart, reference=reference))
        )
        & (differences["versus_fraction"] == all_labels)
        & differences["p"].notna()
    )
    fewer = differences["fraction"] < all_labels
    ensemble = differences["init"].str.endswith(ENSEMBLE)
    for _, family in differences[headline].groupby([differences["split"], fewer, ensemble]):
        differences.loc[family.index, "p_holm"] = comparisons.holm(family["p"].tolist())
    return differences
