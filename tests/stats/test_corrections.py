"""Corrections of calibration: known lines are undone, and Platt's targets are his."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from neurofoundry.stats import corrections, metrics
from tests.stats.conftest import two_sided


class TestPlatt:
    @pytest.mark.parametrize(("ill", "healthy"), [(1, 1), (3, 8), (40, 5)])
    def test_classes_that_are_separated_get_laplaces_rule_of_succession(self, ill, healthy):
        labels = np.arange(ill + healthy) < ill
        outputs = two_sided(np.where(labels, 1.7, -0.6))
        correct = corrections.platt(labels.astype(int), outputs, "validation")
        corrected = correct(outputs)[:, 1]
        # Two outputs and two free parameters: the line meets both targets.
        assert corrected[labels] == pytest.approx((ill + 1) / (ill + 2))
        assert corrected[~labels] == pytest.approx(1 / (healthy + 2))

    def test_the_line_has_the_largest_likelihood_of_the_smoothed_targets(self):
        random = np.random.default_rng(0)
        labels = random.integers(0, 2, 25)
        logit = random.normal(labels, 1)
        ill, healthy = labels.sum(), (1 - labels).sum()
        targets = np.where(labels == 1, (ill + 1) / (ill + 2), 1 / (healthy + 2))

        def loss(line: np.ndarray) -> float:
            z = line[0] + line[1] * logit
            return float(np.sum(np.logaddexp(0, z) - targets * z))

        a, b = optimize.minimize(loss, [0.0, 1.0], tol=1e-12).x
        outputs = two_sided(logit)
        correct = corrections.platt(labels, outputs, "validation")
        np.testing.assert_allclose(correct(outputs)[:, 1], special.expit(a + b * logit), atol=1e-6)
        assert correct(outputs).sum(axis=1) == pytest.approx(1)

    def test_the_same_output_for_everybody_cannot_be_corrected(self):
        reason = corrections.platt(np.array([0, 1, 1]), two_sided(np.zeros(3)), "validation")
        assert reason == "the same output for everybody"


class TestTemperature:
    def test_it_has_the_least_cross_entropy_and_calls_everybody_the_same(self):
        random = np.random.default_rng(0)
        labels = random.integers(0, 3, 300)
        honest = special.softmax(random.normal(0, 1, (300, 3)) + np.eye(3)[labels], axis=1)
        outputs = special.softmax(3 * np.log(honest), axis=1)
        corrected = corrections.temperature(labels, outputs)(outputs)
        assert (corrected.argmax(axis=1) == outputs.argmax(axis=1)).all()
        once = np.ones((1, 300))
        assert metrics.brier(labels, corrected, once) < metrics.brier(labels, outputs, once)

        def entropy(p: np.ndarray) -> float:
            return float(-np.log(p[np.arange(300), labels]).mean())

        tried = [
            entropy(special.softmax(np.log(outputs) / t, axis=1)) for t in np.geomspace(0.1, 10, 99)
        ]
        assert entropy(corrected) <= min(tried) + 1e-9


class TestLine:
    def test_it_undoes_the_line_of_the_outputs_on_the_labels_and_no_other(self):
        labels = np.linspace(40, 90, 30)
        noise = np.random.default_rng(0).normal(0, 2, 30)
        outputs = 20 + 0.7 * labels + noise
        slope, intercept = np.polyfit(labels, outputs, 1)
        correct = corrections.line(labels, outputs, "validation")
        new = np.array([50.0, 70.0])
        assert correct(intercept + slope * new) == pytest.approx(new)
        undone = correct(outputs)
        assert np.polyfit(labels, undone, 1)[0] == pytest.approx(1)
        assert undone.mean() == pytest.approx(labels.mean())

    @pytest.mark.parametrize(
        ("labels", "slope", "reason"),
        [
            (np.arange(4.0), 1.0, "training has too few labels"),
            (np.full(9, 60.0), 1.0, "training has too few labels"),
            (np.arange(9.0), 0.049, "on training the outputs do not follow the label"),
            (np.arange(9.0), -1.0, "on training the outputs do not follow the label"),
        ],
    )
    def test_too_few_labels_or_outputs_that_do_not_follow_give_a_reason(
        self, labels, slope, reason
    ):
        assert reason in corrections.line(labels, slope * labels, "training")

    def test_five_labels_and_a_slope_of_a_twentieth_are_enough(self):
        labels = np.arange(5.0)
        correct = corrections.line(labels, 0.051 * labels, "training")
        assert correct(0.051 * labels) == pytest.approx(labels)
