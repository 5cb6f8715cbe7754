"""Intervals against formulas, published examples and simulated cohorts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from neurofoundry.stats import comparisons, intervals, metrics, scales
from tests.stats.conftest import RATINGS, cohort, two_sided


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


def sample_of(values: np.ndarray) -> intervals.Jackknife:
    """A statistic of one stratum, from its values without each person."""
    return intervals.Jackknife(values, np.zeros(len(values) - 1, int))


class TestJackknife:
    def test_it_leaves_out_whole_persons_and_knows_their_class(self):
        persons = np.array(["b", "a", "a", "c", "b"])
        labels = np.array([0, 0, 1, 0, 0])
        found = intervals.jackknife(lambda w: w.T, persons, labels)
        # b and c are of class 0; a, who has scans of both, of class 1.
        assert found.strata.tolist() == [0, 0, 1]
        without = (found.values[:, 1:] == 0).T
        assert [set(persons[row]) for row in without] == [{"b"}, {"c"}, {"a"}]
        assert (found.values[:, 0] == 1).all()

    def test_with_many_persons_groups_are_left_out_and_the_error_stays(self):
        values = np.random.default_rng(0).normal(size=5000)
        found = intervals.jackknife(lambda w: (w @ values) / w.sum(1), np.arange(5000))
        assert len(found.strata) == intervals.MOST_GROUPS
        assert found.error() == pytest.approx(stats.sem(values), rel=0.05)

    def test_the_error_of_an_area_is_delongs(self):
        labels, p = cohort(3)
        found = intervals.jackknife(
            lambda w: metrics.ranking(labels, p[:, 1], w)[0], np.arange(60), labels
        )
        _, covariance = comparisons.auc_covariance(labels, p[None], np.arange(60))
        assert found.error(scales.SHARE) ** 2 == pytest.approx(covariance[0, 0])

    def test_the_error_of_a_mean_is_the_textbooks_but_for_its_factor(self):
        values = np.random.default_rng(0).normal(size=12)
        found = intervals.jackknife(lambda w: (w @ values) / w.sum(1), np.arange(12))
        # Leaving out one moves the mean by (value − mean)/(n − 1).
        assert found.error() == pytest.approx(stats.sem(values) * np.sqrt(12 / 11 * 12 / 9))


class TestIntervals:
    def test_a_share_has_wilsons_interval_as_statsmodels_gives_it(self):
        # 30 of 40 persons of one scan each: what they show and what is known agree.
        hits = np.arange(40) < 30
        found = intervals.jackknife(
            lambda w: metrics.share(hits, w, among=np.ones(40, bool)), np.arange(40)
        )
        low, high = 0.5981, 0.8581  # proportion_confint(30, 40, method="wilson")
        estimate = intervals.estimate(found, "sensitivity", [25, 40])
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.002)

    @pytest.mark.parametrize("repeats", [1, 3])
    def test_scans_that_say_the_same_of_a_person_do_not_narrow_it(self, repeats):
        hits = (np.arange(40) < 30).repeat(repeats)
        found = intervals.jackknife(
            lambda w: metrics.share(hits, w, among=np.ones(len(hits), bool)),
            np.arange(40).repeat(repeats),
        )
        estimate = intervals.estimate(found, "sensitivity", [25, 40])
        assert (estimate.low, estimate.high) == pytest.approx((0.5981, 0.8581), abs=0.002)

    @pytest.mark.parametrize(
        ("name", "value", "trials"),
        [
            ("sensitivity", 0.0, 7),
            ("specificity", 1.0, 12),
            ("auc", 1.0, 7),
            ("auc", 0.5, 7),
            ("balanced_accuracy", 0.5, 14),
            ("f1", 0.0, 7),
            ("average_precision", 1.0, 7),
        ],
    )
    def test_where_nobody_moves_it_the_interval_is_that_of_independent_persons(
        self, name, value, trials
    ):
        q = stats.norm.ppf(0.975)
        estimate = intervals.estimate(sample_of(np.full(20, value)), name, [12, 7])
        middle = (value + q**2 / (2 * trials)) / (1 + q**2 / trials)
        reach = np.sqrt(value * (1 - value) / trials + (q / (2 * trials)) ** 2)
        reach *= q / (1 + q**2 / trials)
        ends = np.array([middle - reach, middle + reach])
        ends = 2 * ends / (1 + ends) if name == "f1" else ends
        assert (estimate.low, estimate.high) == pytest.approx(tuple(ends), abs=1e-9)
        assert estimate.low < estimate.high

    def test_an_error_has_a_t_interval_on_its_scale(self):
        values = np.r_[5.0, np.random.default_rng(0).normal(5, 0.2, 20)]
        logs = np.log(values[1:])
        shown = ((logs - logs.mean()) ** 2).sum() * 20 / 17
        # Of normal errors of 20 persons, whose mean absolute value is known to vary by π/2 − 1.
        error = np.sqrt((20 * shown + 8 * (np.pi / 2 - 1) / 20) / 28)
        assert error > np.sqrt(shown)
        reach = stats.t.ppf(0.975, 19) * error
        estimate = intervals.estimate(sample_of(values), "mae", [20])
        assert (estimate.low, estimate.high) == pytest.approx(
            (5 * np.exp(-reach), 5 * np.exp(reach))
        )
        one = intervals.with_error(5.0, 5 * error, "mae", [20])
        assert (one.low, one.high) == pytest.approx((estimate.low, estimate.high))

    @pytest.mark.parametrize("name", sorted(metrics.METRICS))
    def test_it_stays_among_the_values_that_the_metric_can_take(self, name):
        values = np.r_[0.97, np.random.default_rng(0).normal(0.95, 0.01, 8)]
        estimate = intervals.estimate(sample_of(values), name, [4, 4])
        assert estimate.low < 0.97 < estimate.high
        if name in ("brier", "mae", "rmse", "distance_ratio"):
            assert estimate.low > 0
        elif metrics.METRICS[name].scale is not scales.LINEAR:
            assert estimate.high <= 1

    def test_one_class_gives_no_number_but_the_reason(self):
        found = intervals.jackknife(
            lambda w: metrics.ranking(np.ones(9), np.arange(9.0), w)[0], np.arange(9)
        )
        estimate = intervals.estimate(found, "auc", [1, 9], reason="no healthy subjects")
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert estimate.reason == "no healthy subjects"

    def test_a_class_of_one_person_gives_no_number(self):
        labels = np.array([1] + [0] * 30)
        found = intervals.jackknife(
            lambda w: metrics.ranking(labels, np.linspace(1, 0, 31), w)[0], np.arange(31), labels
        )
        estimate = intervals.estimate(found, "auc", [30, 1])
        assert estimate.value is None
        assert "too few subjects" in estimate.reason

    def test_errors_that_are_the_same_for_all_have_no_interval(self):
        estimate = intervals.estimate(sample_of(np.full(12, 3.0)), "mae", [11])
        assert (estimate.value, estimate.low) == (3, None)
        assert "no interval can be given" in estimate.reason

    def test_a_model_that_errs_nowhere_here_is_held_to_the_risks_that_it_states(self):
        # Right for all 16, though it says that it errs in one of four.
        labels = np.arange(16) % 2
        p = two_sided(np.where(labels == 1, 1, -1) * np.log(3))
        found = intervals.jackknife(lambda w: metrics.brier(labels, p, w), np.arange(16), labels)
        assert found.value == pytest.approx(1 / 16)
        spread = metrics.brier_spread(p)
        assert spread == pytest.approx(0.75 * 0.25 * (9 / 16 - 1 / 16) ** 2, rel=0.1)
        estimate = intervals.estimate(found, "brier", [8, 8], spread=spread)
        assert estimate.high > 0.17  # nearly the truth, if it means what it says
        assert intervals.estimate(found, "brier", [8, 8]).low is None
        sure = two_sided(np.where(labels == 1, 1, -1) * 9.0)
        found = intervals.jackknife(lambda w: metrics.brier(labels, sure, w), np.arange(16), labels)
        spread = metrics.brier_spread(sure)
        assert intervals.estimate(found, "brier", [8, 8], spread=spread).low is None

    def test_an_error_that_is_never_negative_is_bounded_by_what_chance_gives(self):
        random = np.random.default_rng(0)
        samples, by_chance = random.normal(0.2, 0.03, (2, 1001)) - [[0], [0.1]]
        estimate = intervals.excess_error(samples, by_chance)
        assert estimate.low == pytest.approx(samples[0] - np.quantile(by_chance[1:], 0.975))
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
                estimate = intervals.excess_error(*samples)
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
        assert agreement.value == -1  # the least that is possible: by the formula, −1.5
        nearly = intervals.icc_estimates(contrary + 0.1 * np.eye(3, 2))
        for each in nearly:
            assert -1 <= each.low <= each.value <= each.high < 0
        shifted = intervals.icc_estimates(np.array([[1, 2], [2, 3], [5, 6]], float))
        assert shifted[1].value == pytest.approx(1)
        assert "no interval can be given" in shifted[1].reason
        same = intervals.icc_estimates(np.ones((5, 2)), reason="nothing varies")
        assert [each.reason for each in same] == ["nothing varies"] * 2

    def test_a_value_at_the_end_of_its_scale_has_a_reason_instead_of_an_interval(self):
        estimate = intervals.estimate(
            sample_of(np.array([-1.0, -0.9, -1.0, -0.8])), "icc_consistency", [3]
        )
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

    @pytest.mark.parametrize(("apart", "called"), [(1.8, 0.9), (0.2, 2.4)])
    def test_intervals_hold_the_truth_in_93_of_100_cohorts_or_more(self, apart, called):
        """A good model, and one so poor that it calls hardly anybody ill."""
        random = np.random.default_rng(7)
        found, missed = stats.norm.sf(called - apart), stats.norm.sf(called)
        # Of F1 with as many ill as healthy: 2·hits / (positives + calls).
        truth = {"auc": stats.norm.cdf(apart / np.sqrt(2)), "sensitivity": found}
        truth |= {"specificity": 1 - missed, "f1": 2 * found / (1 + found + missed)}
        truth |= {"balanced_accuracy": (found + 1 - missed) / 2}
        holds, by_scan = dict.fromkeys(truth, 0), 0
        for _ in range(400):
            ill = np.arange(20) % 2
            person = np.arange(20).repeat(random.integers(1, 4, 20))
            score = (apart * ill + random.normal(0, np.sqrt(0.8), 20))[person]
            score += random.normal(0, np.sqrt(0.2), len(person))
            p, labels = two_sided(score - called), ill[person]

            def measured(w, p=p, y=labels):
                each = metrics.classification(y, p, w, threshold=0.5)
                return np.stack([each[name] for name in truth])

            for who in (person, np.arange(len(person))):
                sample = intervals.jackknife(measured, who, labels)
                persons = np.bincount(ill if who is person else labels).tolist()
                for place, name in enumerate(truth):
                    estimate = intervals.estimate(sample[place], name, persons)
                    inside = estimate.low <= truth[name] <= estimate.high
                    if who is person:
                        holds[name] += inside
                    elif name == "auc":
                        by_scan += inside
        # Two standard errors of 400 cohorts below 93 %.
        assert min(holds.values()) >= 0.905 * 400, holds
        assert apart < 1 or by_scan < 0.93 * 400  # what leaving out scans would have claimed

    def test_mean_absolute_errors_too_and_equals_differ_in_one_cohort_of_twenty(self):
        random = np.random.default_rng(8)
        holds, differ = 0, 0
        for _ in range(500):
            person = np.arange(24).repeat(random.integers(1, 4, 24))
            hard = random.normal(0, 3, 24)[person]
            outputs = [hard + random.normal(0, 3, 24)[person] for _ in range(2)]
            sample = intervals.jackknife(
                lambda w, o=outputs: np.stack([(w @ np.abs(e)) / w.sum(1) for e in o]), person
            )
            estimate = intervals.estimate(sample[0], "mae", [24])
            holds += estimate.low <= 18**0.5 * np.sqrt(2 / np.pi) <= estimate.high
            differ += comparisons.difference(sample[0], sample[1], "mae", [24]).p < 0.05
        assert 0.92 <= holds / 500 <= 0.98
        assert 0.02 <= differ / 500 <= 0.07
