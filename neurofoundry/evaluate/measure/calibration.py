"""Whether a stated risk can be taken at its word, and whether old brains look too young: before
and after a correction that is learned from the validation subjects, or from those trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from neurofoundry.evaluate.inputs import Evidence, Model
from neurofoundry.evaluate.measure.performance import gap, persons_to_count
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task
from neurofoundry.tasks.base import Correction

CALIBRATION = [
    *("task", "init", "split", "corrected", "metric", "value", "low", "high"),
    *("subjects", "reason"),
]

AS_IT_IS = "no"
"""Of the column ``corrected``: the model as it is."""


def corrections(evidence: Evidence) -> tuple[str, ...]:
    """The splits that a correction is learned from, and before them ``AS_IT_IS``."""
    return (AS_IT_IS, *evidence.task.corrected_on)


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
                for name in evidence.task.calibration_names:
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
            fitted = correction_on_train(evidence.task, model, number)
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
    by_name = dict(zip([*evidence.task.calibration_names, "ece_by_chance"], samples, strict=False))
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
    return evidence.task.calibration(evidence.labels[inside], outputs[inside], weights)


def correction(evidence: Evidence, outputs: Values) -> Correction | str:
    """A function of outputs learned from split 'val' alone, or the reason why there is none."""
    val = (evidence.scans["split"] == "val").to_numpy()
    return evidence.task.correction(evidence.labels[val], outputs[val], "validation")


def correction_on_train(task: Task, model: Model, number: int) -> Correction | str:
    """As `correction`, learned from the scans that a seed has learned from: the usual way for brain
    age. It does too little where a model fits these better than others."""
    fitted = model.fitted[number] if model.fitted else None
    if fitted is None:
        return "finetune has kept no outputs of the training subjects (fitted.tsv)"
    return task.correction(*fitted, "training")
