"""Every kind of task keeps the same promises: what passes here can be learned, judged and told."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import PRIMARY_METRICS, Classification, Regression, Task
from tests.support.scans import scans

TWO = Classification(column="diagnosis", classes=("CN", "AD"))
THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))
AGE = Regression(column="age")
KINDS = pytest.mark.parametrize("task", [TWO, THREE, AGE], ids=["two", "three", "value"])


def targets_of(task: Task, count: int = 60) -> np.ndarray:
    if task.classes:
        return np.arange(count) % len(task.classes) * 1.0
    return np.linspace(40, 90, count)


def outputs_of(task: Task, count: int = 60, seed: int = 0) -> np.ndarray:
    """As predictions.tsv holds them, a table of columns."""
    logits = torch.tensor(
        np.random.default_rng(seed).normal(size=(count, len(task.output_columns)))
    )
    return np.stack(list(task.columns(logits).values()), axis=1)


def stated(task: Task, outputs: np.ndarray) -> np.ndarray:
    """As evaluate holds them: probabilities (scans, classes), or values (scans,)."""
    return outputs if task.classes else outputs[:, 0]


@KINDS
def test_its_columns_are_those_it_names_and_have_no_fault(task: Task) -> None:
    outputs = outputs_of(task)
    assert outputs.shape == (60, len(task.output_columns))
    assert task.fault(outputs, [f"s{i}" for i in range(60)]) is None


@KINDS
def test_an_ensemble_predicts_the_mean_of_log_odds_or_of_values(task: Task) -> None:
    members = np.stack([outputs_of(task, seed=seed) for seed in range(3)])
    together = task.average(members)
    if not task.classes:
        assert together == pytest.approx(members.mean(axis=0))
        return
    assert together.sum(axis=1) == pytest.approx(1)
    for one, other in itertools.combinations(range(len(task.classes)), 2):
        odds = [logit(each[:, one] / (each[:, one] + each[:, other])) for each in members]
        own = together[:, one] / (together[:, one] + together[:, other])
        assert logit(own) == pytest.approx(np.mean(odds, axis=0))


@KINDS
def test_a_network_with_the_outputs_of_predictions_predicts_them(task: Task) -> None:
    predictions = outputs_of(task)
    again = task.columns(torch.from_numpy(task.network_outputs(predictions)))
    assert np.stack(list(again.values()), axis=1) == pytest.approx(predictions, abs=1e-12)


def test_a_member_that_is_certain_leaves_numbers() -> None:
    certain = np.array([[[1.0, 0.0]], [[0.4, 0.6]]])
    assert np.isfinite(TWO.average(certain)).all()


@pytest.mark.parametrize(("column", "row"), [([0.7, 0.7], 0), ([-0.1, 1.1], 0)])
def test_probabilities_that_are_none_are_named(column: list[float], row: int) -> None:
    outputs = np.array([[0.5, 0.5], column])
    assert "of b are" in str(TWO.fault(outputs, ["a", "b"]))


@KINDS
def test_labels_and_targets_are_two_names_of_one_thing(task: Task) -> None:
    targets = targets_of(task)
    labels = pd.Series([task.classes[int(t)] for t in targets] if task.classes else targets)
    assert task.numbers(labels).tolist() == targets.tolist()
    assert task.numbers(pd.Series(["no such label"])).isna().all()


@KINDS
def test_a_linear_model_is_its_coefficients(task: Task) -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(60, 4)), targets_of(task)
    pipeline = make_pipeline(StandardScaler(), task.linear_model())
    pipeline.set_params(**{name: values[0] for name, values in task.penalties(np.ones(1)).items()})
    pipeline.fit(x, y)
    weight, bias = task.coefficients(pipeline[-1])
    logits = torch.tensor(pipeline[0].transform(x) @ weight.T + bias)
    said = np.stack(list(task.columns(logits).values()), axis=1)
    np.testing.assert_allclose(stated(task, said), task.predict(pipeline, x), rtol=1e-9)


@KINDS
def test_standardized_targets_have_the_loss_of_a_loop(task: Task) -> None:
    targets = targets_of(task)
    centre, scale = task.standardization(pd.Series(targets))
    standardized = torch.tensor((targets - centre) / scale)
    outputs = torch.randn(60, len(task.output_columns), dtype=torch.float64)
    loss = task.loss(targets, torch.device("cpu"))(outputs.float(), standardized.float())
    if task.classes:
        counts = np.bincount(targets.astype(int))
        weights = len(targets) / len(counts) / counts
        logs = outputs.log_softmax(1).numpy()
        each = [-weights[int(t)] * row[int(t)] for t, row in zip(targets, logs, strict=True)]
        expected = sum(each) / sum(weights[int(t)] for t in targets)
    else:
        assert abs(float(standardized.mean())) < 1e-9
        assert float(standardized.std(unbiased=False)) == pytest.approx(1)
        expected = float(((outputs[:, 0] - standardized) ** 2).mean())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@KINDS
def test_persons_of_several_classes_count_for_none(task: Task) -> None:
    targets = targets_of(task, 12)
    alone = pd.Series(targets, index=[f"p{i}" for i in range(12)])
    once = task.persons_to_count(alone)
    assert sum(once) == 12
    mixed = pd.concat([alone, pd.Series([targets[1]], index=["p0"])])
    assert sum(task.persons_to_count(mixed)) == (11 if task.classes else 12)


@KINDS
def test_its_metrics_are_known_and_its_primary_is_among_them(task: Task) -> None:
    outputs, targets = stated(task, outputs_of(task)), targets_of(task)
    measured = task.measure(task.typed(targets), outputs, np.ones((1, 60)), threshold=0.5)
    assert set(task.metric_names) - {"ece"} <= set(measured)
    assert {*task.metric_names, *task.calibration_names} <= set(METRICS)
    assert task.primary in PRIMARY_METRICS & set(task.metric_names)
    seeds = np.stack([outputs, outputs])
    persons = np.array([f"p{i}" for i in range(60)])
    value, error = task.primary_with_error(task.typed(targets), seeds, persons)
    assert value == pytest.approx(measured[task.primary][0])
    assert error > 0


@KINDS
def test_every_metric_of_calibration_is_measured(task: Task) -> None:
    outputs, labels = stated(task, outputs_of(task)), task.typed(targets_of(task))
    found = task.calibration(labels, outputs, np.ones((3, 60)))
    assert set(task.calibration_names) - {"ece"} <= set(found)
    assert {each.shape for each in found.values()} == {(3,)}
    error = task.calibration_error(labels, outputs, np.ones((3, 60)))
    assert (error is not None) == ("ece" in task.calibration_names)
    assert error is None or error.shape == (2, 3)


@KINDS
def test_the_constant_baseline_says_the_same_of_everybody(task: Task) -> None:
    same = task.constant(targets_of(task), 5)
    assert not isinstance(same, str)
    assert len(np.unique(same, axis=0)) == 1
    assert isinstance(task.constant(targets_of(task)[:1], 5), str)


@KINDS
def test_what_is_told_to_people_has_a_prediction_and_how_sure_it_is(task: Task) -> None:
    outputs = torch.randn(30, len(task.output_columns))
    known = task.uncertainty(outputs.double().numpy(), targets_of(task, 30), np.arange(30))
    told = pd.DataFrame(task.state(outputs, known))
    assert len(told) == 30
    if task.classes:
        assert set(told["prediction"]) <= set(task.classes)
        assert told["entropy"].between(0, 1).all()
        truth = [task.classes[int(index)] for index in targets_of(task, 30)]
        sets = [each.split("|") for each in told["set"]]
        held = pd.Series([name in each for name, each in zip(truth, sets, strict=True)])
        assert held.groupby(truth).mean().min() >= 0.9
        assert all(said in each for said, each in zip(told["prediction"], sets, strict=True))
        assert set(told["calibrated_on"]) == {30 // len(task.classes)}
        few = task.uncertainty(outputs.double().numpy(), targets_of(task, 30), np.arange(30) // 4)
        assert pd.DataFrame(task.state(outputs, few))["set"].isna().all()
    else:
        covered = (told["low"] <= targets_of(task, 30)) & (targets_of(task, 30) <= told["high"])
        assert covered.mean() >= 0.9


@KINDS
def test_words_name_the_column(task: Task) -> None:
    labels = [*task.classes] if task.classes else [60.0, 70.0, 80.0]
    table = scans(**{task.column: labels})
    assert task.column in task.question
    assert task.describe_labels(table)
    assert task.explained_unit("")


def test_declaring_a_task_loads_nothing_that_computes() -> None:
    heavy = ("torch", "sklearn", "scipy", "neurofoundry.stats.metrics")
    code = f"import sys, neurofoundry.tasks; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
