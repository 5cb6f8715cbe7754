"""Calibration, and its correction, against scikit-learn and by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import calibration
from neurofoundry.evaluate.params import EvaluateParams
from tests.evaluate.conftest import TASKS


def evidence(kind: str, *, scans: int = 900) -> Evidence:
    """Half val, half test: risks stated too extremely and too high, or ages drawn to the mean."""
    random = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "scan_id": [f"s{i:04d}" for i in range(scans)],
            "person": [f"p{i // 2}" for i in range(scans)],
            "split": np.where(np.arange(scans) < scans // 2, "val", "test"),
        }
    )
    if kind == "age":
        targets = random.uniform(40, 90, scans)
        outputs = 65 + 0.5 * (targets - 65) + random.normal(0, 4, scans) + 3
        return Evidence(
            "age", TASKS["age"], table, targets, (Model("m", 1.0, (0,), outputs[None]),)
        )
    logit = random.normal(0, 1, scans)
    targets = (random.random(scans) < special.expit(logit)).astype(float)
    p = special.expit(2 * logit + 1)
    model = Model("m", 1.0, (0,), np.stack([1 - p, p], axis=1)[None])
    return Evidence("sex", TASKS["sex"], table, targets, (model,))


@pytest.mark.parametrize("kind", ["sex", "age"])
def test_a_correction_learned_from_validation_mends_the_test_subjects(kind):
    params = EvaluateParams(reference="m", bootstraps=200)
    table = calibration.measure([evidence(kind)], params=params, seed=0)
    values = table.set_index(["metric", "corrected"])
    assert set(table["split"]) == {"test"}
    if kind == "age":
        assert values.loc[("bias_slope", "no"), "high"] < -0.4
        slope = values.loc[("bias_slope", "val")]
        assert slope["low"] < 0 < slope["high"]
        # Undoing the pull to the mean enlarges the noise: the correction is no free gain.
        assert values.loc[("mae", "val"), "value"] < 9
    else:
        assert values.loc[("calibration_slope", "no"), "high"] < 1
        assert values.loc[("calibration_intercept", "no"), "high"] < 0
        for name, ideal in (("calibration_slope", 1), ("calibration_intercept", 0)):
            # Not exact: the validation subjects are a sample too.
            before, after = (abs(values.loc[(name, c), "value"] - ideal) for c in ("no", "val"))
            assert after < 0.6 * before
        assert values.loc[("ece", "no"), "low"] > 0
        assert values.loc[("ece", "val"), "value"] < 0.8 * values.loc[("ece", "no"), "value"]
        assert values.loc[("brier", "val"), "value"] < values.loc[("brier", "no"), "value"]


def test_a_correction_learned_from_training_subjects_undoes_their_line_and_no_other():
    case = evidence("age")
    (model,) = case.models
    labels = np.linspace(40, 90, 30)
    noise = np.random.default_rng(0).normal(0, 2, 30)
    fitted = tuple((labels, 20 + slope * labels + noise) for slope in (0.7, 0.8))
    twice = np.concatenate([model.outputs] * 2)
    model = Model("m", 1.0, (0, 1), twice, fitted=tuple({0: pair} for pair in fitted))
    for number, (_, outputs) in enumerate(fitted):
        undone = calibration.correction_on_train(case.task, model, number, 0)(outputs)
        assert stats.linregress(labels, undone).slope == pytest.approx(1)
        assert undone.mean() == pytest.approx(labels.mean())
    case = replace(case, models=(model,))
    params = EvaluateParams(reference="m", bootstraps=100)
    table = calibration.measure([case], params=params, seed=0)
    values = table.query("metric == 'bias_slope'").set_index("corrected")["value"]
    assert list(values.index) == ["no", "val", "train"]
    # Each seed by its own line: outputs that rise by b are spread to b / 0.7 and b / 0.8.
    lines = [stats.linregress(labels, outputs).slope for _, outputs in fitted]
    spread = np.mean([(1 + values["no"]) / line for line in lines]) - 1
    assert values["train"] == pytest.approx(spread)


def test_without_outputs_of_training_subjects_there_is_a_reason_and_no_number():
    params = EvaluateParams(reference="m", bootstraps=100)
    table = calibration.measure([evidence("age")], params=params, seed=0)
    rows = table[table["corrected"] == "train"]
    assert rows["value"].isna().all()
    assert rows["reason"].str.contains("fitted.tsv").all()


@pytest.mark.parametrize("kind", ["sex", "age"])
def test_the_labels_of_test_subjects_play_no_part_in_the_correction(kind):
    case = evidence(kind)
    test = (case.scans["split"] == "test").to_numpy()
    turned = case.targets.copy()
    turned[test] = case.targets[test][::-1]
    other = Evidence(case.name, case.task, case.scans, turned, case.models)
    outputs = case.models[0].outputs[0]
    everybody = np.ones(len(test), bool)
    one, two = (calibration.correction(each, outputs, everybody) for each in (case, other))
    assert (one(outputs) == two(outputs)).all()


def test_without_a_class_on_validation_there_is_a_reason_and_no_number():
    case = evidence("sex")
    val = (case.scans["split"] == "val").to_numpy()
    lacking = Evidence(
        case.name, case.task, case.scans, np.where(val, 0, case.targets), case.models
    )
    params = EvaluateParams(reference="m", bootstraps=100)
    table = calibration.measure([lacking], params=params, seed=0)
    corrected = table[table["corrected"] == "val"]
    assert corrected["value"].isna().all()
    assert set(corrected["reason"]) == {"validation lacks a class to learn a correction from"}
    assert table[table["corrected"] == "no"]["value"].notna().all()


def test_every_seed_has_a_correction_of_its_own():
    case = evidence("sex")
    p = case.models[0].outputs[0, :, 1]
    bent = special.expit(0.3 * special.logit(p) - 2)  # a line, which a correction can undo
    outputs = np.stack([np.stack([1 - each, each], axis=1) for each in (p, bent)])
    params = EvaluateParams(reference="m", bootstraps=100)
    one, two = (
        calibration.measure(
            [replace(case, models=(Model("m", 1.0, tuple(range(len(each))), each),))],
            params=params,
            seed=0,
        )
        .query("corrected == 'val'")
        .set_index("metric")["value"]
        for each in (outputs[:1], outputs)
    )
    assert two.to_dict() == pytest.approx(one.to_dict(), rel=1e-4)


def test_a_scan_that_is_there_twice_is_no_second_person():
    case = evidence("sex", scans=300)
    case = replace(case, scans=case.scans.assign(person=np.arange(300)))
    twice = np.arange(300).repeat(2)
    doubled = replace(
        case,
        scans=case.scans.iloc[twice],
        targets=case.targets[twice],
        models=(replace(case.models[0], outputs=case.models[0].outputs[:, twice]),),
    )
    params = EvaluateParams(reference="m", bootstraps=100)
    once, again = (
        calibration.measure([each], params=params, seed=0)
        .query("metric == 'brier' and corrected == 'no'")
        .iloc[0]
        for each in (case, doubled)
    )
    ends = ["value", "low", "high", "subjects"]
    assert again[ends].to_list() == pytest.approx(once[ends].to_list())
