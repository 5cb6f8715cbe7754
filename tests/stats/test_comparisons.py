"""Comparisons against published data, loops and simulated cohorts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from neurofoundry.stats import comparisons, intervals, metrics, scales
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
    def test_of_errors_it_is_a_paired_t_test(self):
        random = np.random.default_rng(0)
        errors = random.normal([[5], [5.5]], 1, (2, 20))
        sample = intervals.jackknife(lambda w: errors @ w.T / w.sum(1), np.arange(20))
        found = comparisons.difference(sample[0], sample[1], "mae", [20])
        paired = stats.ttest_rel(*errors)
        factor = np.sqrt(20 / 19 * 20 / 17)  # see Jackknife.moves
        assert found.value == pytest.approx(errors[0].mean() - errors[1].mean())
        assert found.p == pytest.approx(2 * stats.t.sf(abs(paired.statistic) / factor, 19))
        reach = stats.t.ppf(0.975, 19) * stats.sem(errors[0] - errors[1]) * factor
        assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))

    def test_of_shares_it_is_newcombes_with_what_the_two_share(self):
        one, two, _ = self.ranked(12)
        found = comparisons.difference(one, two, "auc", [12, 12])
        q = stats.t.ppf(0.975, 22)
        ends = [
            intervals.share_interval(each.value, each.error(scales.SHARE), "auc", [12, 12], q)
            for each in (one, two)
        ]
        moves = [each.moves(scales.SHARE) for each in (one, two)]
        alike = np.corrcoef(*moves)[0, 1] * 24 / 32
        a, b = one.value - ends[0][0], ends[1][1] - two.value
        assert found.low == pytest.approx(
            found.value - np.sqrt(a**2 + b**2 - 2 * alike * a * b), abs=1e-3
        )

    @staticmethod
    def ranked(each: int, seed: int = 0) -> tuple:
        """Two models that find the same persons hard, and the labels."""
        random = np.random.default_rng(seed)
        labels = np.arange(2 * each) % 2
        hard = random.normal(0, 1, 2 * each)
        scores = [k * labels + hard + random.normal(0, 0.3, 2 * each) for k in (1.5, 1)]
        sample = intervals.jackknife(
            lambda w: np.stack([metrics.ranking(labels, s, w)[0] for s in scores]),
            np.arange(2 * each),
            labels,
        )
        return sample[0], sample[1], labels

    def test_paired_persons_show_a_difference_that_two_groups_would_not(self):
        one, two, _ = self.ranked(40)
        paired = comparisons.difference(one, two, "auc", [40, 40])
        separate = comparisons.difference(one, two, "auc", [40, 40], versus=[40, 40])
        assert paired.value == pytest.approx(one.value - two.value)
        assert paired.p < 0.05 < separate.p

    @pytest.mark.parametrize("name", ["auc", "mae"])
    def test_p_is_below_five_percent_exactly_where_the_interval_excludes_zero(self, name):
        seen = set()
        for seed in range(40):
            one, two, _ = self.ranked(25, seed)
            found = comparisons.difference(one, two, name, [25, 25])
            assert found.excludes_zero == (found.p < 0.05)
            other = comparisons.difference(two, one, name, [25, 25])
            assert (other.value, other.low, other.high) == pytest.approx(
                (-found.value, -found.high, -found.low)
            )
            assert other.p == pytest.approx(found.p)
            seen.add(found.excludes_zero)
        assert seen == {True, False}

    def test_against_what_is_known_only_the_model_is_uncertain(self):
        one, _, _ = self.ranked(20)
        chance = intervals.Jackknife(np.full_like(one.values, 0.5), one.strata)
        found = comparisons.difference(one, chance, "auc", [20, 20], known=True)
        low, high = intervals.share_interval(
            one.value, one.error(scales.SHARE), "auc", [20, 20], stats.t.ppf(0.975, 38)
        )
        assert (found.low, found.high) == pytest.approx((low - 0.5, high - 0.5))

    def test_a_model_that_never_varies_here_is_not_certain(self):
        """Two equally poor models, of which one calls nobody ill, and two perfect ones."""
        for name, value in (("f1", 0.0), ("balanced_accuracy", 0.5), ("auc", 1.0)):
            one, _, _ = self.ranked(8)
            still = intervals.Jackknife(np.full_like(one.values, value), one.strata)
            same = comparisons.difference(still, still, name, [8, 8])
            assert same.low < 0 < same.high
            assert same.p == 1
            near = intervals.Jackknife(one.values - one.value + abs(value - 0.12), one.strata)
            found = comparisons.difference(near, still, name, [8, 8])
            assert found.low < 0 < found.high
            assert found.p > 0.05

    def test_the_degrees_of_freedom_are_those_of_the_smaller_group(self):
        one, two, _ = self.ranked(40)
        few = comparisons.difference(one, two, "mae", [40, 40], versus=[4, 9])
        error = np.hypot(one.error(), two.error())
        assert few.p == pytest.approx(2 * stats.t.sf(abs(few.value) / error, 6))

    @pytest.mark.parametrize("apart", [0.2, 2.7])
    def test_equals_are_rarely_found_different_however_poor_or_perfect(self, apart):
        random = np.random.default_rng(5)
        names = ("auc", "balanced_accuracy", "f1", "sensitivity")
        differ, never = dict.fromkeys(names, 0), 0
        for _ in range(200):
            ill = np.arange(20) % 2
            p = two_sided(apart * ill + random.normal(size=(2, 20)) - max(1.35, 2.2 - apart))

            def measured(w, p=p, y=ill):
                each = [metrics.classification(y, one, w, threshold=0.5) for one in p]
                return np.stack([[one[name] for one in each] for name in names])

            sample = intervals.jackknife(measured, np.arange(20), ill)
            for place, name in enumerate(names):
                one, two = sample[place, 0], sample[place, 1]
                never += name == "f1" and 0 in (one.error(), two.error())
                differ[name] += comparisons.difference(one, two, name, [10, 10]).p < 0.05
        assert never > 10
        assert max(differ.values()) <= 14, differ

    def test_what_cannot_be_measured_has_no_difference(self):
        one, two, _ = self.ranked(9)
        unknown = intervals.Jackknife(np.full_like(one.values, np.nan), one.strata)
        for pair in [(unknown, one), (two, unknown), (unknown, unknown)]:
            assert comparisons.difference(*pair, "auc", [9, 9], reason="no").reason == "no"


def test_the_interval_of_a_ratio_of_shares_holds_the_truth():
    random, held = np.random.default_rng(0), []
    for _ in range(400):
        shares = []
        for truth in (0.8, 0.15):
            hits = random.random(35) < truth
            sample = intervals.jackknife(lambda w, h=hits: w @ h / w.sum(1), np.arange(35))
            shares.append(intervals.estimate(sample, "sensitivity", [35, 35]))
        found = comparisons.ratio(*shares)
        if found.low is not None:
            assert found.value == pytest.approx(shares[0].value / shares[1].value)
            held.append(found.low <= 0.8 / 0.15 <= found.high)
    assert len(held) > 390
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("compared", [1, 4])
def test_what_is_called_detectable_is_found_in_four_of_five_studies(compared):
    error = 0.04
    seen = comparisons.detectable(1.96 * error, compared)
    random = np.random.default_rng(0)
    p = 2 * stats.norm.sf(abs(random.normal(seen, error, 20_000)) / error)
    assert (p < 0.05 / compared).mean() == pytest.approx(0.8, abs=0.01)


def test_holm_adjusts_as_published():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([0.9, 0.8]) == [1, 1]
    assert comparisons.holm([]) == []
