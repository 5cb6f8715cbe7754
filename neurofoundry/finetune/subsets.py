"""Which labelled persons a model learns from: nested fractions and cross-validation folds.

Rows are the scans of a task in split 'train', with their ``target``: the index of the class, or
the value.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.tasks import Task

FOLDS = 5
"""Of a probe's cross-validation; fewer where a class has fewer persons."""


def fraction_of(rows: pd.DataFrame, task: Task, fraction: float, *, key: str) -> pd.DataFrame:
    """The scans of a share of the persons, stratified by target.

    Persons stand in one order, a function of ``key`` and their targets, in which every beginning
    is stratified; a fraction is a beginning of it. So a smaller one lies within a larger one.
    """
    persons = _strata(rows, task, key)
    within = persons.groupby("stratum").cumcount()
    size = persons.groupby("stratum")["stratum"].transform("size")
    order = persons.assign(position=(within + 0.5) / size).sort_values(["position", "digest"])
    kept = order.index[: round(fraction * len(order))]
    return rows[rows["person"].isin(kept)]


def in_turn(rows: pd.DataFrame, task: Task, count: int, *, key: str) -> pd.DataFrame:
    """One scan each of up to ``count`` persons, taken from the classes (or quarters of the values)
    in turn. Persons stand in an order of their own, a function of ``key``."""
    persons = _strata(rows, task, key)
    turn = persons.groupby("stratum").cumcount()
    order = persons.assign(turn=turn).sort_values(["turn", "stratum"]).index[:count]
    # Of a person with scans of several classes, one of the class that they count for.
    last = rows.sort_values(["target", "scan_id"]).groupby("person").tail(1)
    return last.set_index("person", drop=False).loc[order]


def shortage(rows: pd.DataFrame, task: Task) -> str | None:
    """What these scans have too little of to be learned from; None when it is enough."""
    return task.shortage(_strata(rows, task, key="")["stratum"], rows["target"])


def folds(rows: pd.DataFrame, task: Task) -> NDArray[np.int64]:
    """The cross-validation fold of every scan; a person's scans share one.

    Without a `shortage`, every fold holds every class.
    """
    persons = _strata(rows, task, key="folds").sort_values(["stratum", "digest"])
    count = min(FOLDS, task.max_folds(persons["stratum"]))
    fold = pd.Series(np.arange(len(persons)) % count, index=persons.index)
    return rows["person"].map(fold).to_numpy(np.int64)


def _strata(rows: pd.DataFrame, task: Task, key: str) -> pd.DataFrame:
    """Persons by their digest, with their stratum: the class, or the quarter of the values."""
    stratum = task.strata(rows.set_index("person")["target"])
    digest = [hashlib.sha256(f"{key}\0{person}".encode()).hexdigest() for person in stratum.index]
    return pd.DataFrame({"stratum": stratum, "digest": digest}).sort_values("digest")
