from __future__ import annotations

import numpy as np
import pytest

from neurofoundry.stats.groups import largest_gap


def gap(values, errors):
    return largest_gap(
        values,
        lambda quantile: [
            (value - quantile * error, value + quantile * error)
            for value, error in zip(values, errors, strict=True)
        ],
    )


def test_two_groups_have_the_interval_of_a_difference():
    found = gap([0.7, 0.9], [0.03, 0.04])
    assert (found.lowest, found.highest) == (0, 1)
    assert found.observed == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 1.96 * 0.05, abs=0.005)
    assert found.high == pytest.approx(0.2 + 1.96 * 0.05, abs=0.005)
    assert found.value == pytest.approx(np.sqrt(0.2**2 - 0.05**2), abs=0.002)


@pytest.mark.parametrize("truth", [[0.0] * 5, [0, 0, 0, 0, 0.2], [0, 0.05, 0.1, 0.15, 0.2]])
def test_the_interval_holds_the_true_largest_gap_and_the_bias_is_gone(truth):
    random, errors = np.random.default_rng(0), np.array([0.03, 0.04, 0.05, 0.06, 0.08])
    found = [gap(list(truth + errors * random.normal(size=5)), errors) for _ in range(400)]
    true = np.ptp(truth)
    assert np.mean([each.low <= true + 1e-9 and true <= each.high for each in found]) >= 0.94
    observed, corrected = (
        np.mean([getattr(each, name) for each in found]) - true for name in ("observed", "value")
    )
    assert observed > 0.02
    assert abs(corrected) < 0.75 * observed
    if true == 0:
        assert np.mean([each.low > 0 for each in found]) <= 0.06
        assert np.sqrt(np.mean([each.observed**2 for each in found])) == pytest.approx(
            found[0].by_chance, rel=0.06
        )
