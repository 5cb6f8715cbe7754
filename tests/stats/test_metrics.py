"""Metrics against scikit-learn, published examples and loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from neurofoundry.stats import metrics
from tests.stats.conftest import RATINGS, cohort, weights


class TestAgainstOthers:
    @pytest.mark.parametrize("seed", range(4))
    def test_auc_is_the_share_of_pairs_ranked_rightly_with_ties_counting_half(self, seed):
        labels, scores = cohort(seed)
        for row, area in zip(
            weights(seed), metrics.ranking(labels, scores[:, 1], weights(seed))[0], strict=True
        ):
            right = total = 0.0
            for i in np.flatnonzero(labels == 1):
                for j in np.flatnonzero(labels == 0):
                    pair = row[i] * row[j]
                    total += pair
                    right += pair * (
                        (scores[i, 1] > scores[j, 1]) + 0.5 * (scores[i, 1] == scores[j, 1])
                    )
            assert area == pytest.approx(right / total, abs=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_roc_curves_are_those_of_scikit_learn_in_every_resample(self, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(2, size=60)
        scores = (labels + random.normal(size=60)).round(1 - seed % 2)  # with ties
        weights = random.integers(0, 3, (4, 60)).astype(float)
        weights[3, labels == 1] = 0
        shares = np.linspace(0, 1, 41)
        curves = metrics.sensitivity_at(labels, scores, weights, shares)
        for row in range(3):
            fpr, tpr, _ = sk.roc_curve(labels, scores, sample_weight=weights[row])
            np.testing.assert_allclose(curves[:, row], np.interp(shares, fpr, tpr), atol=1e-12)
        assert np.isnan(curves[:, 3]).all()

    @pytest.mark.parametrize("seed", range(4))
    def test_two_classes_agree_with_scikit_learn(self, seed):
        labels, p = cohort(seed)
        values = metrics.classification(labels, p, weights(seed), threshold=0.55)
        called = p[:, 1] >= 0.55
        for index, row in enumerate(weights(seed)):
            given = {"sample_weight": row}
            expected = {
                "auc": sk.roc_auc_score(labels, p[:, 1], **given),
                "average_precision": sk.average_precision_score(labels, p[:, 1], **given),
                "balanced_accuracy": sk.balanced_accuracy_score(labels, called, **given),
                "sensitivity": sk.recall_score(labels, called, **given),
                "specificity": sk.recall_score(labels, called, pos_label=0, **given),
                "f1": sk.f1_score(labels, called, **given),
                "brier": sk.brier_score_loss(labels, p[:, 1], **given),
            }
            for name, value in expected.items():
                assert values[name][index] == pytest.approx(value, abs=1e-12), name

    @pytest.mark.parametrize("seed", range(3))
    def test_three_classes_agree_with_scikit_learn(self, seed):
        labels, p = cohort(seed, classes=3)
        values = metrics.classification(labels, p, weights(seed))
        for index, row in enumerate(weights(seed)):
            given = {"sample_weight": row}
            area = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro", **given)
            precision = sk.average_precision_score(np.eye(3)[labels], p, average="macro", **given)
            recall = sk.balanced_accuracy_score(labels, p.argmax(1), **given)
            harmonic = sk.f1_score(labels, p.argmax(1), average="macro", **given)
            square = sk.brier_score_loss(labels, p, scale_by_half=False, **given)
            assert values["auc"][index] == pytest.approx(area, abs=1e-12)
            assert values["average_precision"][index] == pytest.approx(precision, abs=1e-12)
            assert values["balanced_accuracy"][index] == pytest.approx(recall, abs=1e-12)
            assert values["f1"][index] == pytest.approx(harmonic, abs=1e-12)
            assert values["brier"][index] == pytest.approx(square, abs=1e-12)
        assert "sensitivity" not in values

    @pytest.mark.parametrize("seed", range(4))
    def test_regression_agrees_with_scikit_learn_and_numpy(self, seed):
        random = np.random.default_rng(seed)
        truth = random.normal(1000, 12, 60)  # far from zero, where moments lose digits
        output = truth + random.normal(2, 6, 60)
        values = metrics.regression(truth, output, weights(seed))
        for index, row in enumerate(weights(seed)):
            covariance = np.cov(truth, output, aweights=row)
            expected = {
                "mae": sk.mean_absolute_error(truth, output, sample_weight=row),
                "rmse": sk.root_mean_squared_error(truth, output, sample_weight=row),
                "r2": sk.r2_score(truth, output, sample_weight=row),
                "correlation": covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]),
            }
            for name, value in expected.items():
                assert values[name][index] == pytest.approx(value, rel=1e-9), name

    def test_calibration_error_agrees_with_a_loop_over_bins_of_equal_mass(self):
        random = np.random.default_rng(0)
        p = random.random(200)
        right = random.random(200) < p**2
        row = random.integers(0, 3, 200).astype(float)
        edges = np.quantile(p, np.arange(1, 10) / 10)
        expected = 0.0
        for b in range(10):
            inside = [i for i in range(200) if np.sum(p[i] >= edges) == b]
            assert len(inside) == 20
            mass = sum(row[i] for i in inside)
            stated = sum(row[i] * p[i] for i in inside) / mass
            observed = sum(row[i] * right[i] for i in inside) / mass
            expected += mass / row.sum() * abs(stated - observed)
        error, by_chance = metrics.calibration_error(right, p, np.stack([row, np.ones(200)]))
        assert error[0] == pytest.approx(expected, abs=1e-12)
        assert by_chance[0] > 0
        assert by_chance[1] == pytest.approx(0, abs=1e-12)

    def test_ties_share_a_bin_and_one_at_an_edge_belongs_above(self):
        confidence = np.repeat([0.2, 0.4, 0.9], [15, 10, 15])
        edges = np.quantile(confidence, [0.25, 0.5, 0.75])
        assert 0.4 in edges
        bins = metrics.calibration_bins(confidence)
        assert bins.tolist() == [sum(p >= edge for edge in set(edges)) for p in confidence]

    @pytest.mark.parametrize("seed", range(5))
    def test_the_threshold_is_as_good_as_the_best_of_all(self, seed):
        labels, p = cohort(seed)
        threshold = metrics.youden_threshold(labels == 1, p[:, 1])

        def gain(t: float) -> float:
            called = p[:, 1] >= t
            return called[labels == 1].mean() - called[labels == 0].mean()

        best = max(gain(t) for t in np.linspace(0, 1, 5001))
        assert gain(threshold) == pytest.approx(best)
        assert threshold not in p[:, 1]  # between two scores, so that rounding moves nobody

    def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_chosen(self):
        ill, scores = np.array([False, True, False, True]), np.array([0.1, 0.3, 0.6, 0.8])
        # At 0.2 and at 0.7 three of the four are called rightly.
        assert metrics.youden_threshold(ill, scores) == pytest.approx(0.7)


class TestInvariances:
    def test_auc_does_not_change_under_a_rising_function_and_turns_over_with_the_labels(self):
        labels, p = cohort(1)
        w, scores = weights(1), p[:, 1]
        area, _ = metrics.ranking(labels, scores, w)
        assert np.allclose(metrics.ranking(labels, np.exp(3 * scores), w)[0], area)
        assert np.allclose(metrics.ranking(1 - labels, scores, w)[0], 1 - area)

    def test_scaling_the_weights_changes_nothing(self):
        labels, p = cohort(2)
        once = metrics.classification(labels, p, weights(2), threshold=0.5)
        thrice = metrics.classification(labels, p, 3 * weights(2), threshold=0.5)
        for name, values in once.items():
            assert np.allclose(values, thrice[name]), name

    def test_a_weight_of_two_is_the_scan_twice(self):
        labels, p = cohort(3)
        row = weights(3, rows=1)
        times = row[0].astype(int)
        repeated = metrics.classification(
            labels.repeat(times), p.repeat(times, axis=0), np.ones((1, times.sum())), threshold=0.5
        )
        weighted = metrics.classification(labels, p, row, threshold=0.5)
        for name in ("auc", "average_precision", "brier", "balanced_accuracy"):
            assert weighted[name][0] == pytest.approx(repeated[name][0]), name


class TestUndefined:
    def test_a_constant_output_has_no_correlation_and_a_constant_label_no_r2(self):
        varied, same = np.linspace(20, 80, 30), np.full(30, 63.1)
        rows = weights(0, scans=30)
        assert np.isnan(metrics.regression(varied, same, rows)["correlation"]).all()
        assert not np.isnan(metrics.regression(varied, same, rows)["r2"]).any()
        assert np.isnan(metrics.regression(same, varied, rows)["r2"]).all()

    def test_without_a_threshold_nothing_is_called(self):
        labels, p = cohort(0)
        values = metrics.classification(labels, p, weights(0))
        for name in ("balanced_accuracy", "sensitivity", "specificity"):
            assert np.isnan(values[name]).all()
        assert not np.isnan(values["auc"]).any()

    def test_a_scan_at_the_threshold_is_called(self):
        p = np.array([0.2, 0.5, 0.5, 0.8])
        labels, once = np.array([0, 0, 1, 1]), np.ones((1, 4))
        values = metrics.classification(labels, np.stack([1 - p, p], 1), once, threshold=0.5)
        assert (values["sensitivity"][0], values["specificity"][0]) == (1, 0.5)

    def test_one_class_or_one_score_gives_no_threshold(self):
        assert metrics.youden_threshold(np.array([True, True]), np.array([0.1, 0.9])) is None
        assert metrics.youden_threshold(np.array([True, False]), np.array([0.4, 0.4])) is None

    def test_calibration_errors_take_twenty_scans(self):
        for scans, known in ((19, False), (20, True)):
            p = np.linspace(0, 1, scans)
            error, by_chance = metrics.calibration_error(p > 0.5, p, np.ones((2, scans)))
            assert (np.isfinite(error) == known).all()
            assert (np.isfinite(by_chance) == known).all()


class TestAgreement:
    def test_icc_is_that_of_the_worked_example_of_shrout_and_fleiss(self):
        agreement, consistency = metrics.icc(RATINGS, np.ones((1, 6)))
        assert agreement[0] == pytest.approx(0.29, abs=0.005)  # their table 4
        assert consistency[0] == pytest.approx(0.71, abs=0.005)

    def test_a_weight_of_two_counts_a_person_twice_and_a_further_axis_is_on_its_own(self):
        ratings = np.random.default_rng(0).normal(size=(6, 3, 4)) + np.arange(6)[:, None, None]
        twice = metrics.icc(ratings[[0, 0, 1, 2, 3, 5]], np.ones((1, 6)))
        weighted = metrics.icc(ratings, np.array([[2.0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]))
        for one, other in zip(twice, weighted, strict=True):
            assert other.shape == (2, 4)
            assert other[0] == pytest.approx(one[0])
        for index in range(4):
            alone = metrics.icc(ratings[:, :, index], np.ones((1, 6)))
            assert [each[1, index] for each in weighted] == pytest.approx([a[0] for a in alone])


class TestCalibrationLine:
    def test_it_is_that_of_unpenalized_logistic_regressions(self):
        random = np.random.default_rng(3)
        logit = random.normal(0, 1, 900)
        labels = random.random(900) < special.expit(logit)
        p = special.expit(2 * logit + 1)  # too extreme and too high
        rows = np.stack([np.ones(900), np.random.default_rng(0).integers(0, 3, 900)])
        intercept, slope = metrics.calibration_line(labels, p, rows.astype(float))
        x = special.logit(p)
        for row in range(2):
            oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], labels, rows[row])
            # A resample takes one step from the sample: close, not equal.
            assert slope[row] == pytest.approx(oracle.coef_[0, 0], abs=1e-5 if row == 0 else 0.01)
            held = intercept[row] + x
            excess = rows[row] @ (labels - special.expit(held)) / rows[row].sum()
            assert excess == pytest.approx(0, abs=1e-8 if row == 0 else 0.002)
        assert slope[0] == pytest.approx(0.5, abs=0.1)
        assert intercept[0] < -0.4

    def test_a_model_that_separates_the_classes_has_none(self):
        labels = np.arange(40) >= 20
        line = metrics.calibration_line(labels, np.linspace(0.01, 0.99, 40), np.ones((3, 40)))
        assert np.isnan(line).all()

    def test_the_slope_of_the_error_is_that_of_scipy(self):
        random = np.random.default_rng(3)
        ages = random.uniform(40, 90, 300)
        outputs = 65 + 0.5 * (ages - 65) + random.normal(0, 4, 300) + 3
        rows = np.stack([np.ones(300), random.integers(1, 4, 300)]).astype(float)
        slopes = metrics.bias_slope(ages, outputs, rows)
        for row, slope in zip(rows, slopes, strict=True):
            counts = row.astype(int)
            errors = (outputs - ages).repeat(counts)
            assert slope == pytest.approx(stats.linregress(ages.repeat(counts), errors).slope)
