"""The numbers, against scikit-learn on the same predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import baselines, performance
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.stats.comparisons import auc_covariance
from neurofoundry.stats.metrics import youden_threshold
from neurofoundry.tasks import Classification
from tests.evaluate.conftest import TASKS, Folders, run, scans_table, write_inputs


def read(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / name, sep="\t", na_values=["n/a"], keep_default_na=False)


def predictions(folders: Folders, task: str, init: str, split: str, seed: int = 0) -> pd.DataFrame:
    table = pd.read_csv(folders.predictions(task, init, seed=seed), sep="\t")
    return table[table["split"] == split]


@pytest.mark.parametrize("split", ["val", "test", "ood"])
def test_values_are_those_of_scikit_learn(usual, evaluated, split):
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    for task, positive in (("alzheimers", "AD"), ("stroke", "yes"), ("sex", "M")):
        table = predictions(usual, task, "simclr", split)
        scores = numbers[task]["simclr"]["1.0"][split]
        area = sk.roc_auc_score(table["label"] == positive, table[f"p_{positive}"])
        assert scores["auc"]["value"] == pytest.approx(area)
        assert scores["subjects"] == table["person"].nunique()
        assert scores["scans"] == len(table)
    table = predictions(usual, "age", "simclr", split)
    scores = numbers["age"]["simclr"]["1.0"][split]
    assert scores["r2"]["value"] == pytest.approx(sk.r2_score(table["label"], table["output"]))


def test_every_number_lies_in_its_interval_or_says_why_there_is_none(evaluated):
    table = read(evaluated.dir, "metrics.tsv")
    measured = table["value"].notna() & table["low"].notna()
    # What needs a threshold has no number on val, where the threshold is chosen.
    assert measured[table["split"] != "val"].mean() > 0.8
    between = table["low"] <= table["value"] + 1e-12
    assert (between & (table["value"] <= table["high"] + 1e-12))[measured].mean() > 0.99
    assert table["reason"][~measured].notna().all()


def test_the_threshold_comes_from_validation_and_is_carried_over(usual, evaluated):
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    runs = numbers["alzheimers"]["simclr-probe"]["1.0"]
    assert runs["val"]["sensitivity"]["value"] is None
    assert runs["val"]["sensitivity"]["reason"] == "the threshold was chosen on these scans"
    val = predictions(usual, "alzheimers", "simclr-probe", "val")
    for split in ("test", "ood"):
        table = predictions(usual, "alzheimers", "simclr-probe", split)
        # Any threshold with the best gain on val calls the same scans of val.
        cuts, ill = np.linspace(0, 1, 2001)[:, None], (val["label"] == "AD").to_numpy()
        called = val["p_AD"].to_numpy() >= cuts
        gain = called[:, ill].mean(axis=1) - called[:, ~ill].mean(axis=1)
        recall = (table[table["label"] == "AD"]["p_AD"].to_numpy() >= cuts).mean(axis=1)
        allowed = set(recall[gain > gain.max() - 1e-9])
        assert any(
            runs[split]["sensitivity"]["value"] == pytest.approx(recall) for recall in allowed
        )


def test_seeds_are_averaged_and_their_spread_is_told_apart(tmp_path):
    tasks = {"stroke": TASKS["stroke"]}
    folders = write_inputs(tmp_path / "in", scans_table(120), tasks=tasks, seeds=(0, 1, 2))
    run(folders, tmp_path / "out", tasks=tasks)
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())
    score = numbers["stroke"]["simclr"]["1.0"]["test"]["auc"]
    areas = []
    for seed in range(3):
        table = predictions(folders, "stroke", "simclr", "test", seed)
        areas.append(sk.roc_auc_score(table["label"] == "yes", table["p_yes"]))
    assert score["value"] == pytest.approx(np.mean(areas))
    assert score["seed_sd"] == pytest.approx(np.std(areas, ddof=1))
    # An ensemble would be another number.
    assert score["low"] < score["value"] < score["high"]
    assert "seed_sd" not in numbers["stroke"]["baseline-prevalence"]["1.0"]["test"]["auc"]


def test_differences_are_those_of_the_values_and_paired(evaluated):
    table, differences = read(evaluated.dir, "metrics.tsv"), read(evaluated.dir, "differences.tsv")
    values = table.set_index(["task", "init", "split", "metric"])["value"]
    rows = differences[differences["value"].notna()]
    assert set(rows["split"]) == {"test", "ood"}
    expected = {
        "scratch",
        *(name for task in TASKS.values() for name in baselines.names(task)),
    }
    assert set(rows["versus"]) == expected
    for row in rows.to_dict("records"):
        of = [
            (row["task"], name, row["split"], row["metric"])
            for name in (row["init"], row["versus"])
        ]
        assert row["value"] == pytest.approx(values[of[0]] - values[of[1]], abs=1e-7)
    # Better means a smaller error and a larger AUC.
    better = rows[rows["verdict"] == "better"]
    assert (better[better["metric"] == "mae"]["high"] < 0).all()
    assert (better[better["metric"] == "auc"]["low"] > 0).all()
    assert {"mae", "auc"} <= set(better["metric"])


def test_only_the_headline_comparisons_are_adjusted_for_their_number(evaluated):
    rows = read(evaluated.dir, "differences.tsv")
    adjusted = rows[rows["p_holm"].notna()]
    assert set(adjusted["metric"]) == {"auc", "mae"}
    assert set(adjusted["versus"]) == {"scratch"}
    assert adjusted.groupby("split").size().to_dict() == {"test": 4 * 3, "ood": 4 * 3}
    assert (adjusted["p_holm"] >= adjusted["p"]).all()


def test_fewer_labels_than_the_reference_has_are_a_family_of_comparisons_of_their_own(tmp_path):
    tasks = {name: TASKS[name] for name in ("sex", "age")}
    skill = {"simclr": (1.0, 1.0), "scratch": (1.2, 1.2)}
    shares = (0.1, 0.5, 1.0)
    folders = write_inputs(
        tmp_path / "in", scans_table(160), tasks=tasks, fractions=shares, skill=skill
    )
    run(folders, tmp_path / "out", tasks=tasks)
    rows = read(tmp_path / "out", "differences.tsv").query("p_holm == p_holm")
    assert (rows["versus_fraction"] == 1).all()
    assert (rows["versus"] == "scratch").all()
    fewer = rows["fraction"] < 1
    # Both initializations at two shares, in two tasks; and simclr alone with all labels.
    assert rows[fewer].groupby("split").size().to_dict() == {"test": 2 * 2 * 2, "ood": 2 * 2 * 2}
    assert rows[~fewer].groupby("split").size().to_dict() == {"test": 2, "ood": 2}
    for _, family in rows.groupby(["split", fewer]):
        smallest = family["p"].idxmin()
        assert family["p_holm"][smallest] == pytest.approx(
            min(1, len(family) * family["p"][smallest])
        )


def test_the_change_out_of_distribution_has_an_interval(evaluated):
    table, gaps = read(evaluated.dir, "metrics.tsv"), read(evaluated.dir, "gaps.tsv")
    values = table.set_index(["task", "init", "split", "metric"])["value"]
    row = gaps.query("task == 'age' and init == 'frozen-random' and metric == 'mae'").iloc[0]
    inside, outside = (values["age", "frozen-random", split, "mae"] for split in ("test", "ood"))
    assert row["value"] == pytest.approx(outside - inside)
    assert row["low"] < row["value"] < row["high"]


def test_the_same_answer_for_everybody_ranks_nobody(evaluated):
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    baseline = numbers["stroke"]["baseline-prevalence"]["1.0"]["test"]
    assert [baseline["auc"][end] for end in ("value", "low", "high")] == [0.5, 0.5, 0.5]
    assert baseline["sensitivity"]["value"] is None
    assert "no threshold" in baseline["sensitivity"]["reason"]
    assert numbers["age"]["baseline-mean"]["1.0"]["test"]["correlation"]["value"] is None


def test_too_few_subjects_of_a_class_give_a_reason_and_no_number(tmp_path):
    scans = scans_table(160)
    ill = scans[(scans["split"] == "test") & (scans["stroke"] == "yes")]["person"].unique()
    scans.loc[scans["person"].isin(ill[4:]), "stroke"] = "no"
    tasks = {"stroke": TASKS["stroke"]}
    folders = write_inputs(tmp_path / "in", scans, tasks=tasks)
    run(folders, tmp_path / "out", tasks=tasks)
    runs = json.loads((tmp_path / "out/metrics.json").read_text())["stroke"]["simclr"]["1.0"]
    assert runs["test"]["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "split 'test' has 4 subjects with stroke=yes, 5 are needed",
    }
    assert runs["ood"]["auc"]["value"] is not None
    differences = read(tmp_path / "out", "differences.tsv")
    assert differences[differences["split"] == "test"]["value"].isna().all()


def ages(test: np.ndarray, ood: np.ndarray) -> Evidence:
    """One scan a person, and a model that errs by years."""
    truth = np.concatenate([test, ood]).astype(float)
    table = pd.DataFrame(
        {
            "scan_id": [f"s{i:02d}" for i in range(len(truth))],
            "person": [f"p{i:02d}" for i in range(len(truth))],
            "split": ["test"] * len(test) + ["ood"] * len(ood),
        }
    )
    outputs = truth + np.random.default_rng(0).normal(0, 3, len(truth))
    model = Model("m", 1.0, (0,), outputs[None])
    return Evidence("age", TASKS["age"], table, truth, (model,))


def measured_in(evidence: Evidence, split: str) -> pd.DataFrame:
    params = EvaluateParams(reference="m", bootstraps=100)
    table = performance.measure([evidence], params=params, seed=0).measures
    return table[table["split"] == split].set_index("metric")


def test_fewer_subjects_of_new_sites_than_needed_give_a_reason_and_leave_the_others_alone():
    enough, few = (ages(np.arange(40, 70), np.arange(50, 50 + count)) for count in (5, 4))
    assert measured_in(enough, "ood").loc[["mae", "rmse"], "low"].notna().all()
    ood = measured_in(few, "ood")
    assert ood["value"].isna().all()
    assert set(ood["reason"]) == {"split 'ood' has 4 subjects, 5 are needed"}
    assert measured_in(few, "test")["value"].notna().all()


@pytest.mark.parametrize(("test", "ood"), [(30, 6), (6, 30)])
def test_a_change_out_of_distribution_has_the_degrees_of_freedom_of_the_smaller_group(test, ood):
    params = EvaluateParams(reference="m", bootstraps=100)
    evidence = ages(np.arange(40, 40 + test), np.arange(40, 40 + ood))
    gaps = performance.measure([evidence], params=params, seed=0).gaps.set_index("metric")
    gap = gaps.loc["mae"]
    error = (gap["high"] - gap["low"]) / 2 / stats.t.ppf(0.975, 5)
    assert gap["p"] == pytest.approx(2 * stats.t.sf(abs(gap["value"]) / error, 5))


def two_seeds() -> Evidence:
    """A task of two classes in val and test, and two seeds of which the second states other risks,
    in the same order."""
    random = np.random.default_rng(0)
    targets = (np.arange(120) % 2).astype(float)
    p = special.expit(random.normal(1.5 * targets - 0.75, 1))
    scans = pd.DataFrame(
        {"person": np.arange(120) // 2 * 2 + targets, "split": ["val"] * 60 + ["test"] * 60}
    )
    outputs = np.stack([np.stack([1 - each, each], axis=1) for each in (p, p**4)])
    return Evidence("sex", TASKS["sex"], scans, targets, (Model("m", 1.0, (0, 1), outputs),))


def test_every_seed_has_the_threshold_that_its_own_validation_suggests():
    evidence = two_seeds()
    val, test, ill = evidence.inside("val"), evidence.inside("test"), evidence.targets == 1
    recalls = []
    for outputs in evidence.models[0].outputs[:, :, 1]:
        threshold = youden_threshold(ill[val], outputs[val])
        recalls.append((outputs[test & ill] >= threshold).mean())
    recall = measured_in(evidence, "test").loc["sensitivity"]
    assert recall["value"] == pytest.approx(np.mean(recalls))
    assert recall["seed_sd"] == pytest.approx(np.std(recalls, ddof=1))


def test_the_interval_of_a_difference_of_areas_is_nearly_delongs_for_the_means_over_seeds():
    evidence = two_seeds()
    random = np.random.default_rng(1)
    p = special.expit(random.normal(0.5 * evidence.targets - 0.25, 1, (2, 120)))
    other = Model("other", 1.0, (0, 1), np.stack([1 - p, p], axis=2))
    models = (*evidence.models, other)
    params = EvaluateParams(reference="other", bootstraps=100)
    measured = performance.measure([replace(evidence, models=models)], params=params, seed=0)
    difference = measured.differences.query(
        "init == 'm' and split == 'test' and metric == 'auc'"
    ).iloc[0]
    inside = evidence.inside("test")
    areas, c = auc_covariance(
        evidence.labels[inside],
        np.concatenate([model.outputs[:, inside] for model in models]),
        evidence.persons[inside],
    )
    contrast = np.array([0.5, 0.5, -0.5, -0.5])
    assert difference["value"] == pytest.approx(contrast @ areas)
    reach = stats.t.ppf(0.975, 58) * np.sqrt(contrast @ c @ contrast)
    # Its ends are not symmetric, and what 30 persons a class show of the models' likeness is mixed.
    assert (difference["low"], difference["high"]) == pytest.approx(
        (difference["value"] - reach, difference["value"] + reach), abs=0.025
    )


def test_subjects_of_one_age_have_errors_and_a_reason_why_nothing_is_explained():
    measures = measured_in(ages(np.full(12, 50), np.arange(40, 50)), "test")
    assert measures.loc["mae", "low"] < measures.loc["mae", "value"] < measures.loc["mae", "high"]
    assert measures.loc[["r2", "correlation"], "value"].isna().all()
    assert measures.loc["r2", "reason"] == "the labels are all the same"
    assert measures.loc["correlation", "reason"] == "the outputs (or the labels) are all the same"


def test_a_perfect_model_is_not_certain(tmp_path):
    tasks = {"sex": TASKS["sex"]}
    skill = {"simclr": (60.0, 60.0), "scratch": (1.0, 1.0)}
    folders = write_inputs(tmp_path / "in", scans_table(160), tasks=tasks, skill=skill)
    run(folders, tmp_path / "out", tasks=tasks)
    test = json.loads((tmp_path / "out/metrics.json").read_text())["sex"]["simclr"]["1.0"]["test"]
    men = predictions(folders, "sex", "simclr", "test").query("label == 'M'")["person"].nunique()
    assert test["sensitivity"]["value"] == 1
    assert test["sensitivity"]["low"] == pytest.approx(men / (men + 1.96**2), abs=1e-4)
    assert test["auc"]["low"] < 0.9


def test_several_classes_are_measured_one_against_the_rest(tmp_path):
    scans = scans_table(300)
    scans["group"] = np.where(
        scans["diagnosis"] == "AD", "AD", np.where(scans["stroke"] == "yes", "MCI", "CN")
    )
    tasks = {"group": Classification(column="group", classes=("CN", "MCI", "AD"))}
    folders = write_inputs(tmp_path / "in", scans, tasks=tasks)
    run(folders, tmp_path / "out", tasks=tasks)
    table = predictions(folders, "group", "simclr", "test")
    p = table[["p_CN", "p_MCI", "p_AD"]].to_numpy()
    labels = table["label"].map({"CN": 0, "MCI": 1, "AD": 2}).to_numpy()
    values = json.loads((tmp_path / "out/metrics.json").read_text())["group"]["simclr"]["1.0"][
        "test"
    ]
    expected = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert values["auc"]["value"] == pytest.approx(expected)
    assert "sensitivity" not in values
    page = (tmp_path / "out/report.html").read_text()
    assert "Can a model tell group apart: CN, MCI, AD?" in page


def test_a_comparison_of_equals_rarely_finds_a_difference(tmp_path):
    """Two models of the same skill: the interval excludes zero in about one cohort of twenty."""
    task, random = TASKS["sex"], np.random.default_rng(0)
    wrong = 0
    for number in range(60):
        scans = task.select(scans_table(120, seed=number).query("split in ['val', 'test']"))
        targets = task.targets(scans)
        models = []
        for name in ("simclr", "scratch"):
            p = 1 / (1 + np.exp(-(targets - 0.5) - random.normal(0, 1, len(scans))))
            models.append(Model(name, 1.0, (0,), np.stack([1 - p, p], axis=1)[None]))
        # Everybody is tested: the splits play no part here.
        evidence = Evidence("sex", task, scans.assign(split="test"), targets, tuple(models))
        differences = performance.measure(
            [evidence], params=EvaluateParams(reference="scratch", bootstraps=200), seed=number
        ).differences
        wrong += differences.query("metric == 'auc'")["verdict"].iloc[0] != "none"
    assert wrong <= 9
