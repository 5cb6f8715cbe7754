from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from neurofoundry import metrics


def cohort(seed: int, scans: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, scans)
    labels[:classes] = range(classes)
    scores = np.round(random.dirichlet(np.ones(classes), scans), 1) + 0.05
    scores[np.arange(scans), labels] += 0.2
    return labels, scores / scores.sum(axis=1, keepdims=True)


def weights(seed: int, scans: int = 60, rows: int = 8) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 4, (rows, scans)).astype(float)
    drawn[:, :3] += 1  # every class is there
    return drawn


class TestMetricsAgainstOthers:
    @pytest.mark.parametrize("seed", range(4))
    def test_auc_is_the_share_of_pairs_ranked_rightly_with_ties_counting_half(self, seed):
        labels, scores = cohort(seed)
        for row, found in zip(
            weights(seed), metrics.auc(labels, scores[:, 1], weights(seed)), strict=True
        ):
            right = total = 0.0
            for i in np.flatnonzero(labels == 1):
                for j in np.flatnonzero(labels == 0):
                    pair = row[i] * row[j]
                    total += pair
                    right += pair * (
                        (scores[i, 1] > scores[j, 1]) + 0.5 * (scores[i, 1] == scores[j, 1])
                    )
            assert found == pytest.approx(right / total, abs=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_two_classes_agree_with_scikit_learn(self, seed):
        labels, p = cohort(seed)
        found = metrics.classification(labels, p, weights(seed), threshold=0.55)
        called = p[:, 1] >= 0.55
        for index, row in enumerate(weights(seed)):
            given = {"sample_weight": row}
            expected = {
                "auc": sk.roc_auc_score(labels, p[:, 1], **given),
                "average_precision": sk.average_precision_score(labels, p[:, 1], **given),
                "balanced_accuracy": sk.balanced_accuracy_score(labels, called, **given),
                "sensitivity": sk.recall_score(labels, called, **given),
                "specificity": sk.recall_score(labels, called, pos_label=0, **given),
                "brier": sk.brier_score_loss(labels, p[:, 1], **given),
            }
            for name, value in expected.items():
                assert found[name][index] == pytest.approx(value, abs=1e-12), name

    @pytest.mark.parametrize("seed", range(3))
    def test_three_classes_agree_with_scikit_learn(self, seed):
        labels, p = cohort(seed, classes=3)
        found = metrics.classification(labels, p, weights(seed))
        for index, row in enumerate(weights(seed)):
            given = {"sample_weight": row}
            area = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro", **given)
            precision = sk.average_precision_score(np.eye(3)[labels], p, average="macro", **given)
            recall = sk.balanced_accuracy_score(labels, p.argmax(1), **given)
            square = sk.brier_score_loss(labels, p, scale_by_half=False, **given)
            assert found["auc"][index] == pytest.approx(area, abs=1e-12)
            assert found["average_precision"][index] == pytest.approx(precision, abs=1e-12)
            assert found["balanced_accuracy"][index] == pytest.approx(recall, abs=1e-12)
            assert found["brier"][index] == pytest.approx(square, abs=1e-12)
        assert "sensitivity" not in found

    @pytest.mark.parametrize("seed", range(4))
    def test_regression_agrees_with_scikit_learn_and_numpy(self, seed):
        random = np.random.default_rng(seed)
        truth = random.normal(1000, 12, 60)  # far from zero, where moments lose digits
        output = truth + random.normal(2, 6, 60)
        found = metrics.regression(truth, output, weights(seed))
        for index, row in enumerate(weights(seed)):
            covariance = np.cov(truth, output, aweights=row)
            expected = {
                "mae": sk.mean_absolute_error(truth, output, sample_weight=row),
                "rmse": sk.root_mean_squared_error(truth, output, sample_weight=row),
                "r2": sk.r2_score(truth, output, sample_weight=row),
                "correlation": covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]),
            }
            for name, value in expected.items():
                assert found[name][index] == pytest.approx(value, rel=1e-9), name

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
        found, by_chance = metrics.calibration_error(right, p, np.stack([row, np.ones(200)]))
        assert found[0] == pytest.approx(expected, abs=1e-12)
        assert by_chance[0] > 0
        assert by_chance[1] == pytest.approx(0, abs=1e-12)

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


