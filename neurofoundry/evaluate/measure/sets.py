"""How often a set of classes, or an interval of values, holds the truth, as it promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure.performance import shortage
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import conformal
from neurofoundry.tasks.conformal import COVERAGE

SETS = [
    *("task", "init", "split", "group", "measure", "value", "low", "high", "aimed"),
    *("calibrated_on", "true_low", "true_high", "subjects", "reason"),
]

EVERYBODY = "everybody"


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams) -> pd.DataFrame:
    """SETS: a row a task, initialization with all labels, split, group and measure, means over
    seeds.

    Limits are learned from the val persons alone, of a classification for each class from those who
    have it, so that the promise holds for the ill as for the healthy. ``coverage``: how often the
    set holds the truth, of everybody and of each class; ``decided``: how often it holds one class
    alone; ``half_width`` of the intervals of a regression. ``calibrated_on`` is the smallest number
    of val persons behind a limit, ``true_low`` and ``true_high`` what the coverage of limits from
    so many may be.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        for model in evidence.trained if evidence.inside("val").any() else ():
            if model.seeds:
                held, decided, persons = _held(evidence, model)
                for split in evidence.splits:
                    if not shortage(evidence, split, min_subjects=params.min_subjects):
                        head = {"task": evidence.name, "init": model.name, "split": split}
                        of_split = _rows(evidence, split, held, decided, persons)
                        rows += [{**head, "aimed": COVERAGE, **row} for row in of_split]
    return table_of(rows, SETS)


def _held(evidence: Evidence, model: Model) -> tuple[Values, Values, list[int]]:
    """Return whether the set of each scan holds the truth, and whether it holds one class alone (of
    a regression its half-width), both (scans,), means over seeds; and of how many val persons the
    limit of each class is."""
    of_seeds = [_of_seed(evidence, number, each) for number, each in enumerate(model.outputs)]
    held, decided, persons = zip(*of_seeds, strict=True)
    return np.mean(held, axis=0), np.mean(decided, axis=0), list(np.min(persons, axis=0))


def _of_seed(evidence: Evidence, number: int, outputs: Values) -> tuple[Values, Values, list[int]]:
    held, decided = np.zeros(len(outputs)), np.zeros(len(outputs))
    fewest: list[list[int]] = []
    for _, made in evidence.by_fold(number):
        val = made & evidence.inside("val")
        targets, persons = evidence.targets, evidence.persons
        if evidence.task.classes:
            groups = [val & (targets == k) for k in range(len(evidence.task.classes))]
            limits = [
                conformal.limit(1 - outputs[each, k], persons[each])
                for k, each in enumerate(groups)
            ]
            inside = conformal.sets(outputs[made], np.array(limits))
            held[made] = inside[np.arange(len(inside)), targets[made].astype(int)]
            decided[made] = inside.sum(axis=1) == 1
        else:
            groups = [val]
            half = conformal.limit(np.abs(outputs[val] - targets[val]), persons[val])
            held[made], decided[made] = np.abs(outputs[made] - targets[made]) <= half, half
        fewest.append([len(set(persons[each])) for each in groups])
    return held, decided, list(np.min(fewest, axis=0))


def _rows(
    evidence: Evidence, split: str, held: Values, decided: Values, calibrated: list[int]
) -> Iterator[dict[str, object]]:
    for group, inside, behind in _groups(evidence, split, calibrated):
        subjects = len(set(evidence.persons[inside]))
        low, high = conformal.spread(behind)
        head = {"group": group, "calibrated_on": behind, "subjects": subjects}
        head |= {"true_low": low, "true_high": high}
        found = {"coverage": _share(evidence, split, held, inside)}
        if evidence.task.classes:
            found["decided"] = _share(evidence, split, decided, inside)
        else:
            found["half_width"] = Estimate(float(decided[inside].mean()), None, None)
        if behind < conformal.fewest():
            whose = (
                f" with {_scarcest(evidence, group, calibrated)}" if evidence.task.classes else ""
            )
            who = counted(behind, "validation subject")
            why = f"{who}{whose}, {conformal.fewest()} are needed for a limit"
            found = dict.fromkeys(found, Estimate(None, None, None, why))
        for name, estimate in found.items():
            yield {**head, "measure": name, **cells(estimate)}


def _scarcest(evidence: Evidence, group: str, calibrated: list[int]) -> str:
    """Return the class that a group's limit lacks persons of."""
    return evidence.task.classes[int(np.argmin(calibrated))] if group == EVERYBODY else group


def _groups(
    evidence: Evidence, split: str, calibrated: list[int]
) -> Iterator[tuple[str, NDArray[np.bool_], int]]:
    whole = evidence.inside(split)
    yield EVERYBODY, whole, min(calibrated)
    for index, name in enumerate(evidence.task.classes):
        yield name, whole & (evidence.targets == index), calibrated[index]


def _share(evidence: Evidence, split: str, hits: Values, inside: NDArray[np.bool_]) -> Estimate:
    """Return the share of hits among some scans of a split, with the interval of a proportion."""
    mean, error = intervals.mean_with_error(hits[inside], evidence.persons[inside])
    widening = evidence.widening(split)
    counted = max(1, round(len(set(evidence.persons[inside])) / widening**2))
    return intervals.with_error(float(mean), widening * float(error), "sensitivity", [counted])
