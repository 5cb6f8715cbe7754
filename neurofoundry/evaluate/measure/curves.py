"""Curves behind the figures, as tables that other tools can draw: nothing in them names a scan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_curve

from neurofoundry.evaluate.inputs import Evidence, Model
from neurofoundry.evaluate.measure.performance import gap, thresholds_of
from neurofoundry.stats.intervals import LEVEL, resample
from neurofoundry.stats.metrics import Values, calibration_bins, sensitivity_at

ROC = ["task", "init", "split", "seed", "class", "threshold", "fpr", "tpr"]
ROC_BANDS = ["task", "init", "split", "fpr", "tpr", "low", "high"]
CONFUSION = ["task", "init", "split", "true", "predicted", "scans"]
RELIABILITY = ["task", "init", "split", "stated", "observed", "scans"]
PREDICTED = ["task", "init", "split", "true", "predicted"]

FALSE_ALARMS = np.linspace(0, 1, 101)
RESAMPLES = 500
"""Of persons, behind the band of a curve: it is drawn, and no conclusion rests on it."""


def roc(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """ROC curves with all labels; with several classes, of each against the rest."""
    parts = []
    for evidence, model, split, rows in _judged(tasks, "roc", min_subjects):
        classes = evidence.task.classes
        for seed, outputs in zip(model.seeds, model.outputs, strict=True):
            for index in [1] if len(classes) == 2 else range(len(classes)):
                alarms, hits, least = roc_curve(
                    evidence.targets[rows] == index, outputs[rows, index]
                )
                # The curve begins where nothing is called, at an infinite threshold.
                part = pd.DataFrame({"threshold": least.clip(max=1), "fpr": alarms, "tpr": hits})
                head = {"task": evidence.name, "init": model.name, "split": split}
                parts.append(part.assign(**head, seed=seed, **{"class": classes[index]}))
    return pd.concat(parts)[ROC] if parts else pd.DataFrame(columns=ROC)


def roc_bands(tasks: Sequence[Evidence], *, min_subjects: int, seed: int) -> pd.DataFrame:
    """Mean ROC curves over seeds and classes, with the middle 95 % of resamples of the persons."""
    parts = []
    for evidence, model, split, rows in _judged(tasks, "roc", min_subjects):
        targets, outputs = evidence.targets[rows], model.outputs[:, rows]
        classes = len(evidence.task.classes)
        drawn = [
            (targets == index, each[:, index])
            for each in outputs
            for index in ([1] if classes == 2 else range(classes))
        ]

        def mean(weights: Values, drawn: Sequence[tuple[np.ndarray, Values]] = drawn) -> Values:
            found = [sensitivity_at(*each, weights, FALSE_ALARMS) for each in drawn]
            return np.asarray(np.mean(found, axis=0))

        persons = evidence.scans["person"].to_numpy()[rows]
        samples = resample(mean, persons, count=RESAMPLES, seed=seed, key=split)
        tail = (1 - LEVEL) / 2
        low, high = np.nanquantile(samples[:, 1:], [tail, 1 - tail], axis=1)
        part = pd.DataFrame({"fpr": FALSE_ALARMS, "tpr": samples[:, 0], "low": low, "high": high})
        parts.append(part.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(parts)[ROC_BANDS] if parts else pd.DataFrame(columns=ROC_BANDS)


def confusion(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """How many scans of each class are called what; seeds pooled.

    Two classes: at the threshold carried over from val, or 0.5 where val gives none. More: as the
    most probable class.
    """
    parts = []
    for evidence, model, split, rows in _judged(tasks, "confusion", min_subjects):
        classes = evidence.task.classes
        truth = np.tile(evidence.targets[rows].astype(int), len(model.seeds))
        called = np.concatenate(
            [
                outputs[rows].argmax(axis=1)
                if threshold is None
                else (outputs[rows, 1] >= threshold).astype(int)
                for outputs, threshold in zip(
                    model.outputs, thresholds_of(evidence)[model], strict=True
                )
            ]
        )
        counts = confusion_matrix(truth, called, labels=range(len(classes)))
        pairs = itertools.product(classes, classes)
        part = pd.DataFrame(pairs, columns=["true", "predicted"]).assign(scans=counts.ravel())
        parts.append(part.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(parts)[CONFUSION] if parts else pd.DataFrame(columns=CONFUSION)


def reliability(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """Stated probability (of the call, with several classes) and observed share; seeds pooled."""
    parts = []
    for evidence, model, split, rows in _judged(tasks, "reliability", min_subjects):
        targets = np.tile(evidence.targets[rows], len(model.seeds))
        outputs = np.concatenate(model.outputs[:, rows])
        if len(evidence.task.classes) == 2:
            stated, right = outputs[:, 1], targets == 1
        else:
            stated, right = outputs.max(axis=1), targets == outputs.argmax(axis=1)
        points = pd.DataFrame({"stated": stated, "observed": right.astype(float)})
        by_bin = points.groupby(calibration_bins(stated))
        part = by_bin.mean().assign(scans=by_bin.size())
        parts.append(part.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(parts)[RELIABILITY] if parts else pd.DataFrame(columns=RELIABILITY)


def predicted_against_true(tasks: Sequence[Evidence], *, min_subjects: int) -> pd.DataFrame:
    """Outputs of regressions with all labels, mean over seeds, by the truth."""
    parts = []
    for evidence, model, split, rows in _judged(tasks, "predicted_vs_true", min_subjects):
        outputs = model.outputs[:, rows].mean(axis=0)
        part = pd.DataFrame({"true": evidence.targets[rows], "predicted": outputs})
        part = part.sort_values(["true", "predicted"])
        parts.append(part.assign(task=evidence.name, init=model.name, split=split))
    return pd.concat(parts)[PREDICTED] if parts else pd.DataFrame(columns=PREDICTED)


def _judged(
    tasks: Sequence[Evidence], curve: str, min_subjects: int
) -> Iterator[tuple[Evidence, Model, str, np.ndarray]]:
    for evidence in tasks:
        for model in evidence.models:
            if curve not in evidence.task.curves or model.is_floor or not model.seeds:
                continue
            if model.fraction != evidence.fraction:
                continue
            for split in ("test", "ood"):
                if gap(evidence, split, min_subjects=min_subjects) is None:
                    yield evidence, model, split, (evidence.scans["split"] == split).to_numpy()
