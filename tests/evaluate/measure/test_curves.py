from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest


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
