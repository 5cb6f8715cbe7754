"""What can be reached without a network: every model must beat it to have a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry import morphometry
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.inputs import Inputs, site_of
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Classification, Regression, Task
from neurofoundry.tasks.base import BASELINE

MORPHOMETRY = f"{BASELINE}morphometry"

TITLES = {
    Classification.constant_baseline: "the same answer for everybody",
    Regression.constant_baseline: "the same answer for everybody",
    f"{BASELINE}age-sex-site": "age, sex and site alone",
    f"{BASELINE}sex-site": "sex and site alone",
    f"{BASELINE}age-site": "age and site alone",
    f"{BASELINE}age-sex": "age and sex alone",
    MORPHOMETRY: "simple brain volumes",
}
"""What each baseline is, in a sentence: "it beats …"."""

Dealt = list[tuple[NDArray[np.int_], NDArray[np.int_]]]
"""Rows to learn from and rows to judge, of each fold."""

PENALTIES = np.logspace(-1, 3, 5)
"""Of the squared weights of standardized features: to choose from."""


def names(task: Task) -> tuple[str, ...]:
    """Return the names of the baselines of a task: the same answer for everybody; age, sex and site
    alone (without what the task predicts); and simple morphometry."""
    return task.constant_baseline, f"{BASELINE}{'-'.join(_covariates(task))}", MORPHOMETRY


def _covariates(task: Task) -> list[str]:
    return [name for name in ("age", "sex", "site") if name != task.column]


def add(tasks: Sequence[Evidence], inputs: Inputs, volumes: Volumes) -> tuple[Evidence, ...]:
    """Return the evidence with the baselines of each task beside its models, fitted to the training
    scans."""
    sizes = _morphometry_of(tasks, inputs, volumes)
    return tuple(
        replace(
            each,
            models=(*each.models, *_pooled(each, inputs, sizes)),
        )
        for each in tasks
    )


def _pooled(evidence: Evidence, inputs: Inputs, sizes: pd.DataFrame) -> list[Model]:
    """Return the baselines of a task, which predict each scan as its model was made: from the
    training scans of the same fold."""
    runs: list[list[Model]] = []
    for repeat in range(len(evidence.made_by)):
        whole: list[Model] = []
        for fold, rows in evidence.by_fold(repeat):
            made = fit(evidence.task, inputs.train(fold), evidence.scans[rows], sizes)
            if made[0].reason:
                return list(made)
            whole = whole or [_empty(each, len(rows)) for each in made]
            for each, of_fold in zip(whole, made, strict=True):
                each.outputs[:, rows] = of_fold.outputs
        if evidence.fold_of is not None:
            # A fold with few of a class leaves many to train on: prevalences that go by folds would
            # rank its persons, and the wrong way round.
            constant = whole[0].outputs
            constant[:] = constant.mean(axis=1, keepdims=True)
        runs.append(whole)
    return [
        replace(
            of_repeats[0],
            seeds=of_repeats[0].seeds * len(runs),
            outputs=np.concatenate([each.outputs for each in of_repeats]),
        )
        for of_repeats in zip(*runs, strict=True)
    ]


def _empty(model: Model, scans: int) -> Model:
    return replace(model, outputs=np.empty((1, scans, *model.outputs.shape[2:])))


def _morphometry_of(tasks: Sequence[Evidence], inputs: Inputs, volumes: Volumes) -> pd.DataFrame:
    """Return the morphometry of all scans that a baseline learns from or predicts, by scan_id."""
    wanted = [
        table["scan_id"]
        for each in tasks
        for table in (each.task.select(inputs.train()), each.scans)
    ]
    scan_ids = sorted(set(pd.concat(wanted))) if wanted else []
    sizes = morphometry.measure(volumes, scan_ids) if scan_ids else None
    return pd.DataFrame(sizes, index=scan_ids, columns=list(morphometry.SIZES))


def fit(
    task: Task, train: pd.DataFrame, scans: pd.DataFrame, sizes: pd.DataFrame
) -> tuple[Model, ...]:
    """Return the baselines of a task, learned from ``train`` and predicting ``scans``.

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
    model = task.linear_model(iterations=1000).fit(_age_sex_site(task, train, train), targets)
    from_covariates = task.predict(model, _age_sex_site(task, scans, train))
    return (
        Model(constant, 1.0, (0,), same[None]),
        Model(covariates, 1.0, (0,), from_covariates[None]),
        _morphometry(task, train, scans, sizes),
    )


def _age_sex_site(task: Task, scans: pd.DataFrame, train: pd.DataFrame) -> Values:
    """Return standardized age, sex and sites (scans, columns), without what the task predicts.

    A missing age becomes the mean, a missing sex halfway between the two.
    """
    columns = []
    if task.column != "age":
        spread = train["age"].std(ddof=0)
        age = (scans["age"] - train["age"].mean()) / (spread if spread > 0 else 1.0)
        columns.append(age.fillna(0).to_numpy(float))
    if task.column != "sex":
        columns.append(scans["sex"].map({"F": -0.5, "M": 0.5}).astype(float).fillna(0).to_numpy())
    if task.column != "site":
        own = pd.Series(site_of(scans))
        shares = pd.Series(site_of(train)).value_counts(normalize=True)
        known = own.isin(shares.index).to_numpy()
        # Less the share of each site: an unseen site is then the average of the others.
        columns += [
            np.where(known, (own == site) - share, 0) for site, share in shares.sort_index().items()
        ]
    return np.column_stack(columns)


def _morphometry(
    task: Task, train: pd.DataFrame, scans: pd.DataFrame, sizes: pd.DataFrame
) -> Model:
    """Return a regression on ``sizes``."""
    learned, new = (sizes.loc[each["scan_id"]].to_numpy() for each in (train, scans))
    outputs = regress(task, train, learned, new, deal(task, train))
    return Model(MORPHOMETRY, 1.0, (0,), outputs[None])


def deal(task: Task, train: pd.DataFrame) -> Dealt:
    """Return five folds by person, or as many as a class has persons; none where that is one."""
    targets, groups = task.targets(train), train["person"].to_numpy()
    persons = [len(set(groups[targets == index])) for index in range(len(task.classes))]
    folds = min(5, len(set(groups)), *persons)
    return list(task.splitter(folds).split(targets, targets, groups)) if folds >= 2 else []


def regress(task: Task, train: pd.DataFrame, learned: Values, new: Values, dealt: Dealt) -> Values:
    """Return what a linear model of a task says of scans with the measures ``new`` (scans,
    columns), after learning from ``train`` and its measures; its penalty is chosen by
    cross-validation in the folds ``dealt``."""
    targets = task.targets(train)
    model: Any = make_pipeline(StandardScaler(), task.linear_model())
    if dealt:
        choices = task.penalties(PENALTIES)
        model = GridSearchCV(model, choices, scoring=task.scoring, cv=dealt)
    with config_context(skip_parameter_validation=True):  # ours, and checked up to 26 times
        model.fit(learned, targets)
    predicted: Values = task.predict(model, new)
    return predicted
