from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import sets
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.tasks import Classification, Regression

PARAMS = EvaluateParams(reference="scratch")
TASKS = {
    "diagnosis": Classification(column="diagnosis", classes=("CN", "AD")),
    "age": Regression(column="age"),
}


def evidence(name: str, persons: int, seed: int = 0) -> Evidence:
    """As many persons in val as in test, with one or two scans each."""
    random = np.random.default_rng(seed)
    person = np.arange(2 * persons).repeat(random.integers(1, 3, 2 * persons))
    label = (person % 3 == 0).astype(float)
    score = 2 * label + random.normal(size=2 * persons)[person]
    p = 1 / (1 + np.exp(1 - score))
    targets, outputs = label, np.stack([1 - p, p], axis=-1)
    if name == "age":
        targets, outputs = 60 + 10 * label, 60 + 10 * score
    scans = pd.DataFrame(
        {
            "scan_id": [f"s{number}" for number in range(len(person))],
            "person": person.astype(str),
            "split": np.where(person < persons, "val", "test"),
        }
    )
    model = Model("scratch", 1.0, (0,), outputs[None])
    return Evidence(name, TASKS[name], scans, targets, (model,))


@pytest.mark.parametrize("name", TASKS)
def test_sets_hold_the_truth_as_often_as_promised(name):
    shares = []
    for seed in range(40):
        table = sets.measure([evidence(name, 60, seed)], params=PARAMS)
        rows = table[table["measure"] == "coverage"].set_index("group")["value"]
        assert len(rows) == (3 if name == "diagnosis" else 1)
        shares.append(rows.to_numpy())
    # On average over who validates and who is tested: of everybody, and of each class.
    assert (np.mean(shares, axis=0) >= 0.88).all()
    assert (np.mean(shares, axis=0) <= 0.97).all()


def test_the_limit_is_of_validation_alone_and_counted_by_hand():
    drawn = evidence("age", 60)
    table = sets.measure([drawn], params=PARAMS).set_index("measure")
    rows = drawn.inside("val")
    errors = pd.DataFrame(
        {
            "error": np.abs(drawn.models[0].outputs[0] - drawn.targets)[rows],
            "person": drawn.persons[rows],
        }
    ).sort_values("error")
    weight = 1 / errors.groupby("person")["error"].transform("size")
    half = errors["error"][(weight.cumsum() / 61 >= 0.9 - 1e-9)].iloc[0]
    assert table.loc["half_width", "value"] == pytest.approx(half)
    assert table.loc["coverage", "calibrated_on"] == 60
    assert table.loc["coverage", "true_low"] < 0.9 < table.loc["coverage", "true_high"]


def test_too_few_who_validate_are_a_reason():
    table = sets.measure([evidence("diagnosis", 24)], params=PARAMS)
    ill = table[table["group"] == "AD"]
    assert ill["value"].isna().all()
    assert set(ill["reason"]) == {"8 validation subjects with AD, 9 are needed for a limit"}
    assert table[table["group"] == "CN"]["value"].notna().all()
    assert table[table["group"] == "everybody"]["value"].isna().all()
