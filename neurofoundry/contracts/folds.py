"""Cross-validation: the column ``fold`` of the cohort, and the splits that it means.

Persons who are cross-validated have the split ``test``, since each is tested. ``fold`` is '3/5' for
somebody tested in the third of five folds, and '3/5 1/5' if persons were dealt to folds twice. In
each fold the next one (after the last, the first) validates, and all others train. Out-of-
distribution persons have a fold too: of all models that could predict them, that fold's are judged.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.tasks import Labelled
from neurofoundry.tasks.base import JUDGED


def count(scans: pd.DataFrame) -> int:
    """Return the number of folds, those of all repeats; 0 where nobody is cross-validated."""
    place, folds = places(scans)
    return int(place.shape[1] * folds)


def places(scans: pd.DataFrame) -> tuple[NDArray[np.int64], int]:
    """Return in which fold each scan is tested, (scans, repeats), 0 for none, and the number of
    folds of a repeat."""
    known = scans["fold"].dropna() if "fold" in scans else pd.Series(dtype=str)
    if known.empty:
        return np.zeros((len(scans), 0), np.int64), 0
    repeats = len(known.iloc[0].split())
    none = " ".join(["0/0"] * repeats)
    words = scans["fold"].fillna(none).str.split()
    place = [[int(word.partition("/")[0]) for word in each] for each in words]
    return np.array(place, np.int64), int(known.iloc[0].partition("/")[2].split()[0])


def in_fold(scans: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return the scans with the split that each has in a fold, the ``number``-th of all repeats
    from 1; 0 stands for no cross-validation."""
    if not number:
        return scans
    place, folds = places(scans)
    if not folds:
        return scans  # nobody of these is in a fold
    repeat, fold = divmod(number - 1, folds)
    here = place[:, repeat]
    role = np.where(
        here == fold + 1, "test", np.where(here == (fold + 1) % folds + 1, "val", "train")
    )
    split = np.where(scans["split"] == "test", role, scans["split"])
    return scans.assign(split=split)


def would_do(task: Labelled, scans: pd.DataFrame) -> str:
    """Return how many folds of the persons of train, val and test would serve a task, as a
    sentence; '' where none would."""
    if task.column not in scans:
        return ""
    inside = task.select(scans[scans["split"].isin(["train", "val", "test"])])
    targets = task.targets(inside)
    everybody = np.ones(len(inside), bool)
    fewest = min(task.persons_per_class(inside["person"].to_numpy(), targets, everybody))
    for folds in () if count(scans) else (5, 4, 3):
        if fewest >= folds and fewest - 2 * -(-fewest // folds) >= task.min_subjects:
            return f"ingest.splits {{mode: folds, folds: {folds}}} would do: it tests everybody"
    return ""


def unjudged(task: Labelled, scans: pd.DataFrame) -> str | None:
    """Return why evaluate will give no numbers for familiar sites, in words; None if it will."""
    return task.gap(scans, {"test": JUDGED})


def gap(task: Labelled, scans: pd.DataFrame) -> str | None:
    """Return why these scans cannot serve a task, in words; None if they can.

    Of a cross-validation ``min_subjects`` are needed to train on in every fold, and to test over
    all folds; to validate on, one of every class.
    """
    if not count(scans):
        return task.gap(scans)
    fewest = {"test": task.min_subjects} | (
        {"ood": task.min_subjects} if (scans["split"] == "ood").any() else {}
    )
    if reason := task.gap(scans, fewest):
        return reason
    for number in range(1, count(scans) + 1):
        reason = task.gap(in_fold(scans, number), {"train": task.min_subjects, "val": 1})
        if reason:
            return f"in fold {number}, {reason}"
    return None
