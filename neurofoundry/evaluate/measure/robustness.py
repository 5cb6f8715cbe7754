"""What a model says of the same person on another day or scanner, and how well a scanner can be
read from what an encoder says of a scan."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.errors import DataError
from neurofoundry.evaluate.inputs import Evidence, Inputs
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import intervals, metrics
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

REPEATS = ["task", "init", "sites", "metric", "value", "low", "high", "subjects", "reason"]
SITES = [
    *("encoder", "value", "low", "high", "chance", "from_age_sex_labels", "sites", "subjects"),
    "reason",
]

PER_SITE = 10
"""Persons that a site must have to be told from others; it takes two such sites."""

COMPONENTS = 30
"""Principal components of the features that the site is read from."""


def repeats(tasks: Sequence[Evidence], *, params: EvaluateParams) -> pd.DataFrame:
    """REPEATS: ICC(2,1), absolute agreement, and ICC(3,1), consistency, of the outputs for the
    first two scans of everybody in test and ood who has several; at one site and at two.

    Of a classification the outputs are log odds of the class of interest; seeds are averaged.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        if len(evidence.task.classes) > 2:
            continue  # no one number to agree on
        first, second = first_two(evidence.scans)
        site = (evidence.scans["dataset"] + "\0" + evidence.scans["site"]).to_numpy()
        same = site[first] == site[second]
        for model in evidence.models:
            if model.fraction != evidence.fraction or model.is_floor or not model.seeds:
                continue
            outputs = evidence.task.on_one_scale(model.outputs)
            for sites, chosen in (("one", same), ("two", ~same)):
                pairs = np.stack([outputs[first[chosen]], outputs[second[chosen]]], axis=1)
                for name, found in _agreement(pairs, params.min_subjects).items():
                    rows.append(
                        {
                            **{"task": evidence.name, "init": model.name, "sites": sites},
                            **{"metric": name, "subjects": len(pairs), "value": found.value},
                            **{"low": found.low, "high": found.high, "reason": found.reason},
                        }
                    )
    return pd.DataFrame(rows, columns=REPEATS).astype(
        dict.fromkeys(("value", "low", "high"), float)
    )


