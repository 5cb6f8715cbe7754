"""What can be reached without a network: every model must beat it to have a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry.evaluate.inputs import Model
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

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
    return task.constant_baseline, f"floor-{'-'.join(_covariates(task))}", MORPHOMETRY


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
    same = task.constant(targets, len(scans))
    if isinstance(same, str):
        return tuple(Model(name, 1.0, (), np.empty(0), same) for name in names(task))
    model = task.linear_model(iterations=1000).fit(_known(task, train, train), targets)
    told = task.predict(model, _known(task, scans, train))
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
    model: Any = make_pipeline(StandardScaler(), task.linear_model())
    if folds >= 2:
        dealt = list(task.splitter(folds).split(targets, targets, groups))
        choices = task.penalties(PENALTIES)
        model = GridSearchCV(model, choices, scoring=task.scoring, cv=dealt)
    model.fit(sizes.loc[train["scan_id"]].to_numpy(), targets)
    said = task.predict(model, sizes.loc[scans["scan_id"]].to_numpy())
    return Model(MORPHOMETRY, 1.0, (0,), said[None])
