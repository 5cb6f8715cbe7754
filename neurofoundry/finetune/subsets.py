"""Which labelled persons a model learns from: nested fractions and cross-validation folds.

``rows`` are the scans of a task in one split, with their ``target``: the index of the class, or the
value.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.tasks import Labelled, Task

FOLDS = 5
"""Folds of a probe's cross-validation; fewer if a class has fewer persons."""


def fraction_of(rows: pd.DataFrame, task: Labelled, fraction: float, *, key: str) -> pd.DataFrame:
    """Return the scans of a ``fraction`` of the persons, stratified by target.

    A fraction is the beginning of one order of the persons, a function of ``key`` and the targets,
    of which every beginning is stratified. So a smaller fraction lies within a larger one.
    """
    persons = _strata(rows, task, key)
    rank = persons.groupby("stratum").cumcount()
    size = persons.groupby("stratum")["stratum"].transform("size")
    order = persons.assign(position=(rank + 0.5) / size).sort_values(["position", "digest"])
    kept = order.index[: round(fraction * len(order))]
    return rows[rows["person"].isin(kept)]


def in_turn(rows: pd.DataFrame, task: Labelled, count: int, *, key: str) -> pd.DataFrame:
    """Return one scan each of up to ``count`` persons, from the classes (or quarters of the values)
    in turn. The order of the persons is a function of ``key``."""
    persons = _strata(rows, task, key)
    turn = persons.groupby("stratum").cumcount()
    order = persons.assign(turn=turn).sort_values(["turn", "stratum"]).index[:count]
    # Of a person with scans of several classes, a scan of the class that is their stratum.
    last = rows.sort_values(["target", "scan_id"]).groupby("person").tail(1)
    return last.set_index("person", drop=False).loc[order]


def shortage(rows: pd.DataFrame, task: Labelled) -> str | None:
    """Return what these scans lack to be learned from, in words; None if they suffice."""
    return task.shortage(_strata(rows, task, key="")["stratum"], rows["target"])


def folds(rows: pd.DataFrame, task: Task) -> NDArray[np.int64]:
    """Return the cross-validation fold of every scan, the same for all scans of a person.

    Every fold holds every class, unless there is a `shortage`.
    """
    persons = _strata(rows, task, key="folds").sort_values(["stratum", "digest"])
    count = min(FOLDS, task.max_folds(persons["stratum"]))
    fold = pd.Series(np.arange(len(persons)) % count, index=persons.index)
    return rows["person"].map(fold).to_numpy(np.int64)


def _strata(rows: pd.DataFrame, task: Labelled, key: str) -> pd.DataFrame:
    """Return the persons, sorted by ``digest``, with their ``stratum``."""
    stratum = task.strata(rows.set_index("person")["target"])
    digest = [hashlib.sha256(f"{key}\0{person}".encode()).hexdigest() for person in stratum.index]
    return pd.DataFrame({"stratum": stratum, "digest": digest}).sort_values("digest")
