"""Curves behind the figures, as tables that other tools can draw: nothing in them names a scan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_curve

from neurofoundry.contracts.cohort import TESTED
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure.performance import shortage, thresholds_of
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats.intervals import LEVEL, resample
from neurofoundry.stats.metrics import Values, calibration_bins, sensitivity_at

ROC = ["task", "init", "split", "seed", "class", "threshold", "fpr", "tpr"]
ROC_BANDS = ["task", "init", "split", "fpr", "tpr", "low", "high"]
CONFUSION = ["task", "init", "split", "true", "predicted", "scans"]
RELIABILITY = ["task", "init", "split", "stated", "observed", "scans"]
PREDICTED = ["task", "init", "split", "true", "predicted"]

FALSE_ALARMS = np.linspace(0, 1, 101)
RESAMPLES = 200
"""Of persons, behind the band of a curve: it is drawn, and no conclusion rests on it."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The tables behind the figures: initializations with all labels, on test and ood."""

    roc: pd.DataFrame
    """ROC: every threshold of each seed."""
    bands: pd.DataFrame
    """ROC_BANDS: means over seeds and classes."""
    reliability: pd.DataFrame
    """RELIABILITY: a row a bin."""
    predicted: pd.DataFrame
    """PREDICTED: a row a scan."""
    confusion: pd.DataFrame
    """CONFUSION: a row a pair of classes."""


def measure(tasks: Sequence[Evidence], *, params: EvaluateParams, seed: int) -> Curves:
    """Measure all curves of all tasks."""
    fewest = params.min_subjects
    return Curves(
        roc=roc(tasks, min_subjects=fewest),
        bands=roc_bands(tasks, min_subjects=fewest, seed=seed),
        reliability=reliability(tasks, min_subjects=fewest),
        predicted=predicted_against_true(tasks, min_subjects=fewest),
        confusion=confusion(tasks, min_subjects=fewest),
    )


def roc(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """ROC: one curve a seed; with more than two classes, one of each against the rest."""
    tables = []
    for evidence, model, split, rows in _drawn(tasks, "roc", min_subjects):
        classes = evidence.task.classes
        for seed, outputs in zip(model.seeds, model.outputs, strict=True):
            for index in [1] if len(classes) == 2 else range(len(classes)):
                alarms, hits, least = roc_curve(
                    evidence.targets[rows] == index, outputs[rows, index]
                )
                # The curve begins where nothing is called, at an infinite threshold.
                table = pd.DataFrame({"threshold": least.clip(max=1), "fpr": alarms, "tpr": hits})
                head = {"task": evidence.name, "init": model.name, "split": split}
                tables.append(table.assign(**head, seed=seed, **{"class": classes[index]}))
    return pd.concat(tables)[ROC] if tables else pd.DataFrame(columns=ROC)


def roc_bands(tasks: Sequence[Evidence], *, min_subjects: int, seed: int) -> pd.DataFrame:
    """ROC_BANDS: mean curves over seeds and classes, with the middle 95 % of resamples of the
    persons."""
    tables = []
    for evidence, model, split, rows in _drawn(tasks, "roc", min_subjects):
        targets, outputs = evidence.targets[rows], model.outputs[:, rows]
        classes = len(evidence.task.classes)
        one_against_rest = [
            (targets == index, each[:, index])
            for each in outputs
            for index in ([1] if classes == 2 else range(classes))
        ]
        statistic = partial(_mean_curve, one_against_rest)
        persons = evidence.persons[rows]
        samples = resample(statistic, persons, count=RESAMPLES, seed=seed, key=split)
        tail = (1 - LEVEL) / 2
        low, high = np.nanquantile(samples[:, 1:], [tail, 1 - tail], axis=1)
        table = pd.DataFrame({"fpr": FALSE_ALARMS, "tpr": samples[:, 0], "low": low, "high": high})
        tables.append(table.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(tables)[ROC_BANDS] if tables else pd.DataFrame(columns=ROC_BANDS)


def _mean_curve(one_against_rest: Sequence[tuple[NDArray[Any], Values]], weights: Values) -> Values:
    """Return the mean of ROC curves, of labels and scores, at FALSE_ALARMS: (shares, resamples)."""
    curves = [sensitivity_at(*each, weights, FALSE_ALARMS) for each in one_against_rest]
    return np.asarray(np.mean(curves, axis=0))


def confusion(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """CONFUSION: how many scans of each class are called what; seeds pooled.

    Two classes: at the threshold carried over from val, or 0.5 where val gives none. More: as the
    most probable class.
    """
    tables = []
    for evidence, model, split, rows in _drawn(tasks, "confusion", min_subjects):
        classes = evidence.task.classes
        truth = np.tile(evidence.targets[rows].astype(int), len(model.seeds))
        called = np.concatenate(
            [
                outputs[rows].argmax(axis=1)
                if threshold is None
                else (outputs[rows, 1] >= threshold[rows]).astype(int)
                for outputs, threshold in zip(
                    model.outputs, thresholds_of(evidence)[model], strict=True
                )
            ]
        )
        counts = confusion_matrix(truth, called, labels=range(len(classes)))
        pairs = itertools.product(classes, classes)
        table = pd.DataFrame(pairs, columns=["true", "predicted"]).assign(scans=counts.ravel())
        tables.append(table.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(tables)[CONFUSION] if tables else pd.DataFrame(columns=CONFUSION)


def reliability(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """RELIABILITY: stated probability (of the call, with more than two classes) and observed share;
    seeds pooled."""
    tables = []
    for evidence, model, split, rows in _drawn(tasks, "reliability", min_subjects):
        targets = np.tile(evidence.targets[rows], len(model.seeds))
        outputs = np.concatenate(model.outputs[:, rows])
        if len(evidence.task.classes) == 2:
            stated, right = outputs[:, 1], targets == 1
        else:
            stated, right = outputs.max(axis=1), targets == outputs.argmax(axis=1)
        points = pd.DataFrame({"stated": stated, "observed": right.astype(float)})
        by_bin = points.groupby(calibration_bins(stated))
        table = by_bin.mean().assign(scans=by_bin.size())
        tables.append(table.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(tables)[RELIABILITY] if tables else pd.DataFrame(columns=RELIABILITY)


def predicted_against_true(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """PREDICTED: outputs of regressions, mean over seeds, by the truth."""
    tables = []
    for evidence, model, split, rows in _drawn(tasks, "predicted_vs_true", min_subjects):
        outputs = model.outputs[:, rows].mean(axis=0)
        table = pd.DataFrame({"true": evidence.targets[rows], "predicted": outputs})
        table = table.sort_values(["true", "predicted"])
        tables.append(table.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(tables)[PREDICTED] if tables else pd.DataFrame(columns=PREDICTED)


def _drawn(
    tasks: Sequence[Evidence], curve: str, min_subjects: int
) -> Iterator[tuple[Evidence, Model, str, NDArray[np.bool_]]]:
    """Yield the models of the tasks that have a curve, a split with enough subjects, and its
    rows."""
    for evidence in tasks:
        for model in evidence.trained if curve in evidence.task.curves else ():
            for split in TESTED if model.seeds else ():
                if shortage(evidence, split, min_subjects=min_subjects) is None:
                    yield evidence, model, split, evidence.inside(split)
