"""What the report shows of one task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from neurofoundry.contracts.cohort import TESTED
from neurofoundry.contracts.encoder import UNTRAINED
from neurofoundry.contracts.models import initialization_of
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import baselines, calibration
from neurofoundry.evaluate.measure.benefit import prevalence_of
from neurofoundry.evaluate.measure.performance import persons_per_class
from neurofoundry.evaluate.measure.shots import DRAWS
from neurofoundry.evaluate.report import clinic, narrative, plots
from neurofoundry.evaluate.report.figures import TaskFigures
from neurofoundry.evaluate.report.narrative import Conclusion
from neurofoundry.evaluate.results import Results
from neurofoundry.evaluate.rows import find_row
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import Condition

Row = Mapping[str, Any]
Cell = Row | None
"""A row of a table with value, low, high and reason; None where there is none."""


def describe(
    number: int,
    evidence: Evidence,
    results: Results,
    figures: TaskFigures,
    initializations: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the templates name of a task, the ``number``-th of the report."""
    task, metric = evidence.task, METRICS[evidence.task.primary]
    unit = narrative.unit(evidence)
    conclusion = narrative.conclude(evidence, results.measured, results.params.reference)
    rows = _rows(evidence, results, initializations)
    return {
        "anchor": f"task-{number}",
        "name": evidence.name,
        "question": _question(evidence),
        "conclusion": conclusion,
        "metric": task.primary,
        "regression": task.numeric_label,
        "column": task.column,
        "binary": len(task.classes) == 2,
        "condition": task.classes[-1] if task.classes else "",
        "seeds": max((row["seeds"] for row in rows), default=0),
        "title": f"{metric.title},{unit}" if unit else metric.title,
        "better": "to the right" if metric.higher_is_better else "to the left",
        "columns": [(name, METRICS[name]) for name in task.metric_names],
        "reasons": _reasons(_cells(rows)),
        "rows": rows,
        "splits": evidence.splits,
        "subjects": {split: _subjects(evidence, split) for split in evidence.splits},
        "scale": _scale(rows, task.primary),
        "groups": _groups(evidence, results, conclusion),
        "prevalences": _prevalences(evidence),
        "calibration": _calibration(evidence, results),
        "labels": _labels(evidence, results, conclusion),
        "shots": _shots(evidence, results),
        "confusion": _confusion(evidence, results, conclusion),
        **clinic.describe(evidence, results, conclusion),
        "panels": figures,
        "maps": _maps(evidence, results, figures),
        "number": lambda row, name: narrative.number(row["value"], name, beside=row),
        "interval": lambda row, name: narrative.interval(row, name),
        "plain": lambda value: narrative.number(value, task.primary),
        "signed": lambda row: narrative.number(row["value"], task.primary, signed=True, beside=row),
        "signed_interval": lambda row: narrative.interval(row, task.primary, signed=True),
    }


def _question(evidence: Evidence) -> str:
    task = evidence.task
    if not task.eligible:
        return task.question
    rules = [f"{column} {_eligibility(rule)}" for column, rule in task.eligible.items()]
    return f"{task.question} Who takes part: {', '.join(rules)}."


def _eligibility(rule: Condition) -> str:
    if rule.one_of is not None:
        return " or ".join(rule.one_of)
    low = f"from {rule.min:g}" if rule.min is not None else ""
    return f"{low} {f'to {rule.max:g}' if rule.max is not None else ''}".strip()


def _subjects(evidence: Evidence, split: str) -> dict[str, Any]:
    persons = persons_per_class(evidence, split)
    return {
        "persons": evidence.scans["person"][evidence.inside(split)].nunique(),
        "classes": list(zip(evidence.task.classes, persons, strict=False)),
    }


