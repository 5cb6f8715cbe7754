"""Intervals against formulas, published examples and simulated cohorts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from neurofoundry.stats import comparisons, intervals, metrics, scales
from tests.stats.conftest import RATINGS, cohort


class TestResampling:
    def test_it_draws_whole_persons_and_the_metric_is_that_of_the_repeated_scans(self):
        labels, p = cohort(5)
        persons = np.array([f"p{i // 3}" for i in range(60)])
        drawn = intervals.resample(lambda w: w.T, persons, count=40, seed=1).T
        areas = intervals.resample(
            lambda w: metrics.ranking(labels, p[:, 1], w)[0], persons, count=40, seed=1
        )
        assert (drawn[0] == 1).all()
        for row, value in zip(drawn, areas, strict=True):
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

    def test_resamples_do_not_depend_on_the_order_of_the_scans(self):
        labels, p = cohort(4)
        persons = np.arange(60) // 2
        order = np.random.default_rng(0).permutation(60)

        def run(index: np.ndarray) -> np.ndarray:
            return intervals.resample(
                lambda w: metrics.ranking(labels[index], p[index, 1], w)[0],
                persons[index],
                count=50,
                seed=3,
            )

        assert np.allclose(run(np.arange(60)), run(order))


class TestIntervals:
    def test_it_is_a_t_interval_on_the_scale_of_the_metric(self):
        random = np.random.default_rng(0)
        samples = np.r_[0.8, random.normal(0.8, 0.05, 5000)]
        error = samples[1:].std(ddof=1)
        estimate = intervals.estimate(samples, "auc", [30, 12])
        reach = stats.t.ppf(0.975, 22) * error / (0.8 * 0.2)
        assert (estimate.low, estimate.high) == pytest.approx(
            (special.expit(special.logit(0.8) - reach), special.expit(special.logit(0.8) + reach))
        )
        estimate = intervals.estimate(8 * samples, "mae", [21])
        reach = stats.t.ppf(0.975, 20) * error / 0.8 * np.sqrt(21 / 20)
        assert (estimate.low, estimate.high) == pytest.approx(
            (6.4 / np.exp(reach), 6.4 * np.exp(reach))
        )
        estimate = intervals.estimate(samples, "correlation", [21])
        reach = stats.t.ppf(0.975, 20) * error / (1 - 0.64) * np.sqrt(21 / 20)
        assert (estimate.low, estimate.high) == pytest.approx(
            (np.tanh(np.arctanh(0.8) - reach), np.tanh(np.arctanh(0.8) + reach))
        )
        assert estimate.value == 0.8

    @pytest.mark.parametrize("name", sorted(metrics.METRICS))
    def test_it_stays_among_the_values_that_the_metric_can_take(self, name):
        samples = np.r_[0.97, np.random.default_rng(0).normal(0.95, 0.2, 500)]
        estimate = intervals.estimate(samples, name, [4, 4])
        assert estimate.low < 0.97 < estimate.high
        if name in ("brier", "mae", "rmse", "distance_ratio"):
            assert estimate.low > 0
        elif metrics.METRICS[name].scale is not scales.LINEAR:
            assert estimate.high <= 1

    def test_one_class_gives_no_number_but_the_reason(self):
        samples = metrics.ranking(np.ones(9), np.arange(9.0), np.ones((20, 9)))[0]
        assert np.isnan(samples).all()
        estimate = intervals.estimate(samples, "auc", [1, 9], reason="no healthy subjects")
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert estimate.reason == "no healthy subjects"

    def test_a_class_that_many_resamples_miss_gives_no_number(self):
        labels = np.array([1] + [0] * 30)  # missed by a third of the resamples
        samples = intervals.resample(
            lambda w: metrics.ranking(labels, np.linspace(1, 0, 31), w)[0],
            np.arange(31),
            count=200,
            seed=0,
        )
        estimate = intervals.estimate(samples, "auc", [30, 1])
        assert estimate.value is None
        assert "too few subjects" in estimate.reason

    def test_a_perfect_auc_does_not_claim_certainty(self):
        samples = np.ones(501)
        estimate = intervals.estimate(samples, "auc", [12, 7])
        assert estimate.value == estimate.high == 1
        assert estimate.low == pytest.approx(0.025 ** (1 / 7))
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
        estimate = intervals.estimate(np.zeros(101), "auc", [5, 8])
        assert estimate.low == 0
        assert estimate.high == pytest.approx(1 - 0.025 ** (1 / 5))

    def test_an_error_that_is_never_negative_is_bounded_by_what_chance_gives(self):
        random = np.random.default_rng(0)
        samples, by_chance = random.normal(0.2, 0.03, (2, 1001)) - [[0], [0.1]]
        estimate = intervals.estimate(samples, "ece", [60, 60], by_chance=by_chance)
        assert estimate.low == pytest.approx(samples[0] - np.quantile(by_chance[1:], 0.95))
        assert estimate.high == pytest.approx(np.quantile(samples[1:], 0.975))

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
                estimate = intervals.estimate(samples[0], "ece", [60, 60], by_chance=samples[1])
                assert estimate.low <= estimate.value <= estimate.high
                if right is honest:
                    reaches_zero += estimate.low == 0
                else:
                    claims += estimate.low > 0
        assert reaches_zero >= 0.9 * 60
        assert claims >= 0.9 * 60


class TestAgreement:
    def test_intervals_are_those_that_r_psych_prints_for_the_worked_example(self):
        # As printed by psych::ICC for these ratings: ICC2 0.29 from 0.019 to 0.76, ICC3 0.71 from
        # 0.342 to 0.95. It follows Shrout & Fleiss, whose article has no intervals for them.
        agreement, consistency = intervals.icc_estimates(RATINGS)
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
        estimate = intervals.icc_estimates(x)[1]
        # Were the true ICC at an end, BMS/EMS over its expectation would have this F distribution.
        for rho, chance in ((estimate.low, stats.f.sf), (estimate.high, stats.f.cdf)):
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
        estimate = intervals.estimate(samples, "icc_consistency", [3])
        assert (estimate.value, estimate.low, estimate.high) == (-1, None, None)
        assert "no interval can be given" in estimate.reason


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
        holds = dict.fromkeys(("estimate", "percentile", "by scan"), 0)
        for number in range(500):
            ill = np.arange(20) % 2
            person = np.arange(20).repeat(random.integers(1, 4, 20))
            between = random.normal(0, np.sqrt(0.8), 20)
            score = (1.8 * ill + between)[person] + random.normal(0, np.sqrt(0.2), len(person))
            for who in (person, np.arange(len(person))):
                samples = intervals.resample(
                    lambda w, s=score, y=ill[person]: metrics.ranking(y, s, w)[0],
                    who,
                    count=200,
                    seed=number,
                )
                estimate = intervals.estimate(samples, "auc", [10, 10])
                if who is person:
                    holds["estimate"] += estimate.low <= truth <= estimate.high
                    low, high = np.quantile(samples[1:], [0.025, 0.975])
                    holds["percentile"] += low <= truth <= high
                else:
                    holds["by scan"] += estimate.low <= truth <= estimate.high
        assert 0.93 <= holds["estimate"] / 500 <= 0.98
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
            estimate = intervals.estimate(samples[0], "mae", [24])
            holds += estimate.low <= 18**0.5 * np.sqrt(2 / np.pi) <= estimate.high
            differ += comparisons.difference(*samples, "mae", [24]).p < 0.05
        assert 0.92 <= holds / 500 <= 0.98
        assert 0.03 <= differ / 500 <= 0.08
