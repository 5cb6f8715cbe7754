"""Calibration, and its correction, against scikit-learn and by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import calibration
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats import metrics
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


def test_slope_and_intercept_are_those_of_unpenalized_logistic_regressions():
    case = evidence("sex")
    p, y = case.models[0].outputs[0, :, 1], case.targets == 1
    weights = np.stack([np.ones(len(y)), np.random.default_rng(0).integers(0, 3, len(y))])
    intercept, slope = metrics.calibration_line(y, p, weights.astype(float))
    x = special.logit(p)
    for row in range(2):
        oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], y, weights[row])
        # A resample takes one step from the sample: close, not equal.
        assert slope[row] == pytest.approx(oracle.coef_[0, 0], abs=1e-5 if row == 0 else 0.01)
        held = intercept[row] + x
        excess = weights[row] @ (y - special.expit(held)) / weights[row].sum()
        assert excess == pytest.approx(0, abs=1e-8 if row == 0 else 0.002)
    assert slope[0] == pytest.approx(0.5, abs=0.1)
    assert intercept[0] < -0.4


def test_a_model_that_separates_the_classes_has_no_slope():
    y = np.arange(40) >= 20
    found = metrics.calibration_line(y, np.linspace(0.01, 0.99, 40), np.ones((3, 40)))
    assert np.isnan(found).all()


def test_the_slope_of_the_error_is_that_of_scipy():
    case = evidence("age")
    outputs = case.models[0].outputs[0]
    found = metrics.bias_slope(case.targets, outputs, np.ones((1, len(outputs))))
    expected = stats.linregress(case.targets, outputs - case.targets).slope
    assert found[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["sex", "age"])
def test_a_correction_learned_from_validation_mends_the_test_subjects(kind):
    params = EvaluateParams(baseline="m", bootstraps=200)
    table = calibration.measure([evidence(kind)], params=params, seed=0)
    values = table.set_index(["metric", "corrected"])
    assert set(table["split"]) == {"test"}
    if kind == "age":
        assert values.loc[("bias_slope", "no"), "high"] < -0.4
        found = values.loc[("bias_slope", "val")]
        assert found["low"] < 0 < found["high"]
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
    model = Model("m", 1.0, (0, 1), twice, fitted=fitted)
    for number, (_, said) in enumerate(fitted):
        undone = calibration.correction_on_train(case.task, model, number)(said)
        assert stats.linregress(labels, undone).slope == pytest.approx(1)
        assert undone.mean() == pytest.approx(labels.mean())
    case = replace(case, models=(model,))
    params = EvaluateParams(baseline="m", bootstraps=100)
    table = calibration.measure([case], params=params, seed=0)
    values = table.query("metric == 'bias_slope'").set_index("corrected")["value"]
    assert list(values.index) == ["no", "val", "train"]
    # Each seed by its own line: outputs that rise by b are spread to b / 0.7 and b / 0.8.
    lines = [stats.linregress(labels, said).slope for _, said in fitted]
    spread = np.mean([(1 + values["no"]) / line for line in lines]) - 1
    assert values["train"] == pytest.approx(spread)


def test_without_outputs_of_training_subjects_there_is_a_reason_and_no_number():
    params = EvaluateParams(baseline="m", bootstraps=100)
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
    one, two = (calibration.correction(each, outputs) for each in (case, other))
    assert (one(outputs) == two(outputs)).all()


def test_a_temperature_does_not_change_who_is_called_what():
    random = np.random.default_rng(0)
    task = TASKS["sex"].model_copy(update={"classes": ("a", "b", "c")})
    targets = random.integers(0, 3, 300)
    honest = special.softmax(random.normal(0, 1, (300, 3)) + np.eye(3)[targets], axis=1)
    outputs = special.softmax(3 * np.log(honest), axis=1)
    table = pd.DataFrame({"split": ["val"] * 300, "person": range(300)})
    case = Evidence("three", task, table, targets.astype(float), ())
    corrected = calibration.correction(case, outputs)(outputs)
    assert (corrected.argmax(axis=1) == outputs.argmax(axis=1)).all()
    once = np.ones((1, 300))
    assert metrics.brier(targets, corrected, once) < metrics.brier(targets, outputs, once)


def test_without_a_class_on_validation_there_is_a_reason_and_no_number():
    case = evidence("sex")
    val = (case.scans["split"] == "val").to_numpy()
    lacking = Evidence(
        case.name, case.task, case.scans, np.where(val, 0, case.targets), case.models
    )
    params = EvaluateParams(baseline="m", bootstraps=100)
    table = calibration.measure([lacking], params=params, seed=0)
    corrected = table[table["corrected"] == "val"]
    assert corrected["value"].isna().all()
    assert set(corrected["reason"]) == {"validation lacks a class to learn a correction from"}
    assert table[table["corrected"] == "no"]["value"].notna().all()
