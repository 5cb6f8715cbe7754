"""What the report tells a clinician of a task: what calls, risks and answers are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.measure.brain_age import CORRECTIONS
from neurofoundry.evaluate.measure.decisions import YOUDEN
from neurofoundry.evaluate.measure.sets import EVERYBODY
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.report.narrative import Conclusion
from neurofoundry.evaluate.results import Results
from neurofoundry.evaluate.rows import find_row
from neurofoundry.tasks.conformal import COVERAGE, fewest

Row = Mapping[str, Any]

CALLS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "likelihood_ratio_positive": "Likelihood ratio of a positive call",
    "likelihood_ratio_negative": "Likelihood ratio of a negative call",
    "positive_predictive_value": "Positive predictive value",
    "negative_predictive_value": "Negative predictive value",
}
"""Measures of tables/decisions.tsv, as columns."""

PREDICTIVE = ("positive_predictive_value", "negative_predictive_value")


def describe(evidence: Evidence, results: Results, conclusion: Conclusion) -> dict[str, Any]:
    """Return what the templates name."""
    candidate = conclusion.candidate[0] if conclusion.candidate else results.params.reference
    return {
        "decisions": _decisions(evidence, results),
        "useful": _useful(evidence, results),
        "sets": _sets(evidence, results),
        "fairness": _fairness(evidence, results, candidate),
        "brain_age": _brain_age(evidence, results, candidate),
    }


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why cells of rows are empty, each reason once."""
    cells = (cell for row in rows for cell in row["cells"])
    return sorted({str(cell["reason"]) for cell in cells if cell and cell["reason"]})


def _of(table: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    return table[table["task"] == evidence.name]


def _decisions(evidence: Evidence, results: Results) -> dict[str, Any]:
    """Return thresholds and what calls at them mean, a row a split and initialization."""
    table = _of(results.decisions, evidence)
    declared = results.params.prevalence.get(evidence.name)
    shown = [name for name in CALLS if declared is not None or name not in PREDICTIVE]
    rows = [
        {
            "split": split,
            "name": init,
            "threshold": find_row(table, split=split, init=init, measure="threshold"),
            "cells": [
                find_row(table, split=split, init=init, measure=measure) for measure in shown
            ],
        }
        for split in evidence.splits
        for init in dict.fromkeys(table["init"])
    ]
    known = [cell for row in rows for cell in row["cells"] if cell and cell["value"] is not None]
    return {
        "rows": rows if known else [],
        "columns": [CALLS[name] for name in shown],
        "prevalence": None if declared is None else narrative.percent(declared),
        "origin": YOUDEN,
        "reasons": _reasons(rows),
        "number": narrative.ratio,
    }


def _useful(evidence: Evidence, results: Results) -> list[dict[str, Any]]:
    """Return for which thresholds risks are of use at familiar sites, a sentence an
    initialization."""
    table = _of(results.useful, evidence)
    table = table[table["split"] == "test"]
    rows = [find_row(table, init=init) for init in table["init"]]
    return [
        {
            **row,
            "name": row["init"],
            "words": narrative.usefulness(row),
            "share": narrative.percent(row["prevalence"]),
        }
        for row in rows
        if row
    ]


def _sets(evidence: Evidence, results: Results) -> dict[str, Any]:
    """Return how often sets (or intervals) hold the truth, a row a split and initialization."""
    table = _of(results.sets, evidence)
    groups = [EVERYBODY, *evidence.task.classes]
    last = "decided" if evidence.task.classes else "half_width"
    rows = []
    for split in evidence.splits:
        for init in dict.fromkeys(table["init"]):
            where = {"split": split, "init": init}
            cells = [find_row(table, group=group, measure="coverage", **where) for group in groups]
            further = find_row(table, group=EVERYBODY, measure=last, **where)
            rows.append({"split": split, "name": init, "cells": [*cells, further]})
    known = [cell for row in rows for cell in row["cells"] if cell and cell["value"] is not None]
    behind = [int(row["calibrated_on"]) for row in known]
    ends = [(row["true_low"], row["true_high"]) for row in known]
    return {
        "rows": rows if known else [],
        "aimed": narrative.percent(COVERAGE),
        "groups": groups[1:],
        "behind": min(behind, default=0),
        "fewest": fewest(),
        "between": " to ".join(narrative.percent(each) for each in min(ends, default=(0.0, 0.0))),
        "reasons": _reasons(rows),
    }


def _fairness(evidence: Evidence, results: Results, candidate: str) -> list[dict[str, Any]]:
    """Return the largest gaps between groups, of the model that the headline is about."""
    table = _of(results.fairness, evidence)
    table = table[table["init"] == candidate]
    rows = []
    for split, variable in zip(table["split"], table["variable"], strict=True):
        row = find_row(table, split=split, variable=variable)
        if row:
            rows.append({**row, "words": narrative.gap_between_groups(row)})
    return rows


def _brain_age(evidence: Evidence, results: Results, candidate: str) -> list[dict[str, Any]]:
    """Return how much older the brains of the ill look, a row a label and split."""
    table = _of(results.brain_age, evidence)
    table = table[table["init"] == candidate]
    rows = []
    for keys, _ in table.groupby(["label", "ill", "split"], sort=False):
        key = dict(zip(("label", "ill", "split"), keys, strict=True))
        cells = [find_row(table, corrected=name, **key) for name in CORRECTIONS]
        if any(cell and cell["value"] is not None for cell in cells):
            rows.append({**(cells[0] or {}), "cells": cells})
    return rows


def harmonization(results: Results) -> list[dict[str, Any]]:
    """Return what ComBat changes, a row an encoder, question and split."""
    table = results.harmonization
    keep: Sequence[str] = [str(name) for name in table.columns]
    return [
        {**row, "words": narrative.changed_by_harmonization(row)}
        for row in (
            {
                name: None if pd.isna(value) else value
                for name, value in zip(keep, cells, strict=True)
            }
            for cells in table.itertuples(index=False)
        )
    ]
