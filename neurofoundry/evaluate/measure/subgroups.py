"""The primary metric of each task in groups of the test subjects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values

SUBGROUPS = [
    *("task", "init", "split", "variable", "group", "metric", "value", "low", "high"),
    *("subjects", "reason"),
]

AGE_BANDS = (0, 20, 40, 60, 80, 121)
"""Years: from each to below the next."""

Mask = NDArray[np.bool_]


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams) -> pd.DataFrame:
    """SUBGROUPS: a row a task, model (a baseline, or trained with all labels), split and group.

    Groups of fewer than ``params.min_subgroup`` persons, and classifications with fewer than
    ``params.min_subjects`` of a class in the group, have no numbers; nor has the count of the
    first, which could point to somebody.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        for split in evidence.splits:
            among = (evidence.scans, evidence.inside(split))
            for variable, group, inside in groups(*among, told_apart=evidence.task.column):
                head = {"task": evidence.name, "split": split, "variable": variable}
                head |= {"group": group, "metric": evidence.task.primary}
                rows += [{**head, **row} for row in _rows(evidence, inside, params)]
    return table_of(rows, SUBGROUPS)


def groups(
    scans: pd.DataFrame, whole: Mask, *, told_apart: str | None = None
) -> Iterator[tuple[str, str, Mask]]:
    """Yield the name of a variable, the name of a group, and which scans among the ``whole`` belong
    to it. What a task tells apart is no group of it: nothing within could be told apart."""
    bands = pd.cut(
        scans["age"],
        AGE_BANDS,
        right=False,
        labels=[f"{low}–{high - 1}" for low, high in itertools.pairwise(AGE_BANDS)],
    )
    variables = {"sex": scans["sex"], "age": bands.astype("string"), "site": scans["site"]}
    for variable, values in (variables | {"scanner": scans["scanner"]}).items():
        if variable == told_apart and variable != "age":
            continue
        present = values[whole].dropna()
        # A single group is everybody, who is in the main table.
        for group in sorted(set(present)) if present.nunique() > 1 else []:
            yield variable, str(group), whole & (values == group).fillna(False).to_numpy(bool)


def _rows(evidence: Evidence, inside: Mask, params: EvaluateParams) -> Iterator[dict[str, object]]:
    persons = evidence.scans["person"][inside].nunique()
    reason = _suppressed(evidence, inside, params)
    subjects = np.nan if persons < params.min_subgroup else persons
    for model in evidence.models:
        if model.seeds and (model.is_baseline or model.fraction == evidence.fraction):
            estimate = Estimate(None, None, None)
            if reason is None:
                estimate = _estimate(evidence, model.outputs[:, inside], inside)
            yield {"init": model.name, **cells(estimate), "subjects": subjects, "reason": reason}


def _suppressed(evidence: Evidence, inside: Mask, params: EvaluateParams) -> str | None:
    """Return why a group has no numbers; None when it has."""
    persons = evidence.scans["person"][inside].nunique()
    if persons < params.min_subgroup:
        return f"fewer than {params.min_subgroup} subjects"
    if evidence.task.classes and min(_persons(evidence, inside)) < params.min_subjects:
        return f"fewer than {params.min_subjects} subjects of a class"
    return None


def _persons(evidence: Evidence, inside: Mask) -> list[int]:
    return evidence.task.persons_per_class(evidence.persons, evidence.targets, inside)


def _estimate(evidence: Evidence, outputs: Values, inside: Mask) -> Estimate:
    """Return the metric of a group, mean over seeds. Its error comes from a formula: resampling
    every group would take longer than all the rest."""
    task, persons = evidence.task, evidence.persons[inside]
    value, error = task.primary_with_error(evidence.labels[inside], outputs, persons)
    error *= evidence.widening(str(evidence.scans["split"][inside].iloc[0]))
    return intervals.with_error(value, error, task.primary, _persons(evidence, inside))