class TestInvariances:
    def test_auc_does_not_change_under_a_rising_function_and_turns_over_with_the_labels(self):
        labels, p = cohort(1)
        w, scores = weights(1), p[:, 1]
        assert np.allclose(
            metrics.auc(labels, np.exp(3 * scores), w), metrics.auc(labels, scores, w)
        )
        assert np.allclose(metrics.auc(1 - labels, scores, w), 1 - metrics.auc(labels, scores, w))

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

    def test_resamples_do_not_depend_on_the_order_of_the_scans(self):
        labels, p = cohort(4)
        persons = np.arange(60) // 2
        order = np.random.default_rng(0).permutation(60)

        def run(index: np.ndarray) -> np.ndarray:
            return metrics.resample(
                lambda w: metrics.auc(labels[index], p[index, 1], w),
                persons[index],
                count=50,
                seed=3,
            )

        assert np.allclose(run(np.arange(60)), run(order))


class TestResampling:
    def test_it_draws_whole_persons_and_the_metric_is_that_of_the_repeated_scans(self):
        labels, p = cohort(5)
        persons = np.array([f"p{i // 3}" for i in range(60)])
        drawn = metrics.resample(lambda w: w.T, persons, count=40, seed=1).T
        found = metrics.resample(
            lambda w: metrics.auc(labels, p[:, 1], w), persons, count=40, seed=1
        )
        assert (drawn[0] == 1).all()
        for row, value in zip(drawn, found, strict=True):
            assert (row.reshape(20, 3) == row.reshape(20, 3)[:, :1]).all()
            assert row[::3].sum() == 20
            scans = [i for i in range(60) for _ in range(int(row[i]))]
            assert value == pytest.approx(sk.roc_auc_score(labels[scans], p[scans, 1]))

    def test_every_resample_is_a_new_one_also_across_the_chunks_of_a_large_cohort(self):
        rows = metrics.resample(lambda w: w.T[:50], np.arange(20_000), count=120, seed=0).T
        assert len(np.unique(rows[1:], axis=0)) == 120
        assert rows[1:].mean() == pytest.approx(1, abs=0.05)
        assert rows[1:].var() == pytest.approx(1, abs=0.1)  # binomial, nearly Poisson

    def test_seed_and_key_decide(self):
        def run(**how: object) -> np.ndarray:
            return metrics.resample(lambda w: w.T, np.arange(9), count=5, **how)  # type: ignore[arg-type]

        assert (run(seed=1) == run(seed=1)).all()
        assert (run(seed=1) != run(seed=2)).any()
        assert (run(seed=1, key="test") != run(seed=1, key="ood")).any()

    def test_nine_in_ten_intervals_or_more_hold_the_truth_when_persons_have_several_scans(self):
        random = np.random.default_rng(7)
        truth = stats.norm.cdf(1.2 / np.sqrt(2))
        by_person, by_scan = 0, 0
        for number in range(300):
            scans_of = random.integers(1, 5, 70)
            person = np.arange(70).repeat(scans_of)
            ill = np.arange(70) % 2
            # Scans of one person are alike: correlation 0.8.
            between = random.normal(0, np.sqrt(0.8), 70)
            score = (1.2 * ill + between)[person] + random.normal(0, np.sqrt(0.2), len(person))
            for who in (person, np.arange(len(person))):
                samples = metrics.resample(
                    lambda w, s=score, y=ill[person]: metrics.auc(y, s, w),
                    who,
                    count=300,
                    seed=number,
                )
                found = metrics.estimate(samples)
                holds = found.low <= truth <= found.high
                if who is person:
                    by_person += holds
                else:
                    by_scan += holds
        assert 0.90 <= by_person / 300 <= 0.98
        assert by_scan / 300 < 0.90  # what resampling scans would have claimed


