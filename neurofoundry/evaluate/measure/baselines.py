"""What can be reached without a network: every model must beat it to have a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry.evaluate.inputs import Model
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks.base import Task

MORPHOMETRY = "floor-morphometry"

TITLES = {
    "floor-prevalence": "the same answer for everybody",
    "floor-mean": "the same answer for everybody",
    "floor-age-sex-site": "age, sex and site alone",
    "floor-sex-site": "sex and site alone",
    "floor-age-site": "age and site alone",
    "floor-age-sex": "age and sex alone",
    MORPHOMETRY: "simple brain volumes",
}
"""What each floor is, in a sentence: "it beats …"."""

PENALTIES = np.logspace(-1, 3, 5)
"""Of the squared weights of standardized features: to choose from."""


def names(task: Task) -> tuple[str, ...]:
    """The floors of a task: the same answer for everybody, age, sex and site alone (but for what
    the task is to predict), and simple morphometry."""
    constant = "floor-prevalence" if task.kind == "classification" else "floor-mean"
    return constant, f"floor-{'-'.join(_covariates(task))}", MORPHOMETRY


def _covariates(task: Task) -> list[str]:
    return [name for name in ("age", "sex", "site") if name != task.column]


def fit(
    task: Task, train: pd.DataFrame, scans: pd.DataFrame, sizes: pd.DataFrame
) -> tuple[Model, ...]:
    """The floors of a task, learned from ``train`` and predicting ``scans``.

    The first gives everybody the prevalence (or mean) of ``train``; the second is a logistic (or
    ridge) regression on age, sex and site, where a site that training has not seen is an average
    one; the third one on ``sizes``, the morphometry of all these scans by scan_id.
    """
    train = task.select(train)
    constant, covariates, _ = names(task)
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
        known = LogisticRegression(max_iter=1000).fit(_known(task, train, train), targets)
        told = known.predict_proba(_known(task, scans, train))
    else:
        same = np.full(len(scans), targets.mean())
        known = Ridge().fit(_known(task, train, train), targets)
        told = known.predict(_known(task, scans, train))
    return (
        Model(constant, 1.0, (0,), same[None]),
        Model(covariates, 1.0, (0,), told[None]),
        _morphometry(task, train, targets, scans, sizes),
    )


def _known(task: Task, scans: pd.DataFrame, train: pd.DataFrame) -> Values:
    """Standardized age, sex and sites; who lacks an age or a sex stands in the middle."""
    columns = []
    if task.column != "age":
        spread = train["age"].std(ddof=0)
        age = (scans["age"] - train["age"].mean()) / (spread if spread > 0 else 1.0)
        columns.append(age.fillna(0).to_numpy(float))
    if task.column != "sex":
        columns.append(scans["sex"].map({"F": -0.5, "M": 0.5}).astype(float).fillna(0).to_numpy())
    if task.column != "site":
        own = scans["dataset"] + "\0" + scans["site"]
        places = (train["dataset"] + "\0" + train["site"]).value_counts(normalize=True)
        known = own.isin(places.index).to_numpy()
        # Less the share of each site: an unseen site is then the average of the others.
        columns += [
            np.where(known, (own == place) - share, 0)
            for place, share in places.sort_index().items()
        ]
    return np.column_stack(columns)


def _morphometry(
    task: Task, train: pd.DataFrame, targets: Values, scans: pd.DataFrame, sizes: pd.DataFrame
) -> Model:
    """A regression on ``sizes``, its penalty chosen by cross-validation over training persons."""
    groups = train["person"].to_numpy()
    people = [len(set(groups[targets == index])) for index in range(len(task.classes))]
    folds = min(5, len(set(groups)), *people)
    splitter: Any
    if task.kind == "classification":
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        choices = {"logisticregression__C": 1 / PENALTIES}
        scoring, splitter = "neg_log_loss", StratifiedGroupKFold
    else:
        model = make_pipeline(StandardScaler(), Ridge())
        choices = {"ridge__alpha": PENALTIES}
        scoring, splitter = "neg_mean_squared_error", GroupKFold
    if folds >= 2:
        dealt = splitter(folds, shuffle=True, random_state=0).split(targets, targets, groups)
        model = GridSearchCV(model, choices, scoring=scoring, cv=list(dealt))
    model.fit(sizes.loc[train["scan_id"]].to_numpy(), targets)
    features = sizes.loc[scans["scan_id"]].to_numpy()
    if task.kind == "classification":
        return Model(MORPHOMETRY, 1.0, (0,), model.predict_proba(features)[None])
    return Model(MORPHOMETRY, 1.0, (0,), model.predict(features)[None])