def _prevalences(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the share of the tested persons of each split who have the class of interest."""
    if len(evidence.task.classes) != 2:
        return []
    return [(split, narrative.percent(prevalence_of(evidence, split))) for split in evidence.splits]


def _rows(
    evidence: Evidence, results: Results, initializations: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a row for each initialization with all labels, and each baseline."""
    shown = [m for m in evidence.models if m.is_baseline or m.fraction == evidence.fraction]
    reference = results.params.reference
    return [
        {
            "name": narrative.plain(model.name).capitalize() if model.is_baseline else model.name,
            "baseline": model.is_baseline,
            "morphometry": model.name == baselines.MORPHOMETRY,
            "reference": model.name == reference,
            "origin": (
                _averaged(evidence, model)
                if model.is_ensemble
                else initializations.get(model.name, "")
            ),
            "values": {
                split: _values(evidence, results, model, split) for split in evidence.splits
            },
            "notes": narrative.note(evidence, results.measured, model.name, reference),
            "seeds": len(model.seeds),
            "ensemble": model.is_ensemble,
        }
        for model in shown
    ]


def _averaged(evidence: Evidence, model: Model) -> str:
    """Say what an ensemble is."""
    words = f"the predictions of {model.members} models of {initialization_of(model.name)} averaged"
    if evidence.fold_of is None:
        return words
    return f"{words}, at familiar sites of those that have not learned from the subject"


def _values(evidence: Evidence, results: Results, model: Model, split: str) -> dict[str, Cell]:
    where = {"task": evidence.name, "init": model.name, "fraction": model.fraction, "split": split}
    return {
        name: find_row(results.measured.measures, metric=name, **where)
        for name in evidence.task.metric_names
    }


def _cells(rows: Iterable[Row]) -> Iterator[tuple[str, Cell]]:
    for row in rows:
        for of_split in row["values"].values():
            yield from ((row["name"], cell) for cell in of_split.values())


def _reasons(cells: Iterable[tuple[str, Cell]]) -> list[str]:
    """Return why cells of a table are empty, each reason once with the rows it is true of."""
    rows_of: dict[str, dict[str, None]] = {}
    for name, cell in cells:
        if cell and cell["value"] is None and cell["reason"]:
            rows_of.setdefault(str(cell["reason"]), {})[name] = None
    return [f"{reason} ({', '.join(rows)})" for reason, rows in rows_of.items()]


def _scale(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Return the axis of the forest plot, wide enough for every interval."""
    cells = [of_split[metric] for row in rows for of_split in row["values"].values()]
    return _axis([cell[end] for cell in cells if cell for end in ("value", "low", "high")], metric)


def _axis(ends: Sequence[float | None], metric: str) -> dict[str, Any]:
    """Return the ends and ticks of an axis that holds ``ends``; positions in percent."""
    known = [end for end in ends if end is not None]
    if not known:
        return {}
    if metric == "auc":
        ticks = [tick for tick in plots.ticks(min(0.4, *known), 1.0) if tick <= 1]
    else:
        ticks = plots.ticks(0, max(known))
    low, high = ticks[0], ticks[-1]
    return {
        "ticks": [(f"{tick:g}", 100 * (tick - low) / (high - low)) for tick in ticks],
        "low": low,
        "span": high - low,
        "chance": 100 * (0.5 - low) / (high - low) if metric == "auc" else None,
    }


def _groups(evidence: Evidence, results: Results, conclusion: Conclusion) -> dict[str, Any]:
    """Return the forest plot of subgroups, of the model that the headline is about, with the
    baselines."""
    name = conclusion.candidate[0] if conclusion.candidate else results.params.reference
    simple, metric = baselines.names(evidence.task), evidence.task.primary
    rows: list[dict[str, Any]] = []
    hidden = 0
    for variable, group, cells in _cells_of_groups(evidence, results, name):
        own = cells.pop(name)
        if own is None or own["value"] is None:
            hidden += bool(variable)
            continue
        values = {init: cell["value"] for init, cell in cells.items() if cell}
        rows.append(
            {
                **own,
                "variable": variable,
                "group": group,
                "baselines": [values.get(init) for init in simple],
                "ahead": narrative.baselines_ahead(own["value"], values, metric),
            }
        )
    # Everybody of a split without groups that have numbers is in the main table.
    compared = {row["split"] for row in rows if row["variable"]}
    rows = [row for row in rows if row["split"] in compared]
    ends = [row[end] for row in rows for end in ("value", "low", "high")]
    ends += [value for row in rows for value in row["baselines"]]
    return {
        "name": name,
        "rows": rows,
        "hidden": hidden,
        "baselines": [narrative.plain(init) for init in simple],
        "scale": _axis(ends, metric),
    }


def _cells_of_groups(
    evidence: Evidence, results: Results, name: str
) -> Iterator[tuple[str, str, dict[str, Cell]]]:
    """Yield the cells of a model and of the baselines, for everybody and each group of a split."""
    fractions = {name: evidence.fraction} | dict.fromkeys(baselines.names(evidence.task), 1.0)
    where = {"task": evidence.name, "metric": evidence.task.primary}
    table = results.subgroups
    own = table[(table["task"] == evidence.name) & (table["init"] == name)]
    for split in TESTED:
        groups = own[own["split"] == split]
        if groups.empty:
            continue
        yield (
            "",
            "Everybody",
            {
                init: find_row(
                    results.measured.measures, init=init, split=split, fraction=fraction, **where
                )
                for init, fraction in fractions.items()
            },
        )
        for variable, group in zip(groups["variable"], groups["group"], strict=True):
            head = {"variable": variable, "group": group, "split": split, **where}
            yield variable, group, {init: find_row(table, init=init, **head) for init in fractions}


def _calibration(evidence: Evidence, results: Results) -> dict[str, Any]:
    """Return the calibration of each initialization at familiar sites, as it is and corrected."""
    table = results.calibrated
    table = table[(table["task"] == evidence.name) & (table["split"] == "test")]
    names, corrections = evidence.task.calibration_names, calibration.corrections(evidence)
    rows = [
        {
            "name": init,
            "values": [
                (name, find_row(table, init=init, metric=name, corrected=corrected))
                for name in names
                for corrected in corrections
            ],
        }
        for init in dict.fromkeys(table["init"])
    ]
    cells = [(row["name"], cell) for row in rows for _, cell in row["values"]]
    return {
        "rows": rows if any(cell and cell["value"] is not None for _, cell in cells) else [],
        "columns": [METRICS[name] for name in names],
        "corrections": corrections[1:],
        "reasons": _reasons(cells),
    }


def _labels(evidence: Evidence, results: Results, conclusion: Conclusion) -> dict[str, Any]:
    """Return how few labels suffice for every initialization, that of the headline first."""
    metric, reference = evidence.task.primary, results.params.reference
    names = [m.name for m in evidence.models if not m.is_baseline]
    where = {"task": evidence.name, "split": "test", "metric": metric}
    reference_row = find_row(
        results.measured.measures, init=reference, fraction=evidence.fraction, **where
    )
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*(conclusion.candidate or ())[:1], *names]):
        fewer = narrative.with_fewer_labels(evidence, results.measured, name, reference)
        if fewer:
            rows.append(
                {
                    "name": name,
                    "words": narrative.how_few_suffice(fewer, metric),
                    "cells": {each.fraction: each for each in fewer},
                }
            )
    shares = sorted({fraction for row in rows for fraction in row["cells"]})
    return {
        "rows": rows,
        "shares": [(fraction, f"{fraction:.0%}") for fraction in shares],
        "all": f"{evidence.fraction:.0%}",
        "reference": narrative.with_interval(reference_row, metric) if reference_row else "",
        "compared": len(rows) * len(shares),
        "difference": lambda row: narrative.with_interval(row, metric, signed=True),
    }


def _shots(evidence: Evidence, results: Results) -> dict[str, Any]:
    """Return what each frozen encoder tells with a few examples a class, or by its nearest
    neighbours, at familiar sites."""
    table = results.shots
    table = table[(table["task"] == evidence.name) & (table["split"] == "test")]
    rows: list[dict[str, Any]] = []
    for encoder in dict.fromkeys(table["encoder"]):
        found = table[table["encoder"] == encoder]
        values = [find_row(found.iloc[[place]]) for place in range(len(found))]
        name = "untrained" if encoder in UNTRAINED else encoder
        rows.append({"name": name, "values": [(evidence.task.primary, row) for row in values]})
    cells = [(row["name"], cell) for row in rows for _, cell in row["values"]]
    columns = [row["shots"] for _, row in rows[0]["values"]] if rows else []
    return {
        "columns": [
            f"{shots:.0f} a class" if shots else "nearest neighbours, all labels"
            for shots in columns
        ],
        "rows": rows if any(cell and cell["value"] is not None for _, cell in cells) else [],
        "draws": DRAWS,
        "reasons": _reasons(cells),
    }


def _confusion(
    evidence: Evidence, results: Results, conclusion: Conclusion
) -> list[dict[str, Any]]:
    """Return the confusion matrices of the initialization of the headline and of the reference."""
    table, classes = results.curves.confusion, list(evidence.task.classes)
    table = table[table["task"] == evidence.name]
    matrices = []
    for name in dict.fromkeys([*(conclusion.candidate or ())[:1], results.params.reference]):
        for split in TESTED:
            cells = table[(table["init"] == name) & (table["split"] == split)]
            if cells.empty:
                continue
            counts = cells.pivot(index="true", columns="predicted", values="scans")
            counts = counts.loc[classes, classes]
            shares = counts.div(counts.sum(axis=1), axis=0)
            rows = [
                (true, [*zip(counts.loc[true], shares.loc[true], strict=True)]) for true in classes
            ]
            matrices.append({"name": name, "split": split, "rows": rows})
    return matrices


def _maps(evidence: Evidence, results: Results, figures: TaskFigures) -> list[dict[str, Any]]:
    """Return the maps of every initialization that was explained, and what to think of them."""
    explained = [each for each in results.explained if each.task == evidence.name]
    sections = []
    for init, maps in figures.maps.items():
        groups = [each for each in explained if each.init == init]
        sections.append(
            {
                "init": init,
                "maps": maps,
                "groups": groups,
                "doubt": not narrative.beats_a_constant(evidence, results.measured, init),
                "left_over": max(each.left_over for each in groups),
            }
        )
    return sections
