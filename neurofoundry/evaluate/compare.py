"""Evaluations of the same scans, side by side and in pairs: what a change of parameters has done.

The others are compared with the first. Differences are paired over persons and made as those within
one evaluation (measure/performance.py); each evaluation keeps its own thresholds, from its val.
"""

from __future__ import annotations

import json
import os
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neurofoundry.contracts.cohort import TESTED
from neurofoundry.contracts.models import ENSEMBLE
from neurofoundry.contracts.tables import write_table
from neurofoundry.errors import DataError, UsageError
from neurofoundry.evaluate import predictions
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.measure import performance
from neurofoundry.evaluate.measure.performance import Thresholds
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.rows import find_row, table_of
from neurofoundry.params import validate
from neurofoundry.runtime import stage
from neurofoundry.runtime.experiment import public
from neurofoundry.runtime.files import short, to_plain
from neurofoundry.runtime.guard import guard_mount, guard_output
from neurofoundry.runtime.output import Output
from neurofoundry.stats import comparisons
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import PRIMARY_METRICS, of_one_label, parse_task
from neurofoundry.tasks.base import BASELINE

VALUES = ["evaluation", *performance.MEASURES]
DIFFERENCES = [
    *("evaluation", "versus", "task", "init", "fraction", "split", "metric"),
    *("value", "low", "high", "p", "p_holm", "verdict", "reason"),
]

PAGE = "comparison.md"
TABLES = ("values", "differences", "parameters")


@dataclass(frozen=True, eq=False)
class Tested:
    """A task in one evaluation: its test and ood scans."""

    evidence: Evidence
    thresholds: Thresholds
    """From the val scans of the same evaluation."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An output of evaluate, under a letter."""

    letter: str
    title: str
    """The shortest end of its path that tells it from the others."""
    tasks: Mapping[str, Tested]
    params: EvaluateParams
    seed: int
    stages: Mapping[str, Mapping[str, Any]]
    """Code, data and parameters of each stage up to this one, as of Inputs.provenance."""

    def __str__(self) -> str:
        return f"{self.letter} ({self.title})"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The content of the tables and of the page."""

    titles: Mapping[str, str]
    """Titles by letter; the others are compared with the first."""
    parameters: pd.DataFrame
    """``parameter``, ``stages`` and a column a letter: those in which the evaluations differ."""
    values: pd.DataFrame
    """VALUES, on test and ood."""
    differences: pd.DataFrame
    """DIFFERENCES: ``evaluation`` − ``versus`` of the same model on the same resampled persons."""
    left_out: tuple[str, ...]
    """Tasks that not all of them have."""


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare outputs of evaluate with the first of them.

    The number of resamples, the seed and the minimum of persons are those of the first. Raises
    UsageError where there is nothing to compare, and DataError where scans, persons or labels are
    not the same.
    """
    evaluations = read(folders)
    first, *others = evaluations
    shared = [name for name in first.tasks if all(name in each.tasks for each in others)]
    union = dict.fromkeys(name for each in evaluations for name in each.tasks)
    if not shared:
        raise UsageError(f"No task is in all of {', '.join(map(str, evaluations))}.")
    check(first, others, shared)
    values: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    for name in shared:
        tested = [(each.letter, each.tasks[name]) for each in evaluations]
        more_values, more_differences = compare_task(tested, first)
        values += more_values
        differences += more_differences
    return Comparison(
        {each.letter: each.title for each in evaluations},
        parameters(evaluations),
        table_of(values, VALUES),
        _adjust(table_of(differences, DIFFERENCES), first, shared),
        tuple(name for name in union if name not in shared),
    )


def read(folders: Sequence[Path]) -> list[Evaluation]:
    """Read two or more outputs of evaluate. Raises UsageError and DataError."""
    if not 2 <= len(folders) <= len(string.ascii_uppercase):
        raise UsageError(
            f"{len(folders)} evaluations to compare; expected 2 to {len(string.ascii_uppercase)}."
        )
    titles = _titles(folders)
    return [
        _read(folder, letter, title)
        for folder, letter, title in zip(folders, string.ascii_uppercase, titles, strict=False)
    ]


