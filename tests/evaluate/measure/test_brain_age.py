from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import brain_age
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.tasks import Classification, Regression

PARAMS = EvaluateParams(reference="scratch")


def tasks(seed: int, older: float, persons: int = 160) -> list[Evidence]:
    """The ill are older than the healthy, their brains look ``older`` years older still, and the
    model shrinks ages to their mean."""
    random = np.random.default_rng(seed)
    person = np.arange(persons).repeat(random.integers(1, 3, persons))
    ill = (person % 4 == 0).astype(float)
    age = 60 + 12 * ill + 8 * random.normal(size=persons)[person]
    outputs = 0.5 * age + 30 + older * ill + 4 * random.normal(size=persons)[person]
    scans = pd.DataFrame(
        {
            "scan_id": [f"s{number}" for number in range(len(person))],
            "person": person.astype(str),
            "split": np.array(["train", "val", "test", "test"])[person // 4 % 4],
            "age": age,
            "diagnosis": np.where(ill == 1, "AD", "CN"),
        }
    )
    held = (scans["split"] != "train").to_numpy()
    regression = Regression(column="age")
    disease = Classification(column="diagnosis", classes=("CN", "AD"))
    model = Model("scratch", 1.0, (0,), outputs[None, held])
    own = Evidence("age", regression, scans[held], age[held], (model,))
    inputs = SimpleNamespace(train=lambda: scans[~held])
    return [own, Evidence("alzheimers", disease, scans[held], ill[held], ()), inputs]


def measured(seed: int, older: float) -> pd.DataFrame:
    own, other, inputs = tasks(seed, older)
    table = brain_age.measure([own, other], inputs, params=PARAMS)
    assert len(table) == 3
    return table.set_index("corrected")


@pytest.mark.parametrize("older", [0.0, 5.0])
def test_the_gap_is_found_once_regression_to_the_mean_is_corrected(older):
    found = [measured(seed, older) for seed in range(60)]
    mean = np.mean([each["value"] for each in found], axis=0)
    # As it is, the ill look 6 years younger because they are 12 years older.
    assert mean[0] == pytest.approx(older - 6, abs=0.7)
    assert mean[1] == pytest.approx(older, abs=0.7)
    assert mean[2] == pytest.approx(older, abs=0.7)
    for corrected in ("age",):
        held = [
            each.loc[corrected, "low"] <= older <= each.loc[corrected, "high"] for each in found
        ]
        assert np.mean(held) > 0.88


def test_with_age_as_covariate_it_is_the_least_squares_coefficient():
    own, _, _ = tasks(1, 5.0)
    row = measured(1, 5.0).loc["age"]
    inside = own.inside("test")
    ill = (own.scans["diagnosis"] == "AD").to_numpy(float)[inside]
    gap = own.models[0].outputs[0][inside] - own.targets[inside]
    design = np.column_stack([np.ones(inside.sum()), ill, own.targets[inside]])
    assert row["value"] == pytest.approx(np.linalg.lstsq(design, gap, rcond=None)[0][1])
    assert row["learned_from_ill"] == 10
    assert row["subjects_ill"] + row["subjects_healthy"] == own.scans["person"][inside].nunique()


def test_without_healthy_validation_only_the_line_has_a_reason():
    own, other, inputs = tasks(0, 5.0)
    keep = ~(own.inside("val") & (own.scans["diagnosis"] == "CN").to_numpy())
    model = Model("scratch", 1.0, (0,), own.models[0].outputs[:, keep])
    own = Evidence("age", own.task, own.scans[keep], own.targets[keep], (model,))
    table = brain_age.measure([own, other], inputs, params=PARAMS).set_index("corrected")
    assert "fewer than 5 healthy scans" in table.loc["val", "reason"]
    assert table.loc[["no", "age"], "low"].notna().all()
