"""Whether a stated risk can be taken at its word, and whether old brains look too young: before
and after a correction that is learned from the validation subjects, or from those trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure.performance import (
    calibration_errors,
    persons_to_count,
    shortage,
)
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.corrections import Correction
from neurofoundry.stats.intervals import Estimate, Jackknife
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

CALIBRATION = [
    *("task", "init", "split", "corrected", "metric", "value", "low", "high"),
    *("subjects", "reason"),
]

AS_IT_IS = "no"
"""In the column ``corrected``: the model as it is."""

Outputs = Mapping[tuple[Model, str], list[Values]]
"""For a model and a value of ``corrected`` the outputs of each seed."""


def corrections(evidence: Evidence) -> tuple[str, ...]:
    """Return ``AS_IT_IS``, and the splits that a correction is learned from."""
    return (AS_IT_IS, *evidence.task.corrected_on)


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams, seed: int) -> pd.DataFrame:
    """CALIBRATION: a row a task, initialization with all labels, split, and metric, as the model
    is and as it is after each of ``corrections``; means over seeds."""
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        for split in evidence.splits:
            rows += _rows(evidence, split, params, seed)
    return table_of(rows, CALIBRATION)


def _rows(
    evidence: Evidence, split: str, params: EvaluateParams, seed: int
) -> list[dict[str, object]]:
    too_few = shortage(evidence, split, min_subjects=params.min_subjects)
    subjects = evidence.scans["person"][evidence.inside(split)].nunique()
    outputs = {
        (m, c): _outputs(evidence, m, c) for m in evidence.trained for c in corrections(evidence)
    }
    known = {key: each for key, each in outputs.items() if not isinstance(each, str)}
    samples = {} if too_few else _samples(evidence, known, split, params.bootstraps, seed)
    persons = persons_to_count(evidence, split)
    rows: list[dict[str, object]] = []
    for (model, corrected), each in outputs.items():
        head = {"task": evidence.name, "init": model.name, "split": split}
        reason = each if isinstance(each, str) else too_few
        for name in evidence.task.calibration_names:
            if reason is None:
                estimate = _estimate(samples[model, corrected], name, persons)
            else:
                estimate = Estimate(None, None, None, reason)
            row = {"corrected": corrected, "metric": name, "subjects": subjects}
            rows.append({**head, **row, **cells(estimate)})
    return rows


def _outputs(evidence: Evidence, model: Model, corrected: str) -> list[Values] | str:
    """Return the outputs of each seed, corrected or not, or the reason why there are none."""
    if model.reason:
        return f"no model was made: {model.reason}"
    outputs = list(model.outputs)
    if corrected == AS_IT_IS:
        return outputs
    made = []
    for number, each in enumerate(outputs):
        whole = np.empty_like(each)
        for fold, rows in evidence.by_fold(number):
            if corrected == "val":
                correct = correction(evidence, each, rows)
            else:
                correct = correction_on_train(evidence.task, model, number, fold)
            if isinstance(correct, str):
                return correct
            whole[rows] = correct(each[rows])
        made.append(whole)
    return made


def _samples(
    evidence: Evidence, outputs: Outputs, split: str, bootstraps: int, seed: int
) -> dict[tuple[Model, str], tuple[dict[str, Jackknife], Values | None]]:
    """Return the metrics without each person, and the calibration error (and the one by chance) in
    every resample: means over seeds."""
    if not outputs:
        return {}
    inside = evidence.inside(split)
    labels = evidence.labels[inside]

    def metrics(seeds: Sequence[Values], weights: Values) -> dict[str, Values]:
        by_seed = [evidence.task.calibration(labels, each[inside], weights) for each in seeds]
        return {name: np.mean([each[name] for each in by_seed], axis=0) for name in by_seed[0]}

    names = list(metrics(next(iter(outputs.values())), np.ones((1, int(inside.sum())))))
    found = intervals.jackknife(
        lambda weights: np.array([list(metrics(o, weights).values()) for o in outputs.values()]),
        evidence.persons[inside],
        labels if evidence.task.classes else None,
    )
    errors = calibration_errors(evidence, split, list(outputs.values()), bootstraps, seed)
    return {
        key: (
            {
                name: found[[index], place].of_folds(1, evidence.widening(split)).mean()
                for place, name in enumerate(names)
            },
            None if errors is None else errors[index],
        )
        for index, key in enumerate(outputs)
    }


def _estimate(
    sample: tuple[dict[str, Jackknife], Values | None], name: str, persons: Sequence[int]
) -> Estimate:
    left_out, errors = sample
    if name == "ece" and errors is not None:
        return intervals.excess_error(*errors, reason=_why_missing(name))
    return intervals.estimate(
        left_out[name],
        name,
        persons,
        spread=left_out["brier_spread"].value if name == "brier" else 0,
        reason=_why_missing(name),
    )


def _why_missing(name: str) -> str:
    if name == "ece":
        return "fewer than 20 scans"
    return "the outputs separate the classes, or are all the same"


def correction(evidence: Evidence, outputs: Values, rows: NDArray[np.bool_]) -> Correction | str:
    """Learn a correction from the scans of split 'val' among ``rows`` alone, or return the reason
    why there is none."""
    val = evidence.inside("val") & rows
    return evidence.task.correction(evidence.labels[val], outputs[val], "validation")


def correction_on_train(task: Task, model: Model, number: int, fold: int) -> Correction | str:
    """Learn a correction from the scans that a seed was trained on, as is usual for brain age.

    It does too little where a model fits these better than others. As `correction` otherwise.
    """
    fitted = model.fitted[number].get(fold) if model.fitted else None
    if fitted is None:
        return "finetune has kept no outputs of the training subjects (fitted.tsv)"
    return task.correction(*fitted, "training")
