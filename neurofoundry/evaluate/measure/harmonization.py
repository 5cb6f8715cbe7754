"""What ComBat changes: how well the site can be read from features, and what they are worth for the
tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.inputs import Features, Inputs, site_of
from neurofoundry.evaluate.measure import baselines, performance, robustness
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import ENDS, STATES, cells, table_of
from neurofoundry.stats import combat, comparisons, intervals
from neurofoundry.stats.combat import Combat
from neurofoundry.stats.metrics import Values

HARMONIZATION = [
    *("encoder", "question", "split", "metric"),
    *(f"{state}_{end}" for state in STATES for end in ENDS),
    *("p", "known", "chance", "subjects", "reason"),
]

SITE = "site"
"""In the column ``question``: which site a scan is from. Otherwise the name of a task."""

PER_SITE = 5
"""Training scans that a site must have to be known to ComBat."""

NO_FEATURES = "finetune has kept no features of training scans: run it again"


def measure(
    features: Mapping[str, Features],
    tasks: Sequence[Evidence],
    inputs: Inputs,
    *,
    params: EvaluateParams,
    seed: int,
) -> pd.DataFrame:
    """HARMONIZATION: a row an encoder, question and split: the balanced accuracy with which the
    site is read, and the primary metric of a linear model of each task, from the features of the
    frozen encoder as they are and after ComBat; and the paired difference.

    ComBat is fitted to the training scans and keeps ``params.combat``, of a task without what that
    predicts; labels take no part. ``known`` is the share of scans whose site had PER_SITE training
    scans: others are left as they are, and no site to be read. Empty without ``params.combat``.
    """
    rows: list[dict[str, object]] = []
    for name, of_encoder in features.items() if params.combat is not None else ():
        if (
            not inputs.train(min(1, folds.count(inputs.scans)))["scan_id"]
            .isin(of_encoder.scan_ids)
            .all()
        ):
            rows.append({"encoder": name, "question": SITE, "reason": NO_FEATURES})
            continue
        rows.append({"encoder": name, **_of_site(of_encoder, inputs, params)})
        for evidence in tasks:
            found = _of_task(of_encoder, evidence, inputs, params, seed)
            rows += [{"encoder": name, **row} for row in found]
    return table_of(rows, HARMONIZATION)


def _of_site(features: Features, inputs: Inputs, params: EvaluateParams) -> dict[str, object]:
    """Return how well the site of held-out scans is read, among those that ComBat knows."""
    scans = inputs.scans[inputs.scans["usable"] & inputs.scans["split"].isin(HELD_OUT)]
    scans = robustness.scans_of_sites(scans[scans["scan_id"].isin(features.scan_ids)])
    values, known = _harmonized(features, scans, inputs, params.combat or ())
    scans = scans[known]
    site, people = site_of(scans), scans["person"].to_numpy()
    head: dict[str, object] = {"question": SITE, "metric": "balanced_accuracy"}
    head["subjects"] = len(set(people))
    if (count := len(set(site))) < 2:
        return {**head, "reason": f"{counted(count, 'known site')} to tell apart, 2 are needed"}
    dealt = robustness.deal(site, people)
    as_is, moved = (
        robustness.recall(robustness.read_site(each, site, dealt), site, people)
        for each in (features.of(scans["scan_id"]), values[known])
    )
    persons = robustness.persons_per_site(site, people)
    states = [intervals.estimate(each, "balanced_accuracy", persons) for each in (as_is, moved)]
    change = comparisons.difference(moved, as_is, "balanced_accuracy", persons)
    head |= {"known": 1.0, "chance": 1 / len(persons), "p": change.p}
    return {**head, **_cells(*map(cells, (*states, change))), "reason": change.reason}


def _cells(*states: Mapping[str, Any] | None) -> dict[str, object]:
    """Return the cells of as-is, harmonized and difference."""
    return {
        f"{name}_{end}": state[end] if state else None
        for name, state in zip(STATES, states, strict=True)
        for end in ENDS
    }


def _harmonized(
    features: Features, scans: pd.DataFrame, inputs: Inputs, covariates: Sequence[str]
) -> tuple[Values, NDArray[np.bool_]]:
    """Return the features of held-out scans after a ComBat that has not seen their persons, and
    whether their site is known to it."""
    values, known = features.of(scans["scan_id"]).copy(), np.zeros(len(scans), bool)
    for fold in range(1, folds.places(inputs.scans)[1] + 1) or [0]:
        split = folds.in_fold(scans, fold)["split"]
        # Of a cross-validation: who is tested in this fold; new sites in the first.
        rows = split.eq("test") | (split.eq("ood") & (fold <= 1)) | (split.eq("val") & (fold == 0))
        train = inputs.train(fold)
        if fitted := fit(features, train, covariates):
            chosen = scans[rows]
            values[rows] = _state(features, chosen, fitted, train, covariates)
            known[rows] = np.isin(site_of(chosen), fitted.sites)
    return values, known


def fit(features: Features, train: pd.DataFrame, covariates: Sequence[str]) -> Combat | None:
    """Return ComBat fitted to the sites with PER_SITE of these scans or more; None where there are
    not two."""
    site = pd.Series(site_of(train), train.index)
    large = train[site.map(site.value_counts()) >= PER_SITE]
    if large.groupby(["dataset", "site"]).ngroups < 2:
        return None
    columns = _columns(large, train, covariates)
    return combat.fit(features.of(large["scan_id"]), site_of(large), columns)


def _state(
    features: Features,
    scans: pd.DataFrame,
    state: Combat | None,
    train: pd.DataFrame,
    covariates: Sequence[str],
) -> Values:
    """Return the features of scans, harmonized or (None) as they are."""
    values = features.of(scans["scan_id"])
    if state is None:
        return values
    return state.apply(values, site_of(scans), _columns(scans, train, covariates))


def _columns(scans: pd.DataFrame, train: pd.DataFrame, covariates: Sequence[str]) -> Values:
    """Return covariates (scans, columns) about those of the training scans; a missing age is their
    mean, a missing sex halfway between the two."""
    known = {
        "age": scans["age"] - train["age"].mean(),
        "sex": scans["sex"].map({"F": -0.5, "M": 0.5}).astype(float),
    }
    columns: Values = np.zeros((len(scans), len(covariates)))
    for place, name in enumerate(covariates):
        columns[:, place] = known[name].fillna(0)
    return columns


def _of_task(
    features: Features, evidence: Evidence, inputs: Inputs, params: EvaluateParams, seed: int
) -> Iterator[dict[str, object]]:
    """Yield what a linear model of a task reaches on test and ood, with either features."""
    covariates = [name for name in params.combat or () if name != evidence.task.column]
    columns = [len(evidence.task.classes)] if evidence.task.classes else []
    outputs = np.empty((2, 1, len(evidence.targets), *columns))
    known = np.zeros(len(evidence.targets), bool)
    head = {"question": evidence.name, "metric": evidence.task.primary}
    for fold, rows in evidence.by_fold(0):
        train, chosen = evidence.task.select(inputs.train(fold)), evidence.scans[rows]
        fitted = fit(features, train, covariates)
        if fitted is None or isinstance(
            evidence.task.constant(evidence.task.targets(train), 1), str
        ):
            why = f"train has fewer than two sites of {PER_SITE} scans, or lacks a class"
            yield {**head, "reason": why}
            return
        known[rows] = np.isin(site_of(chosen), fitted.sites)
        dealt = baselines.deal(evidence.task, train)
        for place, state in enumerate((None, fitted)):
            learned, new = (
                _state(features, each, state, train, covariates).astype(np.float32)
                for each in (train, chosen)
            )
            project = robustness.principal(learned, robustness.COMPONENTS).fit(learned)
            learned, new = project.transform(learned), project.transform(new)
            outputs[place, 0, rows] = baselines.regress(evidence.task, train, learned, new, dealt)
    made_by = None if evidence.fold_of is None else evidence.fold_of[:1]
    models = tuple(
        Model(name, 1.0, (0,), each) for name, each in zip(STATES[:2], outputs, strict=True)
    )
    evidence = replace(evidence, models=models, fold_of=made_by)
    for row in _compared(evidence, params, seed):
        inside = evidence.inside(str(row["split"]))
        subjects = len(set(evidence.persons[inside]))
        yield {**head, **row, "known": float(known[inside].mean()), "subjects": subjects}


def _compared(evidence: Evidence, params: EvaluateParams, seed: int) -> Iterator[dict[str, object]]:
    plain, moved = evidence.models
    thresholds = performance.thresholds_of(evidence)
    for split in evidence.splits:
        samples = performance.resample(evidence, split, thresholds, params=params, seed=seed)
        rows = performance.values(evidence, split, samples, thresholds, params=params)
        changes = performance.compare(evidence, split, samples, [(moved, plain)])
        as_is, harmonized, change = (
            next(row for row in each if row["metric"] == evidence.task.primary)
            for each in (rows, rows[len(rows) // 2 :], changes)
        )
        found = _cells(as_is, harmonized, change)
        yield {"split": split, **found, "p": change["p"], "reason": change["reason"]}
