"""What a model predicts for the same person on another day or scanner, and how well a scanner can
be read from what an encoder makes of a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry.contracts.cohort import HELD_OUT, TESTED
from neurofoundry.errors import DataError, counted
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.inputs import Features, Inputs, site_of
from neurofoundry.evaluate.measure.baselines import Dealt
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals, metrics
from neurofoundry.stats.intervals import Estimate, Jackknife
from neurofoundry.stats.metrics import Values
from neurofoundry.stats.person_folds import PersonFolds
from neurofoundry.tasks import Task

REPEATS = ["task", "init", "sites", "metric", "value", "low", "high", "subjects", "reason"]
SITES = [
    *("encoder", "value", "low", "high", "chance", "from_age_sex_labels", "sites", "subjects"),
    "reason",
]

PER_SITE = 10
"""Persons that a site must have to be told from others; it takes two such sites."""

COMPONENTS = 30
"""Principal components of the features that the site (with harmonization a task, too) is read
from."""

Positions = NDArray[np.int_]


def repeats(tasks: Sequence[Evidence], *, params: EvaluateParams) -> pd.DataFrame:
    """REPEATS: ICC(2,1), absolute agreement, and ICC(3,1), consistency, of the outputs for the
    first two scans of everybody in test and ood who has several; at one site and at two.

    For a classification the outputs are log odds of the class of interest; seeds are averaged.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        if len(evidence.task.classes) > 2:
            continue  # no one number to agree on
        by_sites = pairs_by_sites(evidence.scans)
        for model in evidence.trained:
            if not model.seeds:
                continue
            outputs = evidence.task.on_one_scale(model.outputs)
            for sites, (first, second) in by_sites.items():
                pairs = np.stack([outputs[first], outputs[second]], axis=1)
                head = {"task": evidence.name, "init": model.name, "sites": sites}
                for name, estimate in _agreement(pairs, params.min_subjects).items():
                    row = {"metric": name, "subjects": len(pairs), **cells(estimate)}
                    rows.append({**head, **row})
    return table_of(rows, REPEATS)


def pairs_by_sites(scans: pd.DataFrame) -> dict[str, tuple[Positions, Positions]]:
    """Return the positions of `first_two`, of the pairs from ``one`` site and from ``two``."""
    first, second = first_two(scans)
    site = site_of(scans)
    same = site[first] == site[second]
    return {"one": (first[same], second[same]), "two": (first[~same], second[~same])}


def first_two(scans: pd.DataFrame) -> tuple[Positions, Positions]:
    """Return the positions of the first two scans in test and ood, by session, of each person with
    several."""
    scans = scans.assign(position=np.arange(len(scans)))
    scans = scans[scans["split"].isin(TESTED)].sort_values(["session", "scan_id"])
    turn = scans.groupby("person").cumcount()
    several = scans["person"].isin(scans["person"][turn == 1])
    first = scans[several & (turn == 0)].set_index("person")["position"].sort_index()
    second = scans[turn == 1].set_index("person")["position"].sort_index()
    return first.to_numpy(int), second.to_numpy(int)


def _agreement(pairs: Values, fewest: int) -> dict[str, Estimate]:
    names = ("icc_agreement", "icc_consistency")
    if len(pairs) < fewest:
        reason = f"{counted(len(pairs), 'subject')} scanned twice so, {fewest} are needed"
        return {name: Estimate(None, None, None, reason) for name in names}
    estimates = intervals.icc_estimates(pairs, reason="the outputs are all the same")
    return dict(zip(names, estimates, strict=True))


def sites(
    features: Mapping[str, Features],
    inputs: Inputs,
    tasks: Mapping[str, Task],
) -> pd.DataFrame:
    """SITES: how well a logistic regression reads the site from each encoder's features.

    Balanced accuracy on held-out persons (five folds by person) of sites with PER_SITE persons or
    more. ``from_age_sex_labels`` is what age, sex and the labels of the tasks alone give away:
    where it lies far above chance, sites differ in whom they scanned, and reading the site is no
    sign of the scanner alone. Raises DataError on features of another cohort.
    """
    if not features:
        return table_of([], SITES)
    scans = scans_of_sites(_scans_with_features(features, inputs))
    site, people = site_of(scans), scans["person"].to_numpy()
    count = len(set(site))
    head: dict[str, object] = {"sites": count, "subjects": scans["person"].nunique()}
    if count < 2:
        reason = f"{counted(count, 'site')} with {PER_SITE} subjects or more held out, 2 are needed"
        return table_of([{"encoder": n, **head, "reason": reason} for n in features], SITES)
    dealt = deal(site, people)
    from_others = read_site(_age_sex_labels(scans, tasks), site, dealt)
    head["chance"] = 1 / count
    head["from_age_sex_labels"] = _recalled(from_others, site, people).value
    rows = []
    for name, of_encoder in features.items():
        right = read_site(of_encoder.of(scans["scan_id"]), site, dealt)
        estimate = _recalled(right, site, people)
        rows.append({"encoder": name, **head, **cells(estimate), "reason": None})
    return table_of(rows, SITES)