def _read(folder: Path, letter: str, title: str) -> Evaluation:
    record = stage.read_record("evaluate", folder)
    try:
        given = record["params"]
        tasks = of_one_label({name: parse_task(task) for name, task in given["tasks"].items()})
        params = validate(given["evaluate"], EvaluateParams, origin=f"{title}/stage.json")
        stages = json.loads((folder / "provenance.json").read_text())
        own = {**record, "params": public(given)}
        return Evaluation(
            letter,
            title,
            {
                name: tested(predictions.read(folder / "predictions", name, task))
                for name, task in tasks.items()
            },
            params,
            int(given["seed"]),
            {**stages, "evaluate": own},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{title}: provenance.json or stage.json lacks what a comparison needs "
            f"({type(error).__name__}). Run evaluate again."
        ) from error


def _titles(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell different folders apart."""
    parts = [Path(os.path.abspath(folder)).parts[1:] for folder in folders]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def tested(evidence: Evidence) -> Tested:
    """Keep the test and ood scans, with the thresholds that val suggests."""
    thresholds = performance.thresholds_of(evidence)
    rows = evidence.scans["split"].isin(TESTED).to_numpy()
    models = tuple(
        replace(model, outputs=model.outputs[:, rows]) if model.seeds else model
        for model in evidence.models
    )
    return Tested(
        replace(
            evidence,
            scans=evidence.scans[rows].reset_index(drop=True),
            targets=evidence.targets[rows],
            models=models,
            fold_of=None if evidence.fold_of is None else evidence.fold_of[:, rows],
        ),
        {
            model: [each if each is None else each[rows] for each in thresholds[before]]
            for model, before in zip(models, evidence.models, strict=True)
        },
    )


def check(first: Evaluation, others: Sequence[Evaluation], tasks: Sequence[str]) -> None:
    """Refuse evaluations of other scans, persons or labels. Raises DataError, without names."""
    problems = [
        f"{name}: {problem}"
        for other in others
        for name in tasks
        for problem in _unlike(first, other, name)
    ]
    if problems:
        raise DataError(
            f"{len(others) + 1} evaluations cannot be compared:\n  "
            + "\n  ".join(problems)
            + "\nPaired differences need the same test and ood scans with the same labels. Make "
            "evaluations from one cohort: the same data, seed, tasks and ingest, and preprocessing "
            "that leaves the same scans usable."
        )


def _unlike(first: Evaluation, other: Evaluation, name: str) -> Iterator[str]:
    """Yield what differs in a task between two evaluations, in words and numbers."""
    one, two = first.tasks[name].evidence, other.tasks[name].evidence
    for field in ("kind", "classes"):
        if (a := getattr(one.task, field)) != (b := getattr(two.task, field)):
            yield f"{field} is {_text(a)} in {first} and {_text(b)} in {other}"
            return
    same = True
    for split in TESTED:
        a, b = (Counter(each.scans["scan"][each.scans["split"] == split]) for each in (one, two))
        if a != b:
            same = False
            yield (
                f"in split '{split}', {(a - b).total()} scans are in {first} and not in {other}, "
                f"{(b - a).total()} in {other} and not in {first}"
            )
    if not same:
        return
    for split in TESTED:
        rows = (one.scans["split"] == split).to_numpy()
        if differs := int((one.targets[rows] != two.targets[rows]).sum()):
            yield (
                f"in split '{split}', {differs} of {rows.sum()} scans have different labels in "
                f"{first} and in {other}"
            )
    persons = [each.scans["person"].to_numpy() for each in (one, two)]
    pairs = len(np.unique(np.stack(persons), axis=1).T)
    if any(pairs != len(np.unique(each)) for each in persons):
        yield f"{first} and {other} disagree on which scans are of one person"


def compare_task(
    tested: Sequence[tuple[str, Tested]], first: Evaluation
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return rows of VALUES and of DIFFERENCES."""
    models = tuple(model for _, each in tested for model in each.evidence.models)
    thresholds = {m: each.thresholds[m] for _, each in tested for m in each.evidence.models}
    together = replace(tested[0][1].evidence, models=models)
    references = {(model.name, model.fraction): model for model in tested[0][1].evidence.models}
    values: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    for split in TESTED:
        if not (together.scans["split"] == split).any():
            continue
        samples = performance.resample(
            together, split, thresholds, params=first.params, seed=first.seed
        )
        for letter, each in tested:
            rows = performance.values(
                each.evidence, split, samples, thresholds, params=first.params
            )
            values += [{"evaluation": letter, **row} for row in rows]
        for letter, each in tested[1:]:
            pairs = [
                (model, references[key])
                for model in each.evidence.models
                if (key := (model.name, model.fraction)) in references
            ]
            differences += [
                {**row, "evaluation": letter, "versus": tested[0][0]}
                for row in performance.compare(together, split, samples, pairs)
            ]
    return values, differences


def _adjust(differences: pd.DataFrame, first: Evaluation, tasks: Sequence[str]) -> pd.DataFrame:
    """Adjust p-values for their number: a family of single models and one of ensembles a split, of
    the primary metric of each task with all labels, without the baselines."""
    headline = pd.Series(False, index=differences.index)
    for name in tasks:
        evidence = first.tasks[name].evidence
        headline |= (
            (differences["task"] == name)
            & (differences["metric"] == evidence.task.primary)
            & (differences["fraction"] == evidence.fraction)
        )
    headline &= ~differences["init"].str.startswith(BASELINE) & differences["p"].notna()
    ensemble = differences["init"].str.endswith(ENSEMBLE)
    for _, family in differences[headline].groupby([differences["split"], ensemble]):
        differences.loc[family.index, "p_holm"] = comparisons.holm(family["p"].tolist())
    return differences


def parameters(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return the parameters in which the evaluations differ, with the stages that read them.

    ``code`` and ``data_version`` count as parameters of a stage. A stage that only some have, such
    as the pretraining of another encoder, is one row without a parameter.
    """
    rows: dict[tuple[str | None, ...], list[str]] = {}
    for name in dict.fromkeys(name for each in evaluations for name in each.stages):
        having = [each for each in evaluations if name in each.stages]
        if len(having) < len(evaluations):
            used = ("used" if each in having else "not used" for each in evaluations)
            rows.setdefault(("", *used), []).append(name)
        flat = {each.letter: dict(_flat(each.stages[name]["params"])) for each in having}
        for each in having:
            flat[each.letter] |= {"data_version": short(each.stages[name]["data_version"])}
            if len({str(other.stages[name]["code_sha256"]) for other in having}) > 1:
                flat[each.letter]["code"] = short(str(each.stages[name]["code_sha256"]))
        for key in dict.fromkeys(key for values in flat.values() for key in values):
            shown = tuple(flat.get(each.letter, {}).get(key) for each in evaluations)
            differ = len({flat[each.letter].get(key) for each in having}) > 1
            if differ or key == "code":
                rows.setdefault((key, *shown), []).append(name)
    letters = [each.letter for each in evaluations]
    return pd.DataFrame(
        [
            dict(zip(("parameter", *letters), shown, strict=True)) | {"stages": ", ".join(stages)}
            for shown, stages in rows.items()
        ],
        columns=["parameter", "stages", *letters],
        dtype=object,
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of nested mappings under its dotted name."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Block:
    """A table for people."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def blocks(comparison: Comparison, *, every_metric: bool) -> list[Block]:
    """Return the parameters that differ, and a table for each task and split, of the primary metric
    or of every metric."""
    letters = tuple(comparison.titles)
    differing = comparison.parameters.astype(object).where(comparison.parameters.notna(), "–")
    made = [
        Block("Evaluations", ("", "folder"), tuple(comparison.titles.items())),
        Block(
            "Parameters that differ",
            ("parameter", "stages", *letters),
            tuple(tuple(map(str, row)) for row in differing.itertuples(index=False))
            or (("none", *("" for _ in range(len(letters) + 1))),),
        ),
    ]
    header = ("model", *letters, *(f"{letter} − {letters[0]}" for letter in letters[1:]))
    for (task, split, metric), rows in comparison.values.groupby(
        ["task", "split", "metric"], sort=False
    ):
        if not every_metric and metric not in PRIMARY_METRICS:
            continue
        subjects = rows["subjects"].iloc[0]
        title = f"{task}, {split} ({subjects} persons): {METRICS[str(metric)].title}"
        several = rows["fraction"].nunique() > 1
        models = dict.fromkeys(zip(rows["init"], rows["fraction"], strict=True))
        where = {"task": task, "split": split, "metric": metric}
        made.append(
            Block(
                title,
                header,
                tuple(
                    (
                        f"{init}, {fraction:.0%} of labels" if several else str(init),
                        *_cells(comparison, {**where, "init": init, "fraction": fraction}),
                    )
                    for init, fraction in models
                ),
            )
        )
    return made


def _cells(comparison: Comparison, where: Mapping[str, Any]) -> Iterator[str]:
    """Yield the value of a model in every evaluation, then its differences from the first."""
    letters, metric = tuple(comparison.titles), str(where["metric"])
    for letter in letters:
        row = find_row(comparison.values, evaluation=letter, **where)
        yield narrative.with_interval(row, metric) if row and row["value"] is not None else "–"
    for letter in letters[1:]:
        row = find_row(comparison.differences, evaluation=letter, **where)
        if row is None or row["value"] is None:
            yield "–"
            continue
        verdict = ""
        if row["p_holm"] is not None and row["verdict"] in ("better", "worse"):
            perhaps = "" if row["p_holm"] < narrative.SIGNIFICANT else "perhaps "
            verdict = f" {perhaps}{row['verdict']}"
        shown = narrative.with_interval(row, metric, signed=True) + verdict
        yield shown if any(row[end] for end in ("value", "low", "high")) else "the same"


NOTE = (
    "In brackets: 95 % intervals; those of differences are paired over persons. Better or worse: "
    "the interval excludes zero, and 'perhaps' where that no longer holds once the number of "
    "comparisons is allowed for (Holm)."
)


def _left_out(comparison: Comparison) -> str:
    if not comparison.left_out:
        return ""
    return f"Not compared, because not all have them: {', '.join(comparison.left_out)}."


def show(comparison: Comparison, console: Console) -> None:
    """Print what differs, and the primary metric of every task."""
    for block in blocks(comparison, every_metric=False):
        table = Table(title=escape(block.title), title_justify="left", box=box.SIMPLE_HEAD)
        for name in block.header:
            table.add_column(escape(name), overflow="fold")
        for row in block.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(NOTE, _left_out(comparison), highlight=False)


def as_json(comparison: Comparison) -> str:
    """Return titles and the three tables, a list of rows each, as JSON."""
    tables = {name: getattr(comparison, name).astype(object) for name in TABLES}
    rows = {
        name: table.where(table.notna(), None).to_dict("records") for name, table in tables.items()
    }
    return json.dumps({"titles": dict(comparison.titles), **rows}, default=to_plain)


def guard(out: Path, folders: Sequence[Path]) -> None:
    """Raise UsageError where ``out`` holds anything but a comparison, or is one of ``folders``."""
    files = (PAGE, *(f"{name}.tsv" for name in TABLES))
    guard_output(out, makes="compare", inputs=folders, marks=(PAGE,), only=files)
    guard_mount(out)


def write(comparison: Comparison, out: Path) -> None:
    """Write values.tsv, differences.tsv, parameters.tsv and comparison.md; all or nothing."""
    output = Output(out)
    with output.lock("compare", keep=False) as partial:
        for name in TABLES:
            write_table(getattr(comparison, name), partial / f"{name}.tsv")
        (partial / PAGE).write_text(_page(comparison))
        output.publish(out)


def _page(comparison: Comparison) -> str:
    lines = ["# Comparison of evaluations", "", NOTE, _left_out(comparison)]
    for block in blocks(comparison, every_metric=True):
        rows = [block.header, tuple("---" for _ in block.header), *block.rows]
        lines += ["", f"## {block.title}", ""]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in r)} |" for r in rows]
    return "\n".join(lines) + "\n"
