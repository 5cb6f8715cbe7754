"""Every number of the evaluation, with its interval: one long table each of values, of paired
differences, and of changes out of distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from neurofoundry.evaluate.inputs import Evidence, Model
from neurofoundry.evaluate.params import EvaluateParams
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
"""For each model and seed what val suggests; None where it suggests nothing."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The three tables of an evaluation."""

    measures: pd.DataFrame
    """MEASURES: a row a task, model, fraction, split and metric."""
    differences: pd.DataFrame
    """DIFFERENCES: init − versus on the same resampled persons, learned from ``fraction`` and
    ``versus_fraction`` of the labels. ``verdict`` is better, worse or
    none: the side of zero on which the whole interval lies, if any."""
    gaps: pd.DataFrame
    """GAPS: ood − test of the same model."""


def gap(evidence: Evidence, split: str, *, min_subjects: int) -> str | None:
    """Why nothing can be measured in a split, in words; None when something can."""
    counts = persons_per_class(evidence, split)
    labels = [f" with {evidence.task.column}={name}" for name in evidence.task.classes] or [""]
    for count, label in zip(counts, labels, strict=True):
        if count < min_subjects:
            return f"split '{split}' has {count} subjects{label}, {min_subjects} are needed"
    return None


def persons_per_class(evidence: Evidence, split: str) -> list[int]:
    """Persons of every class (of a regression: all of them) in a split."""
    inside = (evidence.scans["split"] == split).to_numpy()
    persons = evidence.scans["person"].to_numpy()
    return evidence.task.persons_per_class(persons, evidence.targets, inside)


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams, seed: int) -> Measured:
    """Measure every model of every task on val, test and ood, and compare them in pairs."""
    against = {params.baseline, *([params.promotion.over] if params.promotion else [])}
    measures: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    gaps: list[dict[str, object]] = []
    for evidence in track(tasks, "resampling", console=Console(stderr=True), transient=True):
        samples: dict[str, Samples] = {}
        thresholds = thresholds_of(evidence)
        for split in _splits(evidence):
            samples[split] = resample(evidence, split, thresholds, params=params, seed=seed)
            measures += values(evidence, split, samples[split], thresholds, params=params)
            if split != "val":
                pairs = _pairs(evidence, against)
                differences += compare(evidence, split, samples[split], pairs)
        gaps += _gaps(evidence, samples)
    return Measured(
        table(measures, MEASURES),
        _judge(table(differences, DIFFERENCES), tasks, params.baseline),
        table(gaps, GAPS),
    )


