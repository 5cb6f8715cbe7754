"""Whether a stated risk can be taken at its word, and whether old brains look too young: before
and after a correction that is learned from the validation subjects, or from those trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special

from neurofoundry.evaluate.inputs import Evidence, Model
from neurofoundry.evaluate.measure.performance import gap, persons_to_count
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import intervals, metrics
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values

CALIBRATION = [
    *("task", "init", "split", "corrected", "metric", "value", "low", "high"),
    *("subjects", "reason"),
]

Correction = Callable[[Values], Values]

AS_IT_IS = "no"
"""Of the column ``corrected``: the model as it is."""


def names(evidence: Evidence) -> list[str]:
    """The metrics of calibration that a task has."""
    if evidence.task.kind == "regression":
        return ["mae", "bias_slope"]
    if len(evidence.task.classes) == 2:
        return ["brier", "ece", "calibration_slope", "calibration_intercept"]
    return ["brier", "ece"]


def corrections(evidence: Evidence) -> tuple[str, ...]:
    """The splits that a correction is learned from, and before them ``AS_IT_IS``."""
    return (AS_IT_IS, "val", "train") if evidence.task.kind == "regression" else (AS_IT_IS, "val")


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams, seed: int) -> pd.DataFrame:
    """CALIBRATION: a row a task, initialization with all labels, split, and metric, as the model
    is and as it is after each of ``corrections``; means over seeds."""
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        models = [m for m in evidence.models if m.fraction == evidence.fraction and not m.is_floor]
        for split in ("test", "ood"):
            inside = (evidence.scans["split"] == split).to_numpy()
            if not inside.any():
                continue
            missing = gap(evidence, split, min_subjects=params.min_subjects)
            subjects = evidence.scans["person"][inside].nunique()
            said = {(m, c): _said(evidence, m, c) for m in models for c in corrections(evidence)}
            known = {} if missing else {k: v for k, v in said.items() if not isinstance(v, str)}
            samples = _resample(evidence, known, inside, params.bootstraps, seed, split)
            for (model, corrected), outputs in said.items():
                head: dict[str, object] = {"task": evidence.name, "init": model.name}
                head |= {"split": split, "corrected": corrected, "subjects": subjects}
                reason = outputs if isinstance(outputs, str) else missing
                for name in names(evidence):
                    if reason is None:
                        found = _estimate(evidence, samples[model, corrected], name, split)
                    else:
                        found = Estimate(None, None, None, reason)
                    ends = {"value": found.value, "low": found.low, "high": found.high}
                    rows.append({**head, "metric": name, **ends, "reason": found.reason})
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=CALIBRATION).astype(numbers)


def _said(evidence: Evidence, model: Model, corrected: str) -> list[Values] | str:
    """Outputs of each seed, corrected or not, or the reason why there are none."""
    if model.reason:
        return f"no model was made: {model.reason}"
    outputs = list(model.outputs)
    if corrected == AS_IT_IS:
        return outputs
    found = []
    for number, each in enumerate(outputs):
        if corrected == "val":
            fitted = correction(evidence, each)
        else:
            fitted = correction_on_train(model, number)
        if isinstance(fitted, str):
            return fitted
        found.append(fitted(each))
    return found


def _resample(
    evidence: Evidence,
    said: Mapping[tuple[Model, str], list[Values]],
    inside: np.ndarray,
    bootstraps: int,
    seed: int,
    split: str,
) -> dict[tuple[Model, str], Values]:
    """Metrics, and the error of calibration by chance, in every resample: means over seeds."""
    if not said:
        return {}

    def statistic(weights: Values) -> Values:
        return np.stack(
            [
                np.mean([_values(evidence, each, inside, weights) for each in outputs], axis=0)
                for outputs in said.values()
            ]
        )

    persons = evidence.scans["person"].to_numpy()[inside]
    samples = intervals.resample(statistic, persons, count=bootstraps, seed=seed, key=split)
    return dict(zip(said, samples, strict=True))


def _estimate(evidence: Evidence, samples: Values, name: str, split: str) -> Estimate:
    by_name = dict(zip([*names(evidence), "ece_by_chance"], samples, strict=False))
    return intervals.estimate(
        by_name[name],
        name,
        persons_to_count(evidence, split),
        by_chance=by_name["ece_by_chance"] if name == "ece" else None,
        reason=_why_missing(name),
    )


def _why_missing(name: str) -> str:
    if name == "ece":
        return "fewer than 20 scans"
    return "the outputs separate the classes, or are all the same"


def _values(evidence: Evidence, outputs: Values, inside: np.ndarray, weights: Values) -> Values:
    labels, said = evidence.labels[inside], outputs[inside]
    if evidence.task.kind == "regression":
        mae = (weights @ np.abs(said - labels)) / weights.sum(axis=1)
        return np.stack([mae, metrics.bias_slope(labels, said, weights)])
    brier = metrics.brier(labels, said, weights)
    if said.shape[1] == 2:
        intercept, slope = metrics.calibration_line(labels == 1, said[:, 1], weights)
        error = metrics.calibration_error(labels == 1, said[:, 1], weights)
        return np.stack([brier, error[0], slope, intercept, error[1]])
    called = said.argmax(axis=1)
    return np.stack(
        [brier, *metrics.calibration_error(labels == called, said.max(axis=1), weights)]
    )


def correction(evidence: Evidence, outputs: Values) -> Correction | str:
    """A function of outputs learned from split 'val' alone, or the reason why there is none.

    Two classes: p → σ(a + b·logit p), with Platt's smoothed targets (Platt 1999), which keep a
    and b finite. More: a temperature (Guo et al. 2017). Regression: with output = a + b·label by
    least squares, output → (output − a)/b, which does not use the label of whom it corrects
    (Smith et al., NeuroImage 200, 2019).
    """
    val = (evidence.scans["split"] == "val").to_numpy()
    labels, said = evidence.labels[val], outputs[val]
    if evidence.task.kind == "regression":
        return _line(labels, said, "validation")
    if len(np.unique(labels)) < len(evidence.task.classes):
        return "validation lacks a class to learn a correction from"
    logits = _logits(said)
    if said.shape[1] > 2:
        log_temperature = optimize.minimize_scalar(
            lambda t: float(np.sum(_losses(logits / np.exp(t), labels))),
            bounds=(-3, 3),
            method="bounded",
        ).x
        scale = float(np.exp(log_temperature))
        return lambda values: special.softmax(_logits(values) / scale, axis=1)
    if np.ptp(logits[:, 1] - logits[:, 0]) == 0:
        return "the same output for everybody"
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    x = logits[:, 1] - logits[:, 0]
    fitted = metrics.logistic_line(x, targets)
    if fitted is None:
        return "no line fits the validation subjects"
    a, b = fitted

    def platt(values: Values) -> Values:
        both = _logits(values)
        p = special.expit(a + b * (both[:, 1] - both[:, 0]))
        return np.stack([1 - p, p], axis=1)

    return platt


def correction_on_train(model: Model, number: int) -> Correction | str:
    """As `correction` of a regression, learned from the scans that a seed has learned from: the
    usual way for brain age. It does too little where a model fits these better than others."""
    found = model.fitted[number] if model.fitted else None
    if found is None:
        return "finetune has kept no outputs of the training subjects (fitted.tsv)"
    return _line(*found, "training")


def _line(labels: Values, said: Values, where: str) -> Correction | str:
    if len(labels) < 5 or np.ptp(labels) == 0:
        return f"{where} has too few labels to learn a correction from"
    slope, intercept = np.polyfit(labels, said, 1)
    if slope < 0.05:
        return f"on {where} the outputs do not follow the label: nothing to correct by"
    return lambda values: (values - intercept) / slope


def _logits(probabilities: Values) -> Values:
    return np.log(np.clip(probabilities, 1e-9, 1))


def _losses(logits: Values, labels: np.ndarray) -> Values:
    rows = np.arange(len(labels))
    return special.logsumexp(logits, axis=1) - logits[rows, labels]