def _scans_with_features(features: Mapping[str, Features], inputs: Inputs) -> pd.DataFrame:
    """Return the held-out scans that take part in a task: those that every encoder has seen."""
    usable = inputs.scans[inputs.scans["usable"]]
    scans = usable[usable["split"].isin(HELD_OUT)]
    for name, of_encoder in features.items():
        if unknown := set(of_encoder.scan_ids) - set(usable["scan_id"]):
            raise DataError(
                f"models/features/{name}.npz: {len(unknown)} scans are not among the usable scans "
                "of this cohort. The models belong to another one: run finetune again."
            )
        scans = scans[scans["scan_id"].isin(of_encoder.scan_ids)]
    return scans


def scans_of_sites(scans: pd.DataFrame) -> pd.DataFrame:
    """Return the scans of sites with PER_SITE persons or more."""
    site = pd.Series(site_of(scans), scans.index)
    persons = scans.groupby(site)["person"].nunique()
    return scans[site.isin(persons.index[persons >= PER_SITE])]


def deal(site: NDArray[Any], people: NDArray[Any]) -> Dealt:
    """Return five folds by person, each with its share of every site."""
    return list(PersonFolds(5).split(site, site, people))


def read_site(values: Values, site: NDArray[Any], dealt: Dealt) -> NDArray[np.bool_]:
    """Return whether the site of each scan is read rightly by a model that has not seen the
    person."""
    model = make_pipeline(
        StandardScaler(),
        principal(values, COMPONENTS),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000),
    )
    # Single precision halves the time, and 30 components do not show it.
    single = np.asarray(values, np.float32)
    with config_context(skip_parameter_validation=True):  # ours, and the same for every fold
        right: NDArray[np.bool_] = cross_val_predict(model, single, site, cv=dealt) == site
    return right


def principal(values: NDArray[np.floating], most: int) -> PCA:
    """Return a projection of features (scans, features) on their principal components."""
    scans, features = values.shape
    # The same components, ten times as fast where there are more scans than features.
    solver = "covariance_eigh" if scans > 2 * features else "full"
    return PCA(min(most, features, scans // 2), svd_solver=solver)


def recall(right: NDArray[np.bool_], site: NDArray[Any], people: NDArray[Any]) -> Jackknife:
    """Return the balanced accuracy: the mean over sites of the share of scans read rightly."""
    names, index = np.unique(site, return_inverse=True)
    return intervals.jackknife(
        lambda w: np.mean([metrics.share(right, w, among=site == name) for name in names], axis=0),
        people,
        index,
    )


def persons_per_site(site: NDArray[Any], people: NDArray[Any]) -> list[int]:
    """Return the numbers of persons of the sites, by name."""
    return [len(set(people[site == name])) for name in np.unique(site)]


def _recalled(right: NDArray[np.bool_], site: NDArray[Any], people: NDArray[Any]) -> Estimate:
    persons = persons_per_site(site, people)
    return intervals.estimate(recall(right, site, people), "balanced_accuracy", persons)


def _age_sex_labels(scans: pd.DataFrame, tasks: Mapping[str, Task]) -> Values:
    """Return age, sex and labels as numbers (scans, columns); a missing value becomes the mean, and
    a further column says so."""
    columns = [scans["age"], scans["sex"].map({"F": 0.0, "M": 1.0}).astype(float)]
    for task in tasks.values():
        if task.column not in ("age", "sex", "site") and task.column in scans:
            chosen = task.select(scans)
            labels = pd.Series(task.targets(chosen), chosen.index, dtype=float)
            columns.append(labels.reindex(scans.index))
    table = np.column_stack([column.to_numpy(float) for column in columns])
    missing = np.isnan(table)
    with np.errstate(invalid="ignore"):
        known = np.where(missing, 0, table)
        mean = np.nan_to_num(known.sum(0) / np.maximum(1, (~missing).sum(0)))
    return np.hstack([np.where(missing, mean, table), missing.astype(float)])
