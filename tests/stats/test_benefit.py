from __future__ import annotations

import numpy as np
import pytest

from neurofoundry.stats.benefit import THRESHOLDS, net_benefit, useful


def drawn(seed: int, healthy: int = 60, ill: int = 40, apart: float = 2.0):
    """Labels, risks that are calibrated, and persons with one scan each."""
    random = np.random.default_rng(seed)
    sick = np.arange(healthy + ill) >= healthy
    score = apart * sick + random.normal(size=len(sick))
    odds = np.log(ill / healthy) + apart * (score - apart / 2)
    return sick, 1 / (1 + np.exp(-odds)), np.arange(len(sick))


def test_net_benefit_is_that_of_vickers_and_elkin():
    sick, risk, persons = drawn(0)
    found = net_benefit(sick, risk[None], persons, [60, 40], 0.4)
    for place in (4, 29, 69):
        t = THRESHOLDS[place]
        called = risk >= t
        expected = (called & sick).sum() / 100 - (called & ~sick).sum() / 100 * t / (1 - t)
        assert found.value[place] == pytest.approx(expected)
        assert found.treat_all[place] == pytest.approx(0.4 - 0.6 * t / (1 - t))
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_to_call_everybody_is_to_treat_all_and_nobody_to_treat_none():
    sick, _, persons = drawn(1)
    everybody = net_benefit(sick, np.ones((1, 100)), persons, [60, 40], 0.1)
    assert everybody.value == pytest.approx(everybody.treat_all)
    nobody = net_benefit(sick, np.zeros((2, 100)), persons, [60, 40], 0.1)
    assert nobody.value == pytest.approx(0)
    assert useful(everybody) is None
    assert useful(nobody) is None


def test_a_good_model_is_of_use_over_a_range_around_the_prevalence():
    sick, risk, persons = drawn(2, healthy=600, ill=400, apart=3)
    found = useful(net_benefit(sick, risk[None], persons, [600, 400], 0.4))
    assert found is not None
    assert found[0] < 0.4 < found[1]
    shown = net_benefit(sick, risk[None], persons, [600, 400], 0.4)
    inside = (found[0] <= THRESHOLDS) & (found[1] >= THRESHOLDS)
    assert (shown.low[inside] > np.maximum(0, shown.treat_all[inside])).all()


def test_several_scans_of_a_person_are_no_more_evidence():
    sick, risk, persons = drawn(3)
    once = net_benefit(sick, risk[None], persons, [60, 40], 0.4)
    thrice = net_benefit(
        np.tile(sick, 3), np.tile(risk, 3)[None], np.tile(persons, 3), [60, 40], 0.4
    )
    assert thrice.low == pytest.approx(once.low)
    assert thrice.high == pytest.approx(once.high)


@pytest.mark.parametrize(("healthy", "ill"), [(60, 40), (16, 9)])
def test_intervals_hold_the_truth_in_93_of_100_cohorts_or_more(healthy, ill):
    many = drawn(0, 300 * healthy, 300 * ill)
    prevalence = ill / (healthy + ill)
    truth = net_benefit(many[0], many[1][None], many[2], [1, 1], prevalence).value
    held = []
    for seed in range(1, 301):
        sick, risk, persons = drawn(seed, healthy, ill)
        found = net_benefit(sick, risk[None], persons, [healthy, ill], prevalence)
        held.append((found.low <= truth) & (truth <= found.high))
    assert np.mean(held, axis=0)[[4, 19, 39, 59, 79]].min() >= 0.92
