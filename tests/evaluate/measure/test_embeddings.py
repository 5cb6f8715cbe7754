from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.inputs import Features, Inputs
from neurofoundry.evaluate.measure import embeddings
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import intervals

PARAMS = EvaluateParams(reference="m", bootstraps=200)


def scans(persons: int, *, single: int = 0) -> pd.DataFrame:
    """Persons with three scans each, the first two at two sites, and some with one."""
    names = [f"p{i:02d}" for i in range(persons) for _ in range(3)]
    names += [f"q{i:02d}" for i in range(single)]
    sessions = [str(s) for _ in range(persons) for s in (1, 2, 3)] + ["1"] * single
    return pd.DataFrame(
        {
            "scan_id": [f"{name}_{s}" for name, s in zip(names, sessions, strict=True)],
            "person": names,
            "session": sessions,
            "dataset": "d",
            "site": [f"site-{s}" for s in sessions],
            "split": "test",
            "usable": True,
        }
    )


def features(table: pd.DataFrame, *, noise: float, count: int = 12) -> np.ndarray:
    """What is a person's own has variance 1."""
    random = np.random.default_rng(0)
    own = random.normal(size=(table["person"].nunique(), count))
    return own[pd.factorize(table["person"])[0]] + random.normal(0, noise, (len(table), count))


def measured(table: pd.DataFrame, values: np.ndarray, **params: int) -> pd.DataFrame:
    measures = embeddings.measure(
        {"e": Features(table["scan_id"].to_numpy(str), values)},
        Inputs(table, pd.DataFrame(), (), pd.DataFrame(), {}),
        params=PARAMS.model_copy(update=params),
    )
    return measures.query("sites == 'two'").set_index("metric")


def test_the_numbers_are_those_of_naive_loops():
    table = scans(7, single=4).sample(frac=1, random_state=0, ignore_index=True)
    values = features(table, noise=0.8) * np.arange(1, 13)
    measures = measured(table, values)
    x = (values - values.mean(0)) / values.std(0)
    at = {name: index for index, name in enumerate(table["scan_id"])}
    pairs = [(at[f"p{i:02d}_1"], at[f"p{i:02d}_2"]) for i in range(7)]
    hits, chances, within, between = 0, [], [], []
    for i, pair in enumerate(pairs):
        within.append(np.sqrt(((x[pair[0]] - x[pair[1]]) ** 2).sum()))
        for scan, partner in (pair, pair[::-1]):
            others = [k for k in at.values() if table["person"][k] != f"p{i:02d}"]
            far = [np.sqrt(((x[scan] - x[k]) ** 2).sum()) for k in others]
            hits += np.sqrt(((x[scan] - x[partner]) ** 2).sum()) < min(far)
            chances.append(1 / (1 + len(others)))
            for j, other in enumerate(pairs):
                between += [np.sqrt(((x[scan] - x[k]) ** 2).sum()) for k in other if j != i]
    iccs = []
    for k in range(12):
        ratings = np.array([[x[a, k], x[b, k]] for a, b in pairs])
        iccs.append(intervals.icc_estimates(ratings)[1].value)
    assert 0 < hits < 14
    assert measures.loc["identification", "value"] == pytest.approx(hits / 14)
    assert measures.loc["identification", "chance"] == pytest.approx(np.mean(chances))
    ratio = np.mean(within) / np.mean(between)
    assert measures.loc["distance_ratio", "value"] == pytest.approx(ratio)
    assert measures.loc["icc_consistency", "value"] == pytest.approx(np.median(iccs))
    assert (measures["low"] < measures["value"]).all()
    assert (measures["value"] < measures["high"]).all()
    assert (measures["subjects"] == 7).all()


def test_the_ratio_of_a_resample_is_that_of_its_persons_one_by_one():
    random = np.random.default_rng(0)
    within, between = embeddings.distances(*random.normal(size=(2, 4, 3)))
    drawn = [0, 0, 2, 3]
    apart = [between[i, j] for i in drawn for j in drawn if i != j]
    ratio = embeddings.distance_ratio(within, between, np.array([[2.0, 0, 1, 1]]))
    assert ratio[0] == pytest.approx(within[drawn].mean() / np.mean(apart))


def test_features_that_are_noise_are_at_chance_and_those_of_the_person_are_perfect():
    table = scans(30)
    noise = measured(table, np.random.default_rng(1).normal(size=(90, 40)))
    assert noise.loc["identification", "value"] < 0.1
    assert noise.loc["distance_ratio", "low"] < 1 < noise.loc["distance_ratio", "high"]
    assert noise.loc["icc_consistency", "low"] < 0 < noise.loc["icc_consistency", "high"]
    telling = measured(table, features(table, noise=0.1, count=40))
    assert telling.loc["identification", "value"] == 1
    # Wilson's for 30 of 30.
    assert telling.loc["identification", "low"] == pytest.approx(30 / (30 + 1.96**2), abs=1e-4)
    assert telling.loc["icc_consistency", "value"] == pytest.approx(1 / 1.01, abs=0.01)


def test_few_persons_or_features_that_never_vary_give_a_reason():
    table = scans(4)
    assert set(measured(table, features(table, noise=1))["reason"]) == {
        "4 subjects scanned twice so, 5 are needed"
    }
    constant = measured(table, np.ones((12, 3)), min_subjects=3)
    assert set(constant["reason"]) == {"the features are the same for all scans"}


def test_five_persons_who_were_scanned_twice_are_enough():
    table = scans(5)
    assert measured(table, features(table, noise=1))["value"].notna().all()


def test_a_scan_of_somebody_else_that_is_as_near_is_no_hit():
    x = np.array([[0.0], [2.0], [-2.0], [9.0]])
    person = np.array(["p", "p", "q", "q"])
    hits, _ = embeddings.identified(x, person, np.array([0]), np.array([1]))
    # From the first scan the other of p is as far as that of q; from the second it is nearer.
    assert hits.tolist() == [0.5]
