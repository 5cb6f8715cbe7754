"""The metric that each task is judged by, in groups of the test subjects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from neurofoundry.evaluate.inputs import Evidence
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values

SUBGROUPS = [
    *("task", "init", "split", "variable", "group", "metric", "value", "low", "high"),
    *("subjects", "reason"),
]

AGE_BANDS = (0, 20, 40, 60, 80, 121)
"""Years: from each to below the next."""


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams) -> pd.DataFrame:
    """SUBGROUPS: a row a task, floor or initialization with all labels, split, variable and group.

    Groups of fewer than ``params.min_subgroup`` persons, and classifications with fewer than
    ``params.min_subjects`` of a class in the group, have no numbers; nor has the count of the
    first, which could point to somebody.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        models = [
            m
            for m in evidence.models
            if m.seeds and (m.is_floor or m.fraction == evidence.fraction)
        ]
        for split in ("test", "ood"):
            whole = (evidence.scans["split"] == split).to_numpy()
            for variable, group, inside in _groups(evidence, whole):
                head = {"task": evidence.name, "split": split, "variable": variable}
                head |= {"group": group, "metric": evidence.task.primary}
                persons = evidence.scans["person"][inside].nunique()
                reason = _suppressed(evidence, inside, params)
                few = persons < params.min_subgroup
                counted = {"subjects": np.nan if few else persons, "reason": reason}
                for model in models:
                    found: dict[str, object] = dict.fromkeys(("value", "low", "high"))
                    if reason is None:
                        estimate = _estimate(evidence, model.outputs[:, inside], inside)
                        found = {"value": estimate.value, "low": estimate.low}
                        found |= {"high": estimate.high}
                    rows.append({**head, "init": model.name, **found, **counted})
    numbers = dict.fromkeys(("value", "low", "high", "subjects"), float)
    return pd.DataFrame(rows, columns=SUBGROUPS).astype(numbers)


def _groups(evidence: Evidence, whole: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name of the variable, name of the group, and which scans belong to it."""
    scans = evidence.scans
    bands = pd.cut(
        scans["age"],
        AGE_BANDS,
        right=False,
        labels=[f"{low}–{high - 1}" for low, high in itertools.pairwise(AGE_BANDS)],
    )
    variables = {"sex": scans["sex"], "age": bands.astype("string"), "site": scans["site"]}
    for variable, values in (variables | {"scanner": scans["scanner"]}).items():
        if variable == evidence.task.column and variable != "age":
            continue  # one class only: a group within which nothing can be told apart
        present = values[whole].dropna()
        # A single group is everybody, and stands in the main table.
        for group in sorted(set(present)) if present.nunique() > 1 else []:
            yield variable, str(group), whole & (values == group).fillna(False).to_numpy(bool)


def _suppressed(evidence: Evidence, inside: np.ndarray, params: EvaluateParams) -> str | None:
    persons = evidence.scans["person"][inside].nunique()
    if persons < params.min_subgroup:
        return f"fewer than {params.min_subgroup} subjects"
    if evidence.task.classes and min(_persons(evidence, inside)) < params.min_subjects:
        return f"fewer than {params.min_subjects} subjects of a class"
    return None


def _persons(evidence: Evidence, inside: np.ndarray) -> list[int]:
    persons = evidence.scans["person"].to_numpy()
    return evidence.task.persons_per_class(persons, evidence.targets, inside)


def _estimate(evidence: Evidence, outputs: Values, inside: np.ndarray) -> Estimate:
    """The metric of the group, mean over seeds. Its error comes from a formula: resampling every
    group would take longer than all the rest."""
    task, persons = evidence.task, evidence.scans["person"].to_numpy()[inside]
    value, error = task.primary_with_error(evidence.labels[inside], outputs, persons)
    return intervals.with_error(value, error, task.primary, _persons(evidence, inside))
