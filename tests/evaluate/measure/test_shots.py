"""What features tell with few examples a class, and by their nearest neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cosine

from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.inputs import Features, Inputs
from neurofoundry.evaluate.measure import shots
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.tasks import Classification, Regression

ILL = Classification(column="diagnosis", classes=("CN", "AD"))
AGE = Regression(column="age")
PARAMS = EvaluateParams(reference="scratch")


def cohort(train: int = 60, test: int = 80) -> pd.DataFrame:
    number = np.arange(train + test)
    names = [f"s{each:03d}" for each in number]
    return pd.DataFrame(
        {
            "scan_id": names,
            "person": names,
            "dataset": "a",
            "site": "x",
            "split": np.where(number < train, "train", "test"),
            "usable": True,
            "diagnosis": np.where(number % 2, "AD", "CN"),
            "age": 50.0 + number % 30,
        }
    )


def known(scans: pd.DataFrame, column: str, noise: float = 1.0) -> dict[str, Features]:
    """Features of which one tells the label, with noise."""
    random = np.random.default_rng(0)
    values = random.normal(0, noise, (len(scans), 8))
    values[:, 3] += 3 * (scans[column] == "AD") if column == "diagnosis" else scans[column] / 10
    return {"simclr": Features(scans["scan_id"].to_numpy(str), values)}


def measured(
    scans: pd.DataFrame, features: dict[str, Features], task: Classification | Regression = ILL
) -> pd.DataFrame:
    tested = scans[scans["split"] == "test"]
    evidence = Evidence("task", task, tested, task.targets(tested), ())
    inputs = Inputs(scans, pd.DataFrame(), (), pd.DataFrame(), {})
    return shots.measure([evidence], features, inputs, params=PARAMS, seed=0)


def test_more_examples_tell_more() -> None:
    table = measured(cohort(), known(cohort(), "diagnosis"))
    assert list(zip(table["probe"], table["shots"].fillna(0), strict=True)) == [
        ("linear", 1), ("linear", 5), ("linear", 10), ("nearest", 0),
    ]  # fmt: skip
    one, five, ten, nearest = table["value"]
    assert 0.6 < one < five < ten
    assert nearest > 0.9
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    draws = table["draw_sd"]
    assert draws[0] > draws[2] > 0


def test_features_without_the_label_tell_nothing() -> None:
    scans = cohort(test=400)
    table = measured(scans, known(scans.assign(diagnosis="CN"), "diagnosis"))
    assert table["value"].to_numpy() == pytest.approx(0.5, abs=0.08)


def test_a_value_is_that_of_the_nearest() -> None:
    scans = cohort()
    table = measured(scans, known(scans, "age", noise=0.1), AGE)
    assert table["probe"].tolist() == ["nearest"]
    spread = scans["age"][scans["split"] == "test"]
    assert table["value"][0] < 0.6 * (spread - spread.mean()).abs().mean()


def test_the_vote_is_that_of_a_loop() -> None:
    random = np.random.default_rng(1)
    x, tested = random.normal(size=(40, 5)), random.normal(size=(6, 5))
    y = random.integers(0, 3, 40).astype(float)
    found = shots.nearest(x, y, tested, classes=3)
    for scan, votes in zip(tested, found, strict=True):
        near = sorted(range(40), key=lambda k: cosine(scan, x[k]))[: shots.NEIGHBOURS]
        weight = {k: np.exp((1 - cosine(scan, x[k])) / shots.TEMPERATURE) for k in near}
        expected = [sum(w for k, w in weight.items() if y[k] == c) for c in range(3)]
        assert votes == pytest.approx(np.array(expected) / sum(weight.values()), rel=1e-4)


def test_nobody_is_told_by_their_own_fold() -> None:
    """Each person's features are like no other's: only who has learned from them would know."""
    scans = cohort(train=0, test=90)
    number = np.arange(90)
    scans = scans.assign(fold=(number // 2 % 3 + 1).astype(str))
    scans["fold"] += "/3"
    fold_of = (number // 2 % 3 + 1)[None]
    features = {"simclr": Features(scans["scan_id"].to_numpy(str), np.eye(90))}
    evidence = Evidence("task", ILL, scans, ILL.targets(scans), (), fold_of)
    inputs = Inputs(scans, pd.DataFrame(), (), pd.DataFrame(), {})
    table = shots.measure([evidence], features, inputs, params=PARAMS, seed=0)
    assert (table["value"] < 0.65).all()
    alone = replace(evidence, fold_of=None)
    leaking = replace(inputs, scans=scans.assign(split="train"))
    assert shots.measure([alone], features, leaking, params=PARAMS, seed=0)["value"][3] > 0.9


def test_too_few_to_draw_from_are_named() -> None:
    table = measured(cohort(train=12), known(cohort(train=12), "diagnosis"))
    ten = table[table["shots"] == 10].iloc[0]
    assert ten["reason"] == "6 training subjects with diagnosis=CN, 10 are needed"
    held_out = known(cohort(), "diagnosis")["simclr"].without(cohort()["scan_id"][:60])
    reasons = measured(cohort(), {"simclr": held_out})["reason"]
    assert set(reasons) == {"finetune has kept no features of training scans"}
