"""What can be reached without looking at a scan: every model must beat it to have a point."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge

from neurofoundry.cohort import Task
from neurofoundry.evaluate.inputs import Model
from neurofoundry.metrics import Values

AGE_SEX = "floor-age-sex"


def names(task: Task) -> tuple[str, ...]:
    """The floors of a task: the same answer for everybody, and age and sex alone.

    The second is missing where the task is to predict age or sex.
    """
    constant = "floor-prevalence" if task.kind == "classification" else "floor-mean"
    return (constant,) if task.column in ("age", "sex") else (constant, AGE_SEX)


def fit(task: Task, train: pd.DataFrame, scans: pd.DataFrame) -> tuple[Model, ...]:
    """The floors of a task, learned from ``train`` and predicting ``scans``.

    The first gives everybody the prevalence (or mean) of ``train``; the second is a logistic (or
    ridge) regression.
    """
    train = task.select(train)
    constant, *covariates = names(task)
    targets = task.targets(train)
    if task.kind == "classification":
        counts = np.bincount(targets.astype(int), minlength=len(task.classes))
        gap = "" if counts.all() else "no training scan of some class"
    else:
        gap = "" if len(train) >= 2 else "fewer than two training scans"
    if gap:
        return tuple(Model(name, 1.0, (), np.empty(0), gap) for name in names(task))
    if task.kind == "classification":
        same = np.tile(counts / counts.sum(), (len(scans), 1))
    else:
        same = np.full(len(scans), targets.mean())
    floors = [Model(constant, 1.0, (0,), same[None])]
    if covariates:
        floors.append(_age_and_sex(task, train, targets, scans))
    return tuple(floors)


def _age_and_sex(task: Task, train: pd.DataFrame, targets: Values, scans: pd.DataFrame) -> Model:
    if train[["age", "sex"]].isna().all(axis=None):
        return Model(AGE_SEX, 1.0, (), np.empty(0), "no training scan has an age or a sex")
    if task.kind == "classification":
        classifier = LogisticRegression(max_iter=1000).fit(_features(train, train), targets)
        outputs = classifier.predict_proba(_features(scans, train))
    else:
        outputs = Ridge().fit(_features(train, train), targets).predict(_features(scans, train))
    return Model(AGE_SEX, 1.0, (0,), outputs[None])


def _features(scans: pd.DataFrame, train: pd.DataFrame) -> Values:
    """Standardized age and sex; who lacks one stands in the middle."""
    spread = train["age"].std(ddof=0)
    age = (scans["age"] - train["age"].mean()) / (spread if spread > 0 else 1.0)
    sex = scans["sex"].map({"F": -0.5, "M": 0.5}).astype(float)
    return np.column_stack([age.fillna(0), sex.fillna(0)])
