"""The stage as a whole."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry import params as parameters
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import inputs, promotion
from neurofoundry.evaluate.measure import performance
from neurofoundry.evaluate.params import EvaluateParams, Promotion
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.run import evaluate, morphometry_of, with_floors
from neurofoundry.runtime import stage
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs
from tests.evaluate.report.test_build import Page

RULE = {"task": "alzheimers", "initialization": "simclr", "metric": "auc", "over": "scratch"}


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_writes_what_the_contract_says_and_nothing_else(evaluated):
    assert list(files(evaluated.dir)) == sorted(
        [
            "checklist.md",
            "embeddings.html",
            "metrics.json",
            "model_card.md",
            "promotion.json",
            "provenance.json",
            "report.html",
            *(f"predictions/{name}.npz" for name in TASKS),
            *(f"plots/{name}.tsv" for name in ("predicted_vs_true", "pretraining")),
            *(f"plots/{name}.tsv" for name in ("reliability", "roc", "roc_bands")),
            *(f"tables/{name}.tsv" for name in ("calibration", "confusion", "differences")),
            *(
                f"tables/{name}.tsv"
                for name in ("embeddings", "explanations", "gaps", "metrics", "repeats", "sites")
            ),
            "tables/subgroups.tsv",
        ]
    )


def test_the_same_inputs_give_the_same_bytes(usual, evaluated, tmp_path):
    run(usual, tmp_path / "again")
    assert files(tmp_path / "again") == files(evaluated.dir)


def test_another_seed_gives_other_intervals_and_the_same_values(usual, evaluated, tmp_path):
    run(usual, tmp_path / "out", seed=1, tasks={"sex": TASKS["sex"]})
    first, second = (
        pd.read_csv(folder / "tables/metrics.tsv", sep="\t")
        for folder in (evaluated.dir, tmp_path / "out")
    )
    first = first[first["task"] == "sex"]
    assert np.allclose(first["value"], second["value"], equal_nan=True)
    assert (first["low"].to_numpy() != second["low"].to_numpy()).mean() > 0.5


def test_the_summary_is_the_headline_numbers(evaluated):
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    found = numbers["age"]["simclr"]["1.0"]["ood"]["mae"]
    assert evaluated.summary["age/simclr/1.0/ood/mae/value"] == found["value"]
    assert evaluated.summary["age/simclr/1.0/ood/mae/low"] == found["low"]
    assert len(evaluated.summary) == 4 * 4 * 2 * 3 + 1
    assert evaluated.summary["promoted"] is False


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


def test_fractions_of_the_labels_are_measured_and_the_largest_is_reported(tmp_path):
    tasks = {name: TASKS[name] for name in ("sex", "age")}
    skill = {"simclr": (2.4, 1.6), "scratch": (0.6, 0.6)}
    folders = write_inputs(
        tmp_path / "in", scans_table(120), tasks=tasks, fractions=(0.1, 1.0), skill=skill
    )
    work = run(folders, tmp_path / "out", tasks=tasks)
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["age"]["simclr"]
    assert list(numbers) == ["0.1", "1.0"]
    assert work.summary["age/simclr/1.0/test/mae/value"] == numbers["1.0"]["test"]["mae"]["value"]
    page = (tmp_path / "out/report.html").read_text()
    shown = Page(tmp_path / "out/report.html").words
    assert shown.count("With fewer labels") == 2
    for init in skill:
        assert f'aria-label="{init}: AUC by share of the labels"' in page
    table = pd.read_csv(tmp_path / "out/tables/differences.tsv", sep="\t")
    few = table.query("init == 'simclr' and versus == 'scratch' and fraction == 0.1")
    row = few.query("versus_fraction == 1 and split == 'test' and metric == 'mae'").iloc[0]
    few, full = (
        json.loads((tmp_path / "out/metrics.json").read_text())["age"][init][fraction]["test"]
        for init, fraction in (("simclr", "0.1"), ("scratch", "1.0"))
    )
    assert row["value"] == pytest.approx(few["mae"]["value"] - full["mae"]["value"])
    sentence = re.search(r"With 10% of the labels simclr reaches [\d.]+, [^.]+\.\d+[^<]*", page)
    assert sentence
    assert "scratch with all of them" in sentence[0]
    # Of every initialization, the baseline too, its value, difference and what they say.
    measured = pd.read_csv(tmp_path / "out/tables/metrics.tsv", sep="\t")
    for task, metric in (("sex", "auc"), ("age", "mae")):
        for init in skill:
            where = f"task == '{task}' and init == '{init}' and fraction == 0.1"
            where += f" and split == 'test' and metric == '{metric}'"
            value = measured.query(where).iloc[0]["value"]
            where += " and versus == 'scratch' and versus_fraction == 1"
            versus = table.query(where).iloc[0]
            text = narrative.number(value, metric) + " "
            text += narrative.with_interval(versus, metric, signed=True)
            said = r"(perhaps |better with|worse with|with 10% not shown to be worse)[^)]*"
            assert re.search(f"{init} {said} {re.escape(text)}", shown)


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


@pytest.fixture(scope="module")
def measured(usual):
    found = usual.read()
    tasks = [
        inputs.read_evidence(name, TASKS[name], found, usual.inputs["models"])
        for name in ("alzheimers", "age")
    ]
    sizes = morphometry_of(tasks, found, Volumes(usual.inputs["volumes"]))
    tasks = [with_floors(each, found, sizes) for each in tasks]
    rule = Promotion(**RULE | {"initialization": "scratch", "over": "simclr"})
    values = EvaluateParams(baseline="scratch", bootstraps=200, promotion=rule)
    return performance.measure(tasks, params=values, seed=0)


class TestPromotion:
    def decide(self, measured, **change):
        sites = pd.DataFrame(
            [{"encoder": "simclr", "value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.25}]
        )
        return promotion.decide(
            Promotion(**RULE | change), measured, 1.0, sites=sites, encoder="simclr"
        )

    def test_a_whole_interval_above_the_margin_promotes(self, measured):
        decision = self.decide(measured, split="ood")
        assert decision.difference["low"] > 0
        assert decision.promoted
        assert "the whole interval is better" in decision.reason

    def test_a_margin_within_the_interval_does_not(self, measured):
        decision = self.decide(measured, split="ood")
        margin = (decision.difference["low"] + decision.difference["value"]) / 2
        decision = self.decide(measured, split="ood", margin=margin)
        assert not decision.promoted
        assert f"not better by more than {margin:g}" in decision.reason

    def test_smaller_errors_are_better(self, measured):
        rule = {"task": "age", "metric": "mae", "over": "floor-mean"}
        decision = self.decide(measured, **rule)
        assert decision.difference["high"] < 0
        assert decision.promoted
        assert not self.decide(measured, **rule, margin=50).promoted

    def test_a_model_that_is_better_but_badly_calibrated_is_refused_with_both_reasons(
        self, measured
    ):
        for bound, met in ((0.9, True), (0.001, False)):
            decision = self.decide(measured, split="ood", max_calibration_error=bound)
            assert [each.met for each in decision.conditions] == [True, met]
            assert decision.promoted == met
            assert "the whole interval is better" in decision.reason
            assert f"{'within' if met else 'above'} the bound of {bound:g}" in decision.reason

    def test_a_model_whose_encoder_gives_the_site_away_is_refused(self, measured):
        for bound, met in ((0.65, True), (0.3, False)):
            decision = self.decide(measured, split="ood", max_site_accuracy=bound)
            assert decision.promoted == met
            assert "0.60 (0.50–0.70) (chance 0.25)" in decision.reason

    def test_it_may_be_over_any_other_initialization(self, measured):
        ahead, behind = (
            self.decide(measured, initialization=first, over=second)
            for first, second in (("simclr", "scratch"), ("scratch", "simclr"))
        )
        assert behind.difference["value"] == pytest.approx(-ahead.difference["value"])
        assert behind.difference["low"] == pytest.approx(-ahead.difference["high"])
        assert not behind.promoted

    def test_what_cannot_be_measured_is_not_promoted(self, tmp_path):
        folders = write_inputs(tmp_path / "in", scans_table(12), estimable=False)
        run(folders, tmp_path / "out", promotion=RULE)
        decision = json.loads((tmp_path / "out/promotion.json").read_text())
        assert decision["promoted"] is False
        assert decision["rule"]["initialization"] == "simclr"
        assert "cannot be decided: no model was made: no labels in train" in decision["reason"]

    def test_without_a_rule_nothing_is(self, evaluated):
        decision = json.loads((evaluated.dir / "promotion.json").read_text())
        assert decision == {
            "promoted": False,
            "reason": "params.yaml declares no rule (evaluate.promotion).",
            "rule": None,
            "difference": None,
            "conditions": [],
        }


def test_it_publishes_through_the_shared_stage(usual, tmp_path):
    values = EvaluateParams(baseline="scratch", bootstraps=100)
    tasks = {"sex": TASKS["sex"]}
    names = {
        "ingest": "cohort",
        "preprocess": "volumes",
        "pretrain/simclr": "encoder",
        "finetune": "models",
    }
    stage.run(
        "evaluate",
        lambda work: evaluate(work, **usual.inputs, params=values, tasks=tasks, seed=0),
        to=stage.Destination(tmp_path / "evaluation"),
        params={"evaluate": values.model_dump(mode="json")},
        inputs={name: usual.root / folder for name, folder in names.items()},
    )
    record = json.loads((tmp_path / "evaluation/stage.json").read_text())
    assert list(record["contents"]) == ["metrics.json", "promotion.json"]
    assert record["summary"]["sex/simclr/1.0/test/auc/value"] > 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline: scratch\nbootstraps: 10", "bootstraps"),
        ("baseline: scratch\nmin_subjects: 1", "min_subjects"),
        ("bootstraps: 2000", "baseline: missing"),
        ("baseline: scratch\npromotion: {task: a, initialization: b, metric: f2, over: c}", "auc"),
        (
            "baseline: s\npromotion: {task: a, initialization: b, metric: r2, over: c, split: val}",
            "promotion.split",
        ),
        ("baseline: scratch\nbootstrap: 2000", "Did you mean 'bootstraps'"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(tmp_path, text, message):
    path = tmp_path / "evaluate.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        parameters.load(path, EvaluateParams)
