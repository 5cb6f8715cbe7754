"""Comparisons against published data, loops and simulated cohorts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from neurofoundry.stats import comparisons, intervals, metrics
from tests.stats.conftest import two_sided

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
        contrasts = contrast @ areas
        assert contrasts @ np.linalg.solve(spread, contrasts) == pytest.approx(2.5340, abs=5e-5)

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
    def test_it_is_a_t_test_of_the_spread_of_the_resamples_or_of_a_given_error(self):
        random = np.random.default_rng(0)
        first, second = random.normal([[0.8], [0.7]], 0.05, (2, 2001))
        spread = (first - second)[1:].std(ddof=1) * np.sqrt(12 / 11)
        for error, given in ((spread, None), (0.04, 0.04)):
            difference = comparisons.difference(
                first, second, "auc", [12, 30], standard_error=given
            )
            value, t = first[0] - second[0], stats.t(22)
            assert difference.value == pytest.approx(value)
            ends = (value - t.ppf(0.975) * error, value + t.ppf(0.975) * error)
            assert (difference.low, difference.high) == pytest.approx(ends)
            assert difference.p == pytest.approx(2 * t.sf(abs(value) / error))

    def test_paired_resamples_see_a_small_difference_that_separate_ones_would_not(self):
        random = np.random.default_rng(0)
        labels = np.arange(80) % 2
        hard = random.normal(0, 1.5, 80)  # the same scans are hard for both
        models = [1 * labels + hard, 1.5 * labels + hard]
        first, second = intervals.resample(
            lambda w: np.stack([metrics.ranking(labels, s, w)[0] for s in models[::-1]]),
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
            difference = comparisons.difference(samples, varies, "mae", [30])
            assert difference.excludes_zero == (difference.p < 0.05)
            # Against a constant, such as chance, the scale of the metric itself decides.
            difference = comparisons.difference(0.5 + samples, nothing + 0.5, "auc", [30, 30])
            assert difference.excludes_zero == (difference.p < 0.05)

    def test_a_model_does_not_differ_from_itself(self):
        samples = np.random.default_rng(0).random(300)
        difference = comparisons.difference(samples, samples, "auc", [30, 30])
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
        assert not difference.excludes_zero

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
        difference = comparisons.difference(np.ones(101), np.ones(101), "auc", [9, 9])
        assert difference.value == 0
        assert difference.low == -difference.high < -0.3
        assert difference.p == 1

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
        difference = comparisons.difference(other, np.ones(401), "average_precision", [12, 12])
        assert (difference.value, difference.low, difference.p) == (pytest.approx(-0.2), None, None)
        assert "no interval can be given" in difference.reason

    def test_equals_that_are_often_perfect_are_rarely_found_different(self):
        random = np.random.default_rng(5)
        perfect, differ = 0, 0
        for number in range(200):
            ill = np.arange(20) % 2
            scores = 2.7 * ill + random.normal(size=(2, 20))  # true AUC 0.97
            first, second = intervals.resample(
                lambda w, s=scores, y=ill: np.stack([metrics.ranking(y, each, w)[0] for each in s]),
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