class TestIntervals:
    def test_it_is_the_percentiles_of_the_resamples(self):
        samples = np.r_[0.5, np.random.default_rng(0).normal(0.5, 0.1, 1000)]
        found = metrics.estimate(samples)
        expected = np.quantile(samples[1:], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(tuple(expected))
        assert found.value == 0.5

    def test_one_class_gives_no_number_but_the_reason(self):
        samples = metrics.auc(np.ones(9), np.arange(9.0), np.ones((20, 9)))
        assert np.isnan(samples).all()
        found = metrics.estimate(samples, reason="no healthy subjects")
        assert (found.value, found.low, found.high) == (None, None, None)
        assert found.reason == "no healthy subjects"

    def test_a_class_that_many_resamples_miss_gives_no_number(self):
        labels = np.array([1] + [0] * 30)  # missed by a third of the resamples
        samples = metrics.resample(
            lambda w: metrics.auc(labels, np.linspace(1, 0, 31), w),
            np.arange(31),
            count=200,
            seed=0,
        )
        found = metrics.estimate(samples)
        assert found.value is None
        assert "too few subjects" in found.reason

    def test_a_perfect_auc_does_not_claim_certainty(self):
        samples = np.ones(501)
        found = metrics.estimate(samples, exponent=metrics.perfection_exponent("auc", [12, 7]))
        assert found.value == found.high == 1
        assert found.low == pytest.approx(0.025 ** (1 / 7))
        assert metrics.estimate(samples).low is None

    @pytest.mark.parametrize("name", ["auc", "balanced_accuracy", "sensitivity", "specificity"])
    def test_perfection_is_as_unlikely_at_the_end_of_the_interval_as_the_bound_says(self, name):
        # Normal scores whose true metric is the lower end: how often is a sample perfect?
        ill, healthy = 6, 9
        exponent = metrics.perfection_exponent(name, [healthy, ill])
        low = metrics.estimate(np.ones(9), exponent=exponent).low
        shift = stats.norm.ppf(low) * (np.sqrt(2) if name == "auc" else 2)
        random = np.random.default_rng(0)
        positive = random.normal(shift / 2, 1, (20_000, ill))
        negative = random.normal(-shift / 2, 1, (20_000, healthy))
        perfect = {
            "auc": positive.min(1) > negative.max(1),
            "balanced_accuracy": (positive.min(1) > 0) & (negative.max(1) < 0),
            "sensitivity": positive.min(1) > 0,
            "specificity": negative.max(1) < 0,
        }[name]
        assert perfect.mean() <= 0.028
        if name != "auc":  # where the bound is sharp, or nearly
            assert perfect.mean() >= 0.01

    def test_a_hopeless_result_is_bounded_from_above(self):
        found = metrics.estimate(np.zeros(101), exponent=5)
        assert found.low == 0
        assert found.high == pytest.approx(1 - 0.025 ** (1 / 5))

    def test_a_calibrated_model_may_have_no_calibration_error_and_a_bad_one_has(self):
        random = np.random.default_rng(1)
        reaches_zero, claims = 0, 0
        for number in range(60):
            p = random.random(120)
            honest, wrong = random.random((2, 120)) < np.stack([p, p**4])
            for right in (honest, wrong):
                samples = metrics.resample(
                    lambda w, r=right, c=p: np.stack(metrics.calibration_error(r, c, w)),
                    np.arange(120),
                    count=200,
                    seed=number,
                )
                found = metrics.estimate(samples[0], by_chance=samples[1])
                assert found.low <= found.value <= found.high
                if right is honest:
                    reaches_zero += found.low == 0
                else:
                    claims += found.low > 0
        assert reaches_zero >= 0.9 * 60
        assert claims >= 0.9 * 60

    def test_few_scans_have_no_calibration_error(self):
        p = np.linspace(0, 1, 19)
        assert np.isnan(metrics.calibration_error(p > 0.5, p, np.ones((2, 19)))[0]).all()


class TestUndefined:
    def test_a_constant_output_has_no_correlation_and_a_constant_label_no_r2(self):
        varied, same = np.linspace(20, 80, 30), np.full(30, 63.1)
        rows = weights(0, scans=30)
        assert np.isnan(metrics.regression(varied, same, rows)["correlation"]).all()
        assert not np.isnan(metrics.regression(varied, same, rows)["r2"]).any()
        assert np.isnan(metrics.regression(same, varied, rows)["r2"]).all()

    def test_without_a_threshold_nothing_is_called(self):
        labels, p = cohort(0)
        found = metrics.classification(labels, p, weights(0))
        for name in ("balanced_accuracy", "sensitivity", "specificity"):
            assert np.isnan(found[name]).all()
        assert not np.isnan(found["auc"]).any()

    def test_one_class_or_one_score_gives_no_threshold(self):
        assert metrics.youden_threshold(np.array([True, True]), np.array([0.1, 0.9])) is None
        assert metrics.youden_threshold(np.array([True, False]), np.array([0.4, 0.4])) is None


class TestDifferences:
    def test_paired_resamples_see_a_small_difference_that_separate_ones_would_not(self):
        random = np.random.default_rng(0)
        labels = np.arange(80) % 2
        hard = random.normal(0, 1.5, 80)  # the same scans are hard for both
        models = [1 * labels + hard, 1.5 * labels + hard]
        first, second = metrics.resample(
            lambda w: np.stack([metrics.auc(labels, s, w) for s in models[::-1]]),
            np.arange(80),
            count=1000,
            seed=0,
        )
        paired = metrics.difference(first, second)
        separate = metrics.difference(first, np.r_[second[:1], np.roll(second[1:], 1)])
        assert paired.value == pytest.approx(first[0] - second[0])
        assert paired.excludes_zero
        assert paired.p < 0.05
        assert not separate.excludes_zero

    def test_p_is_below_five_percent_where_the_interval_excludes_zero(self):
        for shift in np.linspace(0, 0.4, 41):
            noise = np.random.default_rng(3).normal(shift, 0.1, 2000)
            found = metrics.difference(
                np.r_[shift, noise], np.random.default_rng(4).normal(0, 1e-6, 2001)
            )
            assert found.excludes_zero == (found.p < 0.05) or found.p == pytest.approx(
                0.05, abs=2e-3
            )

    def test_a_model_does_not_differ_from_itself(self):
        samples = np.random.default_rng(0).random(300)
        found = metrics.difference(samples, samples)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
        assert not found.excludes_zero

    def test_against_a_constant_the_interval_of_perfection_counts(self):
        perfect, chance = np.ones(101), np.full(101, 0.5)
        few = metrics.difference(perfect, chance, exponent=4)
        many = metrics.difference(perfect, chance, exponent=9)
        assert (few.value, few.low) == (0.5, pytest.approx(0.025 ** (1 / 4) - 0.5))
        assert not few.excludes_zero
        assert few.p == pytest.approx(2 * 0.5**4)
        assert many.excludes_zero
        assert many.p == pytest.approx(2 * 0.5**9)

    def test_two_perfect_models_may_still_differ(self):
        found = metrics.difference(np.ones(101), np.ones(101), exponent=9)
        assert found.value == found.high == 0
        assert found.low < -0.3
        assert found.p == 1

    def test_what_cannot_be_measured_has_no_difference(self):
        unknown = np.full(101, np.nan)
        for pair in [(unknown, np.ones(101)), (np.ones(101), unknown), (unknown, unknown)]:
            assert metrics.difference(*pair, reason="no").reason == "no"


def test_holm_adjusts_as_published():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.9, 0.8]) == [1, 1]
    assert metrics.holm([]) == []
