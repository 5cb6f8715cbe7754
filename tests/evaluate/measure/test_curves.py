from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import special

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import curves
from neurofoundry.stats import intervals, metrics
from tests.evaluate.conftest import TASKS


def test_curves_are_those_of_the_predictions(usual, evaluated):
    points = pd.read_csv(evaluated.dir / "plots/predicted_vs_true.tsv", sep="\t")
    part = points.query("init == 'scratch' and split == 'test'")
    table = pd.read_csv(usual.predictions("age", "scratch"), sep="\t").query("split == 'test'")
    assert sorted(part["predicted"]) == pytest.approx(sorted(table["output"]))
    curve = pd.read_csv(evaluated.dir / "plots/roc.tsv", sep="\t")
    curve = curve.query("task == 'sex' and init == 'scratch' and split == 'ood'")
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    assert area == pytest.approx(numbers["sex"]["scratch"]["1.0"]["ood"]["auc"]["value"])


def test_the_bands_of_a_curve_hold_it_and_are_no_narrower_than_the_interval_of_its_area(evaluated):
    bands = pd.read_csv(evaluated.dir / "plots/roc_bands.tsv", sep="\t")
    assert bands.groupby(["task", "init", "split"]).ngroups == 3 * 4 * 2
    assert ((bands["low"] <= bands["tpr"]) & (bands["tpr"] <= bands["high"])).mean() > 0.98
    one = bands.query("task == 'sex' and init == 'scratch' and split == 'ood'")
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())["sex"]["scratch"]["1.0"]
    auc = numbers["ood"]["auc"]
    area = np.trapezoid(one["tpr"], one["fpr"])
    assert area == pytest.approx(auc["value"], abs=0.01)
    # Were all points low (or high) at once, so would be the area: no band is narrower.
    low, high = (np.trapezoid(one[end], one["fpr"]) for end in ("low", "high"))
    assert low < auc["low"] + 0.01
    assert high > auc["high"] - 0.01


def evidence(seeds: int = 2) -> Evidence:
    """Two scans a person in val, test and ood, and a model that states risks too low."""
    random = np.random.default_rng(0)
    targets = (np.arange(240) // 2 % 2).astype(float)
    p = special.expit(random.normal(1.5 * targets - 3, 1, (seeds, 240)))
    splits = np.repeat(["val", "test", "ood"], 80)
    scans = pd.DataFrame({"person": np.arange(240) // 2, "split": splits})
    model = Model("m", 1.0, tuple(range(seeds)), np.stack([1 - p, p], axis=-1))
    return Evidence("sex", TASKS["sex"], scans, targets, (model,))


def test_bands_hold_the_middle_95_percent_of_resampled_persons():
    case = evidence()
    bands = curves.roc_bands([case], min_subjects=5, seed=3).query("split == 'test'")
    inside = case.inside("test")
    scores = case.models[0].outputs[:, inside, 1]
    samples = intervals.resample(
        lambda w: np.mean(
            [
                metrics.sensitivity_at(case.targets[inside], each, w, curves.FALSE_ALARMS)
                for each in scores
            ],
            axis=0,
        ),
        case.persons[inside],
        count=curves.RESAMPLES,
        seed=3,
        key="test",
    )
    low, high = np.nanquantile(samples[:, 1:], [0.025, 0.975], axis=1)
    np.testing.assert_allclose(bands["tpr"], samples[:, 0])
    np.testing.assert_allclose(bands[["low", "high"]], np.stack([low, high], axis=1))


def test_confusion_matrices_count_calls_at_the_threshold_of_each_seed():
    case = evidence()
    table = curves.confusion([case], min_subjects=5).query("split == 'ood'")
    val, ood = case.inside("val"), case.inside("ood")
    counts = dict.fromkeys(itertools.product(("F", "M"), ("F", "M")), 0)
    for outputs in case.models[0].outputs[:, :, 1]:
        threshold = metrics.youden_threshold(case.targets[val] == 1, outputs[val])
        assert threshold < 0.4
        for true, score in zip(case.targets[ood], outputs[ood], strict=True):
            counts["FM"[int(true)], "FM"[int(score >= threshold)]] += 1
    counted = table.set_index(["true", "predicted"])["scans"].to_dict()
    assert counted == counts
