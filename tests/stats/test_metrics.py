from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from neurofoundry.stats import comparisons, intervals, metrics, scales


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

    @pytest.mark.parametrize("seed", range(3))
    def test_roc_curves_are_those_of_scikit_learn_in_every_resample(self, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(2, size=60)
        scores = (labels + random.normal(size=60)).round(1 - seed % 2)  # with ties
        weights = random.integers(0, 3, (4, 60)).astype(float)
        weights[3, labels == 1] = 0
        shares = np.linspace(0, 1, 41)
        found = metrics.sensitivity_at(labels, scores, weights, shares)
        for row in range(3):
            fpr, tpr, _ = sk.roc_curve(labels, scores, sample_weight=weights[row])
            np.testing.assert_allclose(found[:, row], np.interp(shares, fpr, tpr), atol=1e-12)
        assert np.isnan(found[:, 3]).all()

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
                "f1": sk.f1_score(labels, called, **given),
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
            harmonic = sk.f1_score(labels, p.argmax(1), average="macro", **given)
            square = sk.brier_score_loss(labels, p, scale_by_half=False, **given)
            assert found["auc"][index] == pytest.approx(area, abs=1e-12)
            assert found["average_precision"][index] == pytest.approx(precision, abs=1e-12)
            assert found["balanced_accuracy"][index] == pytest.approx(recall, abs=1e-12)
            assert found["f1"][index] == pytest.approx(harmonic, abs=1e-12)
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
            return intervals.resample(
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
        drawn = intervals.resample(lambda w: w.T, persons, count=40, seed=1).T
        found = intervals.resample(
            lambda w: metrics.auc(labels, p[:, 1], w), persons, count=40, seed=1
        )
        assert (drawn[0] == 1).all()
        for row, value in zip(drawn, found, strict=True):
            assert (row.reshape(20, 3) == row.reshape(20, 3)[:, :1]).all()
            assert row[::3].sum() == 20
            scans = [i for i in range(60) for _ in range(int(row[i]))]
            assert value == pytest.approx(sk.roc_auc_score(labels[scans], p[scans, 1]))

    def test_every_resample_is_a_new_one_also_across_the_chunks_of_a_large_cohort(self):
        rows = intervals.resample(lambda w: w.T[:50], np.arange(20_000), count=120, seed=0).T
        assert len(np.unique(rows[1:], axis=0)) == 120
        assert rows[1:].mean() == pytest.approx(1, abs=0.05)
        assert rows[1:].var() == pytest.approx(1, abs=0.1)  # binomial, nearly Poisson

    def test_seed_and_key_decide(self):
        def run(**how: object) -> np.ndarray:
            return intervals.resample(lambda w: w.T, np.arange(9), count=5, **how)  # type: ignore[arg-type]

        assert (run(seed=1) == run(seed=1)).all()
        assert (run(seed=1) != run(seed=2)).any()
        assert (run(seed=1, key="test") != run(seed=1, key="ood")).any()


class TestIntervals:
    def test_it_is_a_t_interval_on_the_scale_of_the_metric(self):
        random = np.random.default_rng(0)
        samples = np.r_[0.8, random.normal(0.8, 0.05, 5000)]
        error = samples[1:].std(ddof=1)
        found = intervals.estimate(samples, "auc", [30, 12])
        reach = stats.t.ppf(0.975, 22) * error / (0.8 * 0.2)
        assert (found.low, found.high) == pytest.approx(
            (special.expit(special.logit(0.8) - reach), special.expit(special.logit(0.8) + reach))
        )
        found = intervals.estimate(8 * samples, "mae", [21])
        reach = stats.t.ppf(0.975, 20) * error / 0.8 * np.sqrt(21 / 20)
        assert (found.low, found.high) == pytest.approx((6.4 / np.exp(reach), 6.4 * np.exp(reach)))
        found = intervals.estimate(samples, "correlation", [21])
        reach = stats.t.ppf(0.975, 20) * error / (1 - 0.64) * np.sqrt(21 / 20)
        assert (found.low, found.high) == pytest.approx(
            (np.tanh(np.arctanh(0.8) - reach), np.tanh(np.arctanh(0.8) + reach))
        )
        assert found.value == 0.8

    @pytest.mark.parametrize("name", sorted(metrics.METRICS))
    def test_it_stays_among_the_values_that_the_metric_can_take(self, name):
        samples = np.r_[0.97, np.random.default_rng(0).normal(0.95, 0.2, 500)]
        found = intervals.estimate(samples, name, [4, 4])
        assert found.low < 0.97 < found.high
        if name in ("brier", "mae", "rmse", "distance_ratio"):
            assert found.low > 0
        elif metrics.METRICS[name].scale is not scales.LINEAR:
            assert found.high <= 1

    def test_one_class_gives_no_number_but_the_reason(self):
        samples = metrics.auc(np.ones(9), np.arange(9.0), np.ones((20, 9)))
        assert np.isnan(samples).all()
        found = intervals.estimate(samples, "auc", [1, 9], reason="no healthy subjects")
        assert (found.value, found.low, found.high) == (None, None, None)
        assert found.reason == "no healthy subjects"

    def test_a_class_that_many_resamples_miss_gives_no_number(self):
        labels = np.array([1] + [0] * 30)  # missed by a third of the resamples
        samples = intervals.resample(
            lambda w: metrics.auc(labels, np.linspace(1, 0, 31), w),
            np.arange(31),
            count=200,
            seed=0,
        )
        found = intervals.estimate(samples, "auc", [30, 1])
        assert found.value is None
        assert "too few subjects" in found.reason

    def test_a_perfect_auc_does_not_claim_certainty(self):
        samples = np.ones(501)
        found = intervals.estimate(samples, "auc", [12, 7])
        assert found.value == found.high == 1
        assert found.low == pytest.approx(0.025 ** (1 / 7))
        assert intervals.estimate(samples, "average_precision", [12, 7]).low is None

    @pytest.mark.parametrize("name", ["auc", "balanced_accuracy", "sensitivity", "specificity"])
    def test_perfection_is_as_unlikely_at_the_end_of_the_interval_as_the_bound_says(self, name):
        # Normal scores whose true metric is the lower end: how often is a sample perfect?
        ill, healthy = 6, 9
        low = intervals.estimate(np.ones(9), name, [healthy, ill]).low
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
        found = intervals.estimate(np.zeros(101), "auc", [5, 8])
        assert found.low == 0
        assert found.high == pytest.approx(1 - 0.025 ** (1 / 5))

    def test_a_calibrated_model_may_have_no_calibration_error_and_a_bad_one_has(self):
        random = np.random.default_rng(1)
        reaches_zero, claims = 0, 0
        for number in range(60):
            p = random.random(120)
            honest, wrong = random.random((2, 120)) < np.stack([p, p**4])
            for right in (honest, wrong):
                samples = intervals.resample(
                    lambda w, r=right, c=p: np.stack(metrics.calibration_error(r, c, w)),
                    np.arange(120),
                    count=200,
                    seed=number,
                )
                found = intervals.estimate(samples[0], "ece", [60, 60], by_chance=samples[1])
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


OVARIAN = """
3.0 5.8 10 0   3.2 6.3  5 1   3.9 6.8  3 1   2.8 4.8  6 0   3.2 5.8  3 1   0.9 4.0  5 0
2.5 5.7  8 0   1.6 5.6  5 1   3.8 5.7  5 1   3.7 6.7  6 1   3.2 5.4  4 1   3.8 6.6  6 1
4.1 6.6  5 1   3.6 5.7  5 1   4.3 7.0  4 1   3.6 6.7  4 0   2.3 4.4  6 1   4.2 7.6  4 0
4.0 6.6  6 0   3.5 5.8  6 1   3.8 6.8  7 1   3.0 4.7  8 0   4.5 7.4  5 1   3.7 7.4  5 1
3.1 6.6  6 1   4.1 8.2  6 1   4.3 7.0  5 1   4.3 6.5  4 1   3.2 5.1  5 1   2.6 4.7  6 1
3.3 6.8  6 0   1.7 4.0  7 0   3.7 6.1  5 1   3.3 6.3  7 1   4.2 7.7  6 1   3.5 6.2  5 1
2.9 5.7  9 0   2.1 4.8  7 1   2.8 6.2  8 0   4.0 7.0  7 1   3.3 5.7  6 1   3.7 6.9  5 1
3.6 6.6  5 1
"""
"""DeLong et al. 1988: albumin, total protein, K-G score and outcome of 43 patients."""


def two_sided(scores: np.ndarray) -> np.ndarray:
    """Scores (models, scans) as what a two-class model says."""
    p = special.expit(scores)
    return np.stack([1 - p, p], axis=-1)


class TestDeLong:
    def test_it_gives_the_published_areas_errors_and_test_of_the_ovarian_cancer_data(self):
        rows = np.array(OVARIAN.split(), float).reshape(-1, 4)
        scores = np.stack([rows[:, 0], rows[:, 1], 10 - rows[:, 2]])
        areas, covariance = comparisons.auc_covariance(
            rows[:, 3].astype(int), two_sided(scores), np.arange(len(rows))
        )
        # SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"
        assert areas == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
        assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
        contrast = np.array([[1, 0, -1], [0, 1, -1]])
        spread = contrast @ covariance @ contrast.T
        assert np.sqrt(np.diag(spread)) == pytest.approx([0.0953, 0.1046], abs=5e-5)
        found = contrast @ areas
        assert found @ np.linalg.solve(spread, found) == pytest.approx(2.5340, abs=5e-5)

    @pytest.mark.parametrize("seed", range(3))
    def test_with_several_scans_a_person_it_is_obuchowski_written_as_loops(self, seed):
        random = np.random.default_rng(seed)
        persons = random.integers(0, 15, 40)
        labels = random.integers(0, 2, 40)  # of one person both may occur
        scores = np.round(random.normal(labels, 1, (2, 40)) + persons / 9, 1)
        names = range(15)
        kernel = [
            {
                (i, j): float(s[i] > s[j]) + 0.5 * (s[i] == s[j])
                for i in np.flatnonzero(labels == 1)
                for j in np.flatnonzero(labels == 0)
            }
            for s in scores
        ]
        ill, well = (labels == 1).sum(), (labels == 0).sum()
        area = [sum(k.values()) / (ill * well) for k in kernel]

        def sums(model: int, person: int) -> tuple[float, float]:
            """Of a person's ill scans, and of the healthy, how far they are from the mean."""
            of_ill = of_well = 0.0
            for i in np.flatnonzero(persons == person):
                if labels[i] == 1:
                    mine = [v for (a, _), v in kernel[model].items() if a == i]
                    of_ill += np.mean(mine) - area[model]
                else:
                    mine = [v for (_, b), v in kernel[model].items() if b == i]
                    of_well += np.mean(mine) - area[model]
            return of_ill, of_well

        with_ill = len(set(persons[labels == 1]))
        with_well = len(set(persons[labels == 0]))
        everybody = len(set(persons))
        expected = np.zeros((2, 2))
        for one in range(2):
            for other in range(2):
                pairs = [(sums(one, who), sums(other, who)) for who in names]
                s10 = sum(p[0] * q[0] for p, q in pairs) * with_ill / ((with_ill - 1) * ill)
                s01 = sum(p[1] * q[1] for p, q in pairs) * with_well / ((with_well - 1) * well)
                s11 = sum(p[0] * q[1] + p[1] * q[0] for p, q in pairs)
                s11 *= everybody / (everybody - 1)
                expected[one, other] = s10 / ill + s01 / well + s11 / (ill * well)
        areas, covariance = comparisons.auc_covariance(labels, two_sided(scores), persons)
        assert areas == pytest.approx(area)
        assert covariance == pytest.approx(expected)

    def test_it_agrees_with_the_bootstrap_also_for_three_classes(self):
        random = np.random.default_rng(0)
        persons = np.arange(600) // 2
        labels = np.arange(300).repeat(2) % 3
        noise = random.normal(0, 1, (300, 3)).repeat(2, axis=0)
        p = [np.eye(3)[labels] + s * noise + random.normal(0, 0.5, (600, 3)) for s in (1, 1.3)]
        p = np.stack([special.softmax(each, axis=1) for each in p])
        areas, covariance = comparisons.auc_covariance(labels, p, persons)
        samples = intervals.resample(
            lambda w: np.stack([metrics.classification(labels, each, w)["auc"] for each in p]),
            persons,
            count=1500,
            seed=0,
        )
        assert areas == pytest.approx(samples[:, 0])
        assert covariance == pytest.approx(np.cov(samples[:, 1:]), rel=0.12)


JUDGES = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
"""Six targets rated by four judges: table 2 of Shrout & Fleiss (1979)."""


class TestAgreement:
    def test_icc_is_that_of_the_worked_example_of_shrout_and_fleiss(self):
        agreement, consistency = metrics.icc(JUDGES, np.ones((1, 6)))
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

    def test_intervals_are_those_that_r_psych_prints_for_the_worked_example(self):
        # As printed by psych::ICC for these ratings: ICC2 0.29 from 0.019 to 0.76, ICC3 0.71 from
        # 0.342 to 0.95. It follows Shrout & Fleiss, whose article has no intervals for them.
        agreement, consistency = intervals.icc_estimates(JUDGES)
        assert (agreement.low, agreement.high) == pytest.approx((0.019, 0.76), abs=0.005)
        assert agreement.low == pytest.approx(0.019, abs=0.0005)
        assert consistency.low == pytest.approx(0.342, abs=0.0005)
        assert consistency.high == pytest.approx(0.95, abs=0.005)

    @pytest.mark.parametrize("raters", [2, 3])
    def test_intervals_end_where_a_naive_analysis_of_variance_has_a_chance_of_a_fortieth(
        self, raters
    ):
        x = np.random.default_rng(raters).normal(size=(7, raters)) + 1.5 * np.arange(7)[:, None]
        grand, n = x.mean(), 7
        bms = sum(raters * (row.mean() - grand) ** 2 for row in x) / (n - 1)
        ems = sum(
            (x[i, j] - x[i].mean() - x[:, j].mean() + grand) ** 2
            for i in range(n)
            for j in range(raters)
        ) / ((n - 1) * (raters - 1))
        found = intervals.icc_estimates(x)[1]
        # Were the true ICC at an end, BMS/EMS over its expectation would have this F distribution.
        for rho, chance in ((found.low, stats.f.sf), (found.high, stats.f.cdf)):
            expected = (1 + (raters - 1) * rho) / (1 - rho)
            p = chance(bms / ems / expected, n - 1, (n - 1) * (raters - 1))
            assert p == pytest.approx(0.025, abs=1e-9)

    def test_intervals_of_six_pairs_hold_the_truth_in_about_95_of_100_cohorts(self):
        random, held = np.random.default_rng(0), np.zeros(2)
        for _ in range(400):
            pairs = random.normal(0, 0.7**0.5, (6, 1)) + random.normal(0, 0.3**0.5, (6, 2))
            held += [each.low <= 0.7 <= each.high for each in intervals.icc_estimates(pairs)]
        # 92 to 98.5 %: three standard errors of 400 cohorts around 95 %.
        assert (held >= 0.92 * 400).all()
        assert (held <= 0.985 * 400).all()

    def test_ratings_that_contradict_or_repeat_each_other_have_a_value_and_no_wrong_interval(self):
        contrary = np.array([[1, -1], [-1, 1], [2, -2]], float)
        agreement, consistency = intervals.icc_estimates(contrary)
        assert (agreement.low, consistency.low) == (None, None)
        assert agreement.value is not None
        assert agreement.value < -1  # no Fisher's z of that
        nearly = intervals.icc_estimates(contrary + 0.1 * np.eye(3, 2))
        for each in nearly:
            assert each.low <= each.value <= each.high < 0
        shifted = intervals.icc_estimates(np.array([[1, 2], [2, 3], [5, 6]], float))
        assert shifted[1].value == pytest.approx(1)
        assert "no interval can be given" in shifted[1].reason
        same = intervals.icc_estimates(np.ones((5, 2)), reason="nothing varies")
        assert [each.reason for each in same] == ["nothing varies"] * 2

    def test_a_value_at_the_end_of_its_scale_has_a_reason_instead_of_an_interval(self):
        samples = np.array([-1.0, -0.9, -1.0, -0.8])
        found = intervals.estimate(samples, "icc_consistency", [3])
        assert (found.value, found.low, found.high) == (-1, None, None)
        assert "no interval can be given" in found.reason


def test_the_error_of_a_mean_with_several_scans_a_person_is_that_of_the_bootstrap():
    random = np.random.default_rng(0)
    persons = random.integers(0, 120, 300)
    values = random.normal(size=120)[persons] + random.normal(0, 0.5, 300)
    mean, error = intervals.mean_with_error(values, persons)
    samples = intervals.resample(
        lambda w: (w @ values) / w.sum(axis=1), persons, count=2000, seed=0
    )
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(samples[1:].std(), rel=0.06)
    alone = intervals.mean_with_error(values, np.arange(300))[1]
    assert alone == pytest.approx(stats.sem(values))


class TestCoverage:
    """Simulated cohorts of persons with one to three scans that are alike."""

    def test_intervals_hold_the_truth_in_about_95_percent_where_percentiles_do_not(self):
        random = np.random.default_rng(7)
        truth = stats.norm.cdf(1.8 / np.sqrt(2))
        holds = dict.fromkeys(("found", "percentile", "by scan"), 0)
        for number in range(500):
            ill = np.arange(20) % 2
            person = np.arange(20).repeat(random.integers(1, 4, 20))
            between = random.normal(0, np.sqrt(0.8), 20)
            score = (1.8 * ill + between)[person] + random.normal(0, np.sqrt(0.2), len(person))
            for who in (person, np.arange(len(person))):
                samples = intervals.resample(
                    lambda w, s=score, y=ill[person]: metrics.auc(y, s, w),
                    who,
                    count=200,
                    seed=number,
                )
                found = intervals.estimate(samples, "auc", [10, 10])
                if who is person:
                    holds["found"] += found.low <= truth <= found.high
                    low, high = np.quantile(samples[1:], [0.025, 0.975])
                    holds["percentile"] += low <= truth <= high
                else:
                    holds["by scan"] += found.low <= truth <= found.high
        assert 0.93 <= holds["found"] / 500 <= 0.98
        assert holds["percentile"] / 500 < 0.92
        assert holds["by scan"] / 500 < 0.93  # what resampling scans would have claimed

    def test_mean_absolute_errors_too_and_equals_differ_in_one_cohort_of_twenty(self):
        random = np.random.default_rng(8)
        holds, differ = 0, 0
        for number in range(500):
            person = np.arange(24).repeat(random.integers(1, 4, 24))
            hard = random.normal(0, 3, 24)[person]
            outputs = [hard + random.normal(0, 3, 24)[person] for _ in range(2)]
            samples = intervals.resample(
                lambda w, o=outputs: np.stack([(w @ np.abs(e)) / w.sum(1) for e in o]),
                person,
                count=200,
                seed=number,
            )
            found = intervals.estimate(samples[0], "mae", [24])
            holds += found.low <= 18**0.5 * np.sqrt(2 / np.pi) <= found.high
            differ += comparisons.difference(*samples, "mae", [24]).p < 0.05
        assert 0.92 <= holds / 500 <= 0.98
        assert 0.03 <= differ / 500 <= 0.08

    def test_delong_finds_equals_different_in_one_cohort_of_twenty(self):
        random = np.random.default_rng(9)
        differ = 0
        for _ in range(800):
            ill = np.arange(40) % 2
            person = np.arange(40).repeat(random.integers(1, 4, 40))
            hard = (1.2 * ill + random.normal(0, 0.7, 40))[person]
            scores = hard + random.normal(0, 0.7, (2, 40))[:, person]
            areas, c = comparisons.auc_covariance(ill[person], two_sided(scores), person)
            distance = abs(areas[0] - areas[1]) / np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
            differ += 2 * stats.t.sf(distance, 38) < 0.05
        assert 0.03 <= differ / 800 <= 0.07


class TestDifferences:
    def test_paired_resamples_see_a_small_difference_that_separate_ones_would_not(self):
        random = np.random.default_rng(0)
        labels = np.arange(80) % 2
        hard = random.normal(0, 1.5, 80)  # the same scans are hard for both
        models = [1 * labels + hard, 1.5 * labels + hard]
        first, second = intervals.resample(
            lambda w: np.stack([metrics.auc(labels, s, w) for s in models[::-1]]),
            np.arange(80),
            count=1000,
            seed=0,
        )
        paired = comparisons.difference(first, second, "auc", [40, 40])
        rolled = np.r_[second[:1], np.roll(second[1:], 1)]
        separate = comparisons.difference(first, rolled, "auc", [40, 40])
        assert paired.value == pytest.approx(first[0] - second[0])
        assert paired.excludes_zero
        assert paired.p < 0.05
        assert not separate.excludes_zero

    def test_p_is_below_five_percent_exactly_where_the_interval_excludes_zero(self):
        nothing, varies = np.zeros(2001), np.random.default_rng(4).normal(0, 1e-6, 2001)
        for shift in np.linspace(0, 0.4, 41):
            samples = np.r_[shift, np.random.default_rng(3).normal(shift, 0.1, 2000)]
            found = comparisons.difference(samples, varies, "mae", [30])
            assert found.excludes_zero == (found.p < 0.05)
            # Against a constant, such as chance, the scale of the metric itself decides.
            found = comparisons.difference(0.5 + samples, nothing + 0.5, "auc", [30, 30])
            assert found.excludes_zero == (found.p < 0.05)

    def test_a_model_does_not_differ_from_itself(self):
        samples = np.random.default_rng(0).random(300)
        found = comparisons.difference(samples, samples, "auc", [30, 30])
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
        assert not found.excludes_zero

    def test_against_a_constant_the_interval_of_perfection_counts(self):
        perfect, chance = np.ones(101), np.full(101, 0.5)
        few = comparisons.difference(perfect, chance, "auc", [4, 6])
        many = comparisons.difference(perfect, chance, "auc", [9, 9])
        assert (few.value, few.low) == (0.5, pytest.approx(0.025 ** (1 / 4) - 0.5))
        assert not few.excludes_zero
        assert few.p == pytest.approx(2 * 0.5**4)
        assert many.excludes_zero
        assert many.p == pytest.approx(2 * 0.5**9)

    def test_two_perfect_models_may_still_differ(self):
        found = comparisons.difference(np.ones(101), np.ones(101), "auc", [9, 9])
        assert found.value == 0
        assert found.low == -found.high < -0.3
        assert found.p == 1

    @pytest.mark.parametrize("spread", [0.02, 0.08])
    def test_a_perfect_model_is_compared_alike_from_both_sides(self, spread):
        other = np.r_[0.8, np.random.default_rng(0).normal(0.8, spread, 400)]
        perfect, persons = np.ones(401), [12, 12]
        one, two = (
            comparisons.difference(*pair, "auc", persons)
            for pair in ((other, perfect), (perfect, other))
        )
        assert (one.value, one.low, one.high) == (-two.value, -two.high, -two.low)
        assert one.p == two.p
        assert one.excludes_zero == (one.p < 0.05)
        # Newcombe's: the distances of the two intervals from their values, added in squares.
        high = intervals.estimate(other, "auc", persons).high
        below = 1 - 0.025 ** (1 / 12)
        assert one.high == pytest.approx(-0.2 + np.hypot(high - 0.8, below))
        # p is the level at which that touches zero.
        tail = one.p / 2
        high = intervals.estimate(other, "auc", persons, level=1 - one.p).high
        assert np.hypot(high - 0.8, 1 - tail ** (1 / 12)) == pytest.approx(0.2, abs=1e-3)

    def test_a_perfect_average_precision_has_a_difference_and_no_interval(self):
        other = np.r_[0.8, np.random.default_rng(0).normal(0.8, 0.05, 400)]
        found = comparisons.difference(other, np.ones(401), "average_precision", [12, 12])
        assert (found.value, found.low, found.p) == (pytest.approx(-0.2), None, None)
        assert "no interval can be given" in found.reason

    def test_equals_that_are_often_perfect_are_rarely_found_different(self):
        random = np.random.default_rng(5)
        perfect, differ = 0, 0
        for number in range(200):
            ill = np.arange(20) % 2
            scores = 2.7 * ill + random.normal(size=(2, 20))  # true AUC 0.97
            first, second = intervals.resample(
                lambda w, s=scores, y=ill: np.stack([metrics.auc(y, each, w) for each in s]),
                np.arange(20),
                count=100,
                seed=number,
            )
            perfect += first[0] == 1 or second[0] == 1
            differ += comparisons.difference(first, second, "auc", [10, 10]).p < 0.05
        assert perfect > 40
        assert differ <= 14

    def test_what_cannot_be_measured_has_no_difference(self):
        unknown = np.full(101, np.nan)
        for pair in [(unknown, np.ones(101)), (np.ones(101), unknown), (unknown, unknown)]:
            assert comparisons.difference(*pair, "auc", [9, 9], reason="no").reason == "no"


def test_holm_adjusts_as_published():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([0.9, 0.8]) == [1, 1]
    assert comparisons.holm([]) == []
