"""Every number of the evaluation, with its interval: one long table each of values, of paired
differences, and of changes out of distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.runtime.progress import Progress
from neurofoundry.stats import comparisons, intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import METRICS, Values

MEASURES = [
    *("task", "init", "fraction", "split", "metric", "value", "low", "high"),
    *("seed_sd", "seeds", "subjects", "scans", "reason"),
]
DIFFERENCES = [
    *("task", "init", "versus", "fraction", "versus_fraction", "split", "metric"),
    *("value", "low", "high", "p", "p_holm", "verdict", "reason"),
]
GAPS = ["task", "init", "fraction", "metric", "value", "low", "high", "p", "reason"]

THRESHOLDED = ("balanced_accuracy", "sensitivity", "specificity", "f1")

Samples = Mapping[Model, Mapping[str, Values]]
"""For each model that has outputs its metrics in every resample, by name: (seeds, 1 + count)."""

Thresholds = Mapping[Model, Sequence[float | None]]
"""For each model and seed the threshold that val suggests; None where it suggests none."""


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
    against = {params.reference, *([params.promotion.over] if params.promotion else [])}
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
                    differences += compare(evidence, split, drawn, _pairs(evidence, against))
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
            return f"split '{split}' has {count} subjects{label}, {min_subjects} are needed"
    return None


def persons_per_class(evidence: Evidence, split: str) -> list[int]:
    """Return the number of persons of every class (of a regression: of all) in a split."""
    return evidence.task.persons_per_class(
        evidence.persons, evidence.targets, evidence.inside(split)
    )


def persons_to_count(evidence: Evidence, split: str) -> list[int]:
    """Return the number of persons of every class in a split, for intervals; who has scans of
    several classes counts for none, being no whole pair."""
    targets = pd.Series(evidence.targets, evidence.persons)
    return evidence.task.persons_to_count(targets[evidence.inside(split)])


def thresholds_of(evidence: Evidence) -> Thresholds:
    """Return the threshold that val suggests for each model and seed of a two-class task."""
    val = evidence.inside("val")
    targets = evidence.targets[val]
    return {
        model: tuple(
            evidence.task.threshold(targets, outputs[val]) if val.any() else None
            for outputs in model.outputs
        )
        for model in evidence.models
    }


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
    """Return the metrics of every model in a split, in every resample of its persons.

    All models see the same resamples, so that they can be compared in pairs; so do the models of
    two evaluations of the same scans. Empty where the split has too few persons.
    """
    models = [model for model in evidence.models if model.seeds]
    if not models or shortage(evidence, split, min_subjects=params.min_subjects):
        return {}
    rows = evidence.inside(split)
    labels = evidence.labels[rows]
    runs = [(model, index) for model in models for index in range(len(model.seeds))]

    def measured(model: Model, index: int, weights: Values) -> dict[str, Values]:
        # A threshold measured on the scans that it was chosen on would flatter.
        threshold = None if split == "val" else thresholds[model][index]
        return evidence.task.measure(labels, model.outputs[index][rows], weights, threshold)

    def statistic(weights: Values) -> Values:
        return np.array([list(measured(*run, weights).values()) for run in runs])

    names = list(measured(*runs[0], np.ones((1, int(rows.sum())))))
    persons = evidence.persons[rows]
    samples = intervals.resample(statistic, persons, count=params.bootstraps, seed=seed, key=split)
    return {
        model: {
            name: samples[[run[0] is model for run in runs], position]
            for position, name in enumerate(names)
        }
        for model in models
    }


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
            estimate, spread = Estimate(None, None, None, reason), None
            if sampled and not reason:
                missing = _why_missing(name, split, thresholds[model], len(persons))
                estimate = _estimate(sampled, name, of_classes, missing)
                if len(model.seeds) > 1 and estimate.value is not None:
                    spread = float(sampled[name][:, 0].std(ddof=1))
            rows.append({**head, **cells(estimate), "seed_sd": spread, **counted})
    return rows


def _estimate(
    sampled: Mapping[str, Values], name: str, of_classes: Sequence[int], reason: str
) -> Estimate:
    """Return the estimate of a metric, mean over seeds."""
    return intervals.estimate(
        sampled[name].mean(axis=0),
        name,
        of_classes,
        by_chance=sampled["ece_by_chance"].mean(axis=0) if name == "ece" else None,
        reason=reason,
    )


def _why_missing(name: str, split: str, thresholds: Sequence[float | None], scans: int) -> str:
    if name in THRESHOLDED and split == "val":
        return "the threshold was chosen on these scans"
    if name in THRESHOLDED and None in thresholds:
        return "validation gives no threshold: one class only, or the same output for everybody"
    if name == "ece":
        return f"{scans} scans, 20 are needed"
    if name == "r2":
        return "the labels are all the same"
    if name == "correlation":
        return "the outputs (or the labels) are all the same"
    return ""


def _pairs(evidence: Evidence, against: Set[str]) -> list[tuple[Model, Model]]:
    """Pair every initialization with others on as many labels, with all labels with the baselines,
    and with fewer labels with others on all of them."""
    return [
        (model, other)
        for model in evidence.models
        for other in evidence.models
        if not model.is_baseline
        and model is not other
        and (
            model.fraction == evidence.fraction
            if other.is_baseline
            else other.name in against and other.fraction in (model.fraction, evidence.fraction)
        )
    ]


def compare(
    evidence: Evidence, split: str, samples: Samples, pairs: Sequence[tuple[Model, Model]]
) -> list[dict[str, object]]:
    """Return rows of DIFFERENCES, first − second, for pairs of models in a split."""
    of_classes = persons_to_count(evidence, split)
    errors = _errors_by_formula(evidence, split, samples)
    rows: list[dict[str, object]] = []
    for model, other in pairs:
        first, second = samples.get(model), samples.get(other)
        for name in evidence.task.metric_names:
            if first is None or second is None:
                estimate = Estimate(None, None, None, _why_no_pair(model, other))
            elif _same_predictions(model, other, first[name], second[name], evidence.inside(split)):
                estimate = Estimate(0.0, 0.0, 0.0, p=1.0)
            else:
                by_formula = name == evidence.task.primary
                error = errors.get((model, other)) if by_formula else None
                estimate = _difference(first, second, name, of_classes, error)
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
    first: Mapping[str, Values],
    second: Mapping[str, Values],
    name: str,
    of_classes: Sequence[int],
    error: float | None = None,
) -> Estimate:
    """Return the difference in a metric, each a mean over seeds."""
    return comparisons.difference(
        first[name].mean(axis=0),
        second[name].mean(axis=0),
        name,
        of_classes,
        standard_error=error,
        reason="one of the two cannot be measured",
    )


def _same_predictions(
    model: Model, other: Model, first: Values, second: Values, inside: NDArray[np.bool_]
) -> bool:
    """Return whether two models predict the same for everybody, called at the same threshold.

    Resamples alone cannot tell: two perfect models need not predict the same for the next person.
    """
    return (
        np.array_equal(model.outputs[:, inside], other.outputs[:, inside])
        and np.array_equal(first, second, equal_nan=True)
        and not np.isnan(first[:, 0]).any()
    )


def _errors_by_formula(
    evidence: Evidence, split: str, samples: Samples
) -> dict[tuple[Model, Model], float]:
    """Return the standard error of the difference of two models in the primary metric, each a mean
    over seeds; DeLong's for AUC. Empty where only resampling tells."""
    models = [model for model in evidence.models if model in samples]
    if not models:
        return {}
    rows = evidence.inside(split)
    covariance = evidence.task.primary_covariance(
        evidence.labels[rows],
        np.concatenate([model.outputs[:, rows] for model in models]),
        evidence.persons[rows],
    )
    if covariance is None:
        return {}
    counts = [len(model.seeds) for model in models]
    mean = np.repeat(np.eye(len(models)) / counts, counts, axis=1)
    covariance = mean @ covariance @ mean.T
    variance = np.diag(covariance)
    errors = np.sqrt(np.clip(variance[:, None] + variance - 2 * covariance, 0, None))
    return {
        (one, other): float(errors[i, j])
        for i, one in enumerate(models)
        for j, other in enumerate(models)
    }


def _gaps(evidence: Evidence, samples: Mapping[str, Samples]) -> list[dict[str, object]]:
    """Return rows of GAPS. The resamples of test and ood are of different persons: independent."""
    rows: list[dict[str, object]] = []
    of_classes = min(persons_to_count(evidence, "test"), persons_to_count(evidence, "ood"), key=min)
    for model in evidence.models:
        inside, outside = (samples.get(split, {}).get(model) for split in ("test", "ood"))
        if inside and outside:
            for name in evidence.task.metric_names:
                estimate = _difference(outside, inside, name, of_classes)
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

    Two families a split, both against the reference with all labels and by the primary metric of
    the task: every initialization with all labels, and every one with fewer.
    """
    all_labels = differences["task"].map({each.name: each.fraction for each in tasks})
    primary = differences["task"].map({each.name: each.task.primary for each in tasks})
    headline = (
        (differences["metric"] == primary)
        & (differences["versus"] == reference)
        & (differences["versus_fraction"] == all_labels)
        & differences["p"].notna()
    )
    fewer = differences["fraction"] < all_labels
    for _, family in differences[headline].groupby([differences["split"], fewer]):
        differences.loc[family.index, "p_holm"] = comparisons.holm(family["p"].tolist())
    return differences
