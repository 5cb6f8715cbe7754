"""What would let this cohort serve a task: every remedy that is named was tried on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import yaml

from neurofoundry.contracts import folds
from neurofoundry.contracts.splits import Splits
from neurofoundry.errors import counted
from neurofoundry.ingest import splits
from neurofoundry.tasks import Labelled

FOLDS = (5, 10, 4, 3)
"""Numbers of folds to try, the usual first."""


def find(
    rows: pd.DataFrame,
    params: Splits,
    name: str,
    tasks: Mapping[str, Labelled],
    *,
    seed: int,
    judged: bool = False,
) -> str:
    """Return what would let the scans ``rows`` serve a task, as a sentence; of a task that is to be
    ``judged``, with as many tested as evaluate gives numbers for.

    Other modes are tried with the same shares; if none will do, also without ``ood``. Where nothing
    will do, the sentence says how many persons the smallest class has.
    """
    task, rows = tasks[name], rows.drop(columns="fold", errors="ignore")
    if not {task.column, *task.eligible} <= set(rows.columns):
        return "Name the column in ingest.columns."
    changes: list[dict[str, Any]] = [{}, {"ood": {}}] if params.ood else [{}]
    for change in changes:
        found: dict[str, str] = {}
        for candidate in _candidates(params.model_copy(update=change)):
            if candidate.mode not in found:
                dealt = splits.assign(rows, candidate, tasks, seed=seed)
                lacks = folds.gap(task, dealt) or (folds.unjudged(task, dealt) if judged else None)
                if lacks is None:
                    found[candidate.mode] = _describe(candidate, dealt, task)
        if found:
            without = " (without ood)" if change else ""
            return f"Would do{without}: {'; or '.join(found.values())}."
    return _too_few(rows, params, task)


def _candidates(params: Splits) -> Iterator[Splits]:
    """Yield other ways to split, of each mode the usual first."""
    alone = params.pretrain or 0.0
    ood = params.ood
    if params.mode == "hash":
        yield Splits(mode="stratified", ood=ood, **params.shares)
    for share in dict.fromkeys((alone, min(alone, 0.2))):
        for count in FOLDS:
            if share < 1 and (params.mode, params.folds, alone) != ("folds", count, share):
                yield Splits(mode="folds", folds=count, pretrain=share, ood=ood)


def _describe(params: Splits, dealt: pd.DataFrame, task: Labelled) -> str:
    """Return a way to split, and how many persons of the smallest class it gives, in words."""
    label, members = _smallest_class(task, dealt)
    if params.mode == "folds":
        tested = members[members["split"] == "test"]["person"].nunique()
        alone = "" if params.pretrain else " (for pretraining, import weights: nobody is left)"
        return f"{written(params)}, which tests {counted(tested, 'person')} with {label}{alone}"
    persons = members.groupby("split")["person"].nunique()
    given = ", ".join(f"{split} {persons.get(split, 0)}" for split in ("train", "val", "test"))
    return f"{written(params)}, which gives {given} persons with {label}"


def written(params: Splits) -> str:
    """Return a way to split as --set takes it: the whole of ingest.splits, on one line."""
    values = params.model_dump(mode="json", exclude_defaults=True)
    told = {name: value for name, value in values.items() if value}
    line = yaml.safe_dump(told, default_flow_style=True, sort_keys=False, width=10_000)
    return f"ingest.splits={line.strip()}"


def _smallest_class(task: Labelled, rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the class with the fewest persons, in words, and its scans."""
    chosen = task.select(rows)
    classes = {
        f"{task.column}={name}": chosen[chosen[task.column] == name] for name in task.classes
    } or {f"a value of {task.column}": chosen}
    return min(classes.items(), key=lambda each: each[1]["person"].nunique())


def _too_few(rows: pd.DataFrame, params: Splits, task: Labelled) -> str:
    outside = [rows[column].isin(names) for column, names in params.ood.items()]
    inside = rows[~pd.concat(outside, axis=1).any(axis=1)] if outside else rows
    label, members = _smallest_class(task, inside)
    persons = members["person"].nunique()
    found = f"{persons} {'has' if persons == 1 else 'have'} {label}"
    needs = task.needs(persons)
    return (
        f"No other way to split these persons will do: {found}, and train and test need "
        f"{needs['train']} each, val {needs['val']}. Add persons, or leave out a class."
    )