def first_two(scans: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first two scans in test and ood of each person with several, by session."""
    scans = scans.assign(position=np.arange(len(scans)))
    scans = scans[scans["split"].isin(["test", "ood"])].sort_values(["session", "scan_id"])
    turn = scans.groupby("person").cumcount()
    several = scans["person"].isin(scans["person"][turn == 1])
    first = scans[several & (turn == 0)].set_index("person")["position"].sort_index()
    second = scans[turn == 1].set_index("person")["position"].sort_index()
    return first.to_numpy(int), second.to_numpy(int)


def _agreement(pairs: Values, fewest: int) -> dict[str, Estimate]:
    names = ("icc_agreement", "icc_consistency")
    if len(pairs) < fewest:
        reason = f"{len(pairs)} subjects were scanned twice so, {fewest} are needed"
        return {name: Estimate(None, None, None, reason) for name in names}
    found = intervals.icc_estimates(pairs, reason="the outputs are all the same")
    return dict(zip(names, found, strict=True))


def read_features(models: Path) -> dict[str, tuple[np.ndarray, Values]]:
    """Encoder to scan ids and features (scans, features), from models/features; empty if absent."""
    found = {}
    for path in sorted((models / "features").glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as content:
                found[path.stem] = (content["scan_id"], content["features"].astype(np.float64))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not features ({error}). Run finetune again.") from error
    return found


def sites(
    features: Mapping[str, tuple[np.ndarray, Values]],
    inputs: Inputs,
    tasks: Mapping[str, Task],
    *,
    params: EvaluateParams,
    seed: int,
) -> pd.DataFrame:
    """SITES: how well a logistic regression reads the site from each encoder's features.

    Balanced accuracy on held-out persons (five folds by person) of sites with PER_SITE persons or
    more. ``from_age_sex_labels`` is what age, sex and the labels of the tasks alone give away:
    where it lies far above chance, sites differ in whom they scanned, and reading the site is no
    sign of the scanner alone.
    """
    scans = inputs.scans[inputs.scans["usable"] & inputs.scans["split"].isin(HELD_OUT)]
    for name, (scan_ids, _) in features.items():
        if unknown := set(scan_ids) - set(scans["scan_id"]):
            raise DataError(
                f"models/features/{name}.npz: {len(unknown)} scans are not among the usable scans "
                "of val, test and ood. The models belong to another cohort: run finetune again."
            )
        scans = scans[scans["scan_id"].isin(scan_ids)]  # those that take part in a task
    place = scans["dataset"] + "\0" + scans["site"]
    persons = scans.groupby(place)["person"].nunique()
    scans = scans[place.isin(persons.index[persons >= PER_SITE])]
    places = (scans["dataset"] + "\0" + scans["site"]).to_numpy(str)
    count = len(set(places))
    known = _known(scans, tasks)
    rows = []
    for name, (scan_ids, values) in features.items():
        head = {"encoder": name, "sites": count, "subjects": scans["person"].nunique()}
        if count < 2:
            reason = f"{count} sites with {PER_SITE} subjects or more were held out, 2 are needed"
            rows.append({**head, "reason": reason})
            continue
        order = pd.Series(np.arange(len(scan_ids)), scan_ids).reindex(scans["scan_id"])
        people = scans["person"].to_numpy()
        right = _read_site(values[order.to_numpy(int)], places, people)
        estimate = _recall(right, places, people, params.bootstraps, seed)
        ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        by_known = _recall(_read_site(known, places, people), places, people, 1, seed).value
        rows.append(
            {**head, **ends, "chance": 1 / count, "from_age_sex_labels": by_known, "reason": None}
        )
    numbers = ("value", "low", "high", "chance", "from_age_sex_labels")
    return pd.DataFrame(rows, columns=SITES).astype(dict.fromkeys(numbers, float))


def _read_site(values: Values, place: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Whether the site of each scan is read rightly by a model that has not seen the person."""
    components = min(COMPONENTS, values.shape[1], len(values) // 2)
    model = make_pipeline(
        StandardScaler(),
        PCA(components, svd_solver="full"),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000),
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    right: np.ndarray = cross_val_predict(model, values, place, groups=people, cv=folds) == place
    return right


def _recall(
    right: np.ndarray, place: np.ndarray, people: np.ndarray, bootstraps: int, seed: int
) -> Estimate:
    names = sorted(set(place))
    samples = intervals.resample(
        lambda w: np.mean([metrics.share(right, w, among=place == name) for name in names], axis=0),
        people,
        count=bootstraps,
        seed=seed,
        key="sites",
    )
    if bootstraps == 1:
        return Estimate(float(samples[0]), None, None)
    persons = [len(set(people[place == name])) for name in names]
    return intervals.estimate(samples, "balanced_accuracy", persons)


def _known(scans: pd.DataFrame, tasks: Mapping[str, Task]) -> Values:
    """Age, sex and labels as numbers; what is missing stands in the middle, and says so."""
    columns = [scans["age"], scans["sex"].map({"F": 0.0, "M": 1.0}).astype(float)]
    for task in tasks.values():
        if task.column not in ("age", "sex", "site") and task.column in scans:
            chosen = task.select(scans)
            columns.append(
                pd.Series(task.targets(chosen), chosen.index, dtype=float).reindex(scans.index)
            )
    table = np.column_stack([column.to_numpy(float) for column in columns])
    missing = np.isnan(table)
    with np.errstate(invalid="ignore"):
        middle = np.nan_to_num(
            np.where(missing, 0, table).sum(0) / np.maximum(1, (~missing).sum(0))
        )
    return np.hstack([np.where(missing, middle, table), missing.astype(float)])