def table(rows: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    """Rows as a table of ``columns``, the numbers among them as numbers."""
    numbers = {
        "fraction",
        "versus_fraction",
        "value",
        "low",
        "high",
        "seed_sd",
        "p",
        "p_holm",
    } & set(columns)
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def on_validation(evidence: Evidence, model: Model) -> float:
    """The metric that the task is judged by, on val, mean over seeds: good enough to choose by,
    however few the subjects. NaN where val lacks a class."""
    rows = (evidence.scans["split"] == "val").to_numpy()
    once = np.ones((1, int(rows.sum())))
    task, labels = evidence.task, evidence.labels[rows]
    if not rows.any():
        return float("nan")
    return float(
        np.mean([task.measure(labels, p[rows], once)[task.primary][0] for p in model.outputs])
    )


def _splits(evidence: Evidence) -> list[str]:
    """val and test always; ood where the cohort has one."""
    has_ood = (evidence.scans["split"] == "ood").any()
    return ["val", "test", "ood"] if has_ood else ["val", "test"]


def thresholds_of(evidence: Evidence) -> Thresholds:
    """For each model and seed of a two-class task the threshold that val suggests."""
    val = (evidence.scans["split"] == "val").to_numpy()
    targets = evidence.targets[val]
    return {
        model: tuple(
            evidence.task.threshold(targets, outputs[val]) if val.any() else None
            for outputs in model.outputs
        )
        for model in evidence.models
    }


def resample(
    evidence: Evidence,
    split: str,
    thresholds: Thresholds,
    *,
    params: EvaluateParams,
    seed: int,
) -> Samples:
    """The metrics of every model in a split, in every resample of its persons.

    All models see the same resamples, so that they can be compared in pairs; so do the models of
    two evaluations of the same scans. Empty where the split has too few persons.
    """
    models = [model for model in evidence.models if model.seeds]
    if not models or gap(evidence, split, min_subjects=params.min_subjects):
        return {}
    rows = (evidence.scans["split"] == split).to_numpy()
    labels = evidence.labels[rows]
    runs = [(model, index) for model in models for index in range(len(model.seeds))]

    def measured(model: Model, index: int, weights: Values) -> dict[str, Values]:
        # A threshold measured on the scans that it was chosen on would flatter.
        threshold = None if split == "val" else thresholds[model][index]
        return evidence.task.measure(labels, model.outputs[index][rows], weights, threshold)

    def statistic(weights: Values) -> Values:
        return np.array([list(measured(*run, weights).values()) for run in runs])

    names = list(measured(*runs[0], np.ones((1, int(rows.sum())))))
    persons = evidence.scans["person"].to_numpy()[rows]
    found = intervals.resample(statistic, persons, count=params.bootstraps, seed=seed, key=split)
    return {
        model: {
            name: found[[run[0] is model for run in runs], position]
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
    """Rows of MEASURES: every model of the task in a split."""
    persons = evidence.scans["person"].to_numpy()[evidence.scans["split"] == split]
    missing = gap(evidence, split, min_subjects=params.min_subjects)
    of_classes = persons_to_count(evidence, split)
    rows: list[dict[str, object]] = []
    for model in evidence.models:
        found = samples.get(model)
        for name in evidence.task.metric_names:
            reason = f"no model was made: {model.reason}" if model.reason else missing
            spread = None
            if found and not reason:
                estimate = intervals.estimate(
                    found[name].mean(axis=0),
                    name,
                    of_classes,
                    by_chance=found["ece_by_chance"].mean(0) if name == "ece" else None,
                    reason=_why_missing(name, split, thresholds[model], len(persons)),
                )
                if len(found[name]) > 1 and estimate.value is not None:
                    spread = float(found[name][:, 0].std(ddof=1))
            else:
                estimate = Estimate(None, None, None, reason)
            rows.append(
                {
                    **{"task": evidence.name, "init": model.name, "fraction": model.fraction},
                    **{"split": split, "metric": name, **_row(estimate)},
                    **{"seed_sd": spread, "seeds": len(model.seeds)},
                    **{"subjects": len(set(persons)), "scans": len(persons)},
                }
            )
    return rows


def persons_to_count(evidence: Evidence, split: str) -> list[int]:
    """Persons of every class; who has scans of several counts for none, being no whole pair."""
    inside = (evidence.scans["split"] == split).to_numpy()
    targets = pd.Series(evidence.targets, evidence.scans["person"])
    return evidence.task.persons_to_count(targets[inside])


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
    """Every initialization and others on as many labels, with all labels the floors, and with
    fewer labels others with all of them."""
    return [
        (model, other)
        for model in evidence.models
        for other in evidence.models
        if not model.is_floor
        and model is not other
        and (
            model.fraction == evidence.fraction
            if other.is_floor
            else other.name in against and other.fraction in (model.fraction, evidence.fraction)
        )
    ]


def compare(
    evidence: Evidence, split: str, samples: Samples, pairs: Sequence[tuple[Model, Model]]
) -> list[dict[str, object]]:
    """Rows of DIFFERENCES, first − second, for pairs of models of ``evidence`` in a split."""
    of_classes, primary = persons_to_count(evidence, split), evidence.task.primary
    errors = _errors_by_formula(evidence, split, samples)
    inside = (evidence.scans["split"] == split).to_numpy()
    rows: list[dict[str, object]] = []
    for model, other in pairs:
        first, second = samples.get(model), samples.get(other)
        for name in evidence.task.metric_names:
            if first and second and _alike(model, other, first[name], second[name], inside):
                estimate = Estimate(0.0, 0.0, 0.0, p=1.0)
            elif first and second:
                estimate = comparisons.difference(
                    first[name].mean(axis=0),
                    second[name].mean(axis=0),
                    name,
                    of_classes,
                    standard_error=errors.get((model, other)) if name == primary else None,
                    reason="one of the two cannot be measured",
                )
            else:
                reason = next(
                    (f"no model was made: {m.reason}" for m in (model, other) if m.reason),
                    "too few subjects",
                )
                estimate = Estimate(None, None, None, reason)
            rows.append(
                {
                    "task": evidence.name,
                    "init": model.name,
                    "versus": other.name,
                    "fraction": model.fraction,
                    "versus_fraction": other.fraction,
                    "split": split,
                    "metric": name,
                    **_row(estimate),
                    "p": estimate.p,
                    "verdict": _side(estimate, name),
                }
            )
    return rows


def _alike(
    model: Model, other: Model, first: Values, second: Values, inside: NDArray[np.bool_]
) -> bool:
    """Whether two models say the same of everybody, called at the same threshold.

    Resamples alone cannot tell: two perfect models need not say the same of the next person.
    """
    return (
        np.array_equal(model.outputs[:, inside], other.outputs[:, inside])
        and np.array_equal(first, second, equal_nan=True)
        and not np.isnan(first[:, 0]).any()
    )


def _errors_by_formula(
    evidence: Evidence, split: str, samples: Samples
) -> dict[tuple[Model, Model], float]:
    """Standard error of the difference of two models in the primary metric, each a mean over seeds;
    DeLong's for AUC. Nothing where only resampling tells."""
    models = [model for model in evidence.models if model in samples]
    if not models:
        return {}
    rows = (evidence.scans["split"] == split).to_numpy()
    covariance = evidence.task.primary_covariance(
        evidence.labels[rows],
        np.concatenate([model.outputs[:, rows] for model in models]),
        evidence.scans["person"].to_numpy()[rows],
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
    rows: list[dict[str, object]] = []
    of_classes = min(persons_to_count(evidence, "test"), persons_to_count(evidence, "ood"), key=min)
    for model in evidence.models:
        inside, outside = (samples.get(split, {}).get(model) for split in ("test", "ood"))
        if inside and outside:
            for name in evidence.task.metric_names:
                # Different persons: the resamples of the two are independent.
                estimate = comparisons.difference(
                    outside[name].mean(axis=0),
                    inside[name].mean(axis=0),
                    name,
                    of_classes,
                    reason="one of the two cannot be measured",
                )
                head = {"task": evidence.name, "init": model.name, "fraction": model.fraction}
                rows.append({**head, "metric": name, **_row(estimate), "p": estimate.p})
    return rows


def _row(estimate: Estimate) -> dict[str, object]:
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "reason": estimate.reason,
    }


def _side(estimate: Estimate, name: str) -> str | None:
    if estimate.low is None or estimate.value is None:
        return None
    if not estimate.excludes_zero:
        return "none"
    return "better" if (estimate.value > 0) == METRICS[name].higher_is_better else "worse"


def _judge(differences: pd.DataFrame, tasks: Sequence[Evidence], baseline: str) -> pd.DataFrame:
    """Adjust the p-values of the comparisons that a reader draws conclusions from.

    Two families a split, both against the baseline with all labels and by the metric that the task
    is judged by: every initialization with all labels, and every one with fewer.
    """
    of_task = {evidence.name: evidence for evidence in tasks}
    all_labels = differences["task"].map({name: e.fraction for name, e in of_task.items()})
    judged = differences["task"].map({name: e.task.primary for name, e in of_task.items()})
    headline = (
        (differences["metric"] == judged)
        & (differences["versus"] == baseline)
        & (differences["versus_fraction"] == all_labels)
        & differences["p"].notna()
    )
    fewer = differences["fraction"] < all_labels
    for _, family in differences[headline].groupby([differences["split"], fewer]):
        differences.loc[family.index, "p_holm"] = comparisons.holm(family["p"].tolist())
    return differences
