"""Whether a model is promoted."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import promotion
from neurofoundry.evaluate.evidence import read_evidence
from neurofoundry.evaluate.measure import baselines, performance
from neurofoundry.evaluate.params import EvaluateParams, Promotion
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs

RULE = {"task": "alzheimers", "initialization": "simclr", "metric": "auc", "over": "scratch"}


@pytest.fixture(scope="module")
def measured(usual):
    earlier = usual.read()
    tasks = [
        read_evidence(name, TASKS[name], earlier, usual.inputs["models"])
        for name in ("alzheimers", "age")
    ]
    tasks = baselines.add(tasks, earlier, Volumes(usual.inputs["volumes"]))
    rule = Promotion(**RULE | {"initialization": "scratch", "over": "simclr"})
    values = EvaluateParams(reference="scratch", bootstraps=200, promotion=rule)
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
        rule = {"task": "age", "metric": "mae", "over": "baseline-mean"}
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "bmi"}, r"promotion\.task: 'bmi'"),
        ({"metric": "mae"}, r"promotion\.metric: alzheimers is a classification"),
        ({"initialization": "dino"}, r"promotion\.initialization: 'dino'"),
        ({"over": "baseline-mean"}, r"promotion\.over: 'baseline-mean'.*baseline-prevalence"),
        ({"over": "simclr"}, r"promotion\.over: 'simclr'"),
    ],
)
def test_a_promotion_rule_that_cannot_be_decided_is_refused(folders, tmp_path, change, message):
    rule = {"task": "alzheimers", "initialization": "simclr", "metric": "auc", "over": "scratch"}
    with pytest.raises(UsageError, match=message):
        run(folders, tmp_path / "out", promotion=rule | change)
