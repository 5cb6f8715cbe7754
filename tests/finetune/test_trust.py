from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.special import softmax
from sklearn.metrics import log_loss

from neurofoundry.errors import DataError
from neurofoundry.finetune import trust
from neurofoundry.finetune.trust import Trust
from neurofoundry.tasks.conformal import COVERAGE
from tests.support.tiny import AGE, DIAGNOSIS


def regression(residuals: np.ndarray, random: np.random.Generator) -> Trust:
    n = len(residuals)
    features = random.normal(size=(n, 3))
    targets = random.normal(50, 10, n)
    outputs = (targets + residuals)[:, None]
    return trust.fit(features, features, outputs, targets, np.arange(n), AGE)


def half_width(found: Trust) -> float:
    (half,) = found.uncertainty.limits
    return half


class TestDistance:
    def test_it_is_mahalanobis_of_the_true_covariance_with_many_scans(self) -> None:
        random = np.random.default_rng(0)
        mix = random.normal(size=(4, 4))
        learn = random.normal(size=(20000, 4)) @ mix + 5
        val = random.normal(size=(400, 4)) @ mix + 5
        found = trust.fit(learn, val, val[:, :1], val[:, 0], np.arange(len(val)), AGE)
        inverse = np.linalg.inv(mix.T @ mix)
        expected = [mahalanobis(scan, np.full(4, 5.0), inverse) for scan in val]
        np.testing.assert_allclose(found.distance(val), expected, rtol=0.05)
        assert (found.distance(val) > found.distance_limit).mean() <= 1 - trust.FAMILIAR

    def test_fewer_scans_than_features_and_features_that_never_change(self) -> None:
        random = np.random.default_rng(1)
        learn, val = random.normal(size=(12, 64)), random.normal(size=(8, 64))
        learn[:, :10] = val[:, :10] = 0
        found = trust.fit(learn, val, val[:, :1], val[:, 0], np.arange(len(val)), AGE)
        far = found.distance(val + 20)
        assert np.isfinite(far).all()
        assert (far > found.distance_limit).all()


class TestTemperature:
    def test_it_is_the_best_of_a_fine_grid(self) -> None:
        random = np.random.default_rng(2)
        targets = random.integers(0, 2, 300)
        logits = random.normal(size=(300, 2)) + 2 * np.eye(2)[targets]
        persons = np.arange(300)
        found = trust.fit(logits, logits, 3 * logits, targets.astype(float), persons, DIAGNOSIS)
        grid = np.linspace(0.5, 10, 200)
        losses = [log_loss(targets, softmax(3 * logits / t, axis=1)) for t in grid]
        assert found.uncertainty.temperature == pytest.approx(grid[np.argmin(losses)], abs=0.05)

    def test_logits_that_are_right_are_left_as_they_are(self) -> None:
        random = np.random.default_rng(3)
        logits = random.normal(size=(20000, 2)) * 2
        targets = (random.random(20000) < softmax(logits, axis=1)[:, 1]).astype(float)
        persons = np.arange(20000)
        found = trust.fit(logits[:50], logits, logits, targets, persons, DIAGNOSIS)
        assert found.uncertainty.temperature == pytest.approx(1, abs=0.05)


class TestSets:
    def test_each_class_has_the_limit_of_those_who_have_it_each_counted_once(self) -> None:
        random = np.random.default_rng(8)
        targets = np.repeat([0, 1], [14, 30])
        persons = np.r_[np.arange(14), 14 + np.arange(30) // 2]  # the ill were scanned twice
        logits = random.normal(size=(44, 2)) + np.eye(2)[targets]
        found = trust.fit(logits, logits, logits, targets.astype(float), persons, DIAGNOSIS)
        p = softmax(logits, axis=1)
        healthy = np.sort(1 - p[:14, 0])
        assert found.uncertainty.limits[0] == pytest.approx(healthy[13])  # ⌈15 · 0.9⌉ = 14th
        assert found.uncertainty.calibrated_on == (14, 15)
        # A scan of the ill counts half a person: 0.9 · 16 are 28.8 halves.
        assert found.uncertainty.limits[1] == pytest.approx(np.sort(1 - p[14:, 1])[28])


class TestInterval:
    def test_it_is_the_residual_of_the_conformal_rank(self) -> None:
        residuals = np.array([-1, 2, -3, 4, -5, 6, -7, 8, -9, 10.0])
        found = regression(residuals, np.random.default_rng(4))
        assert half_width(found) == pytest.approx(10)  # ⌈11 · 0.9⌉ = 10th of 10

    def test_too_few_scans_cannot_say(self) -> None:
        found = regression(np.ones(8), np.random.default_rng(5))
        assert half_width(found) == np.inf
        assert found.uncertainty.calibrated_on == (8,)

    def test_it_covers_what_it_promises(self) -> None:
        random = np.random.default_rng(6)
        covered = [
            abs(random.standard_t(4)) <= half_width(regression(random.standard_t(4, 29), random))
            for _ in range(1000)
        ]
        assert np.mean(covered) == pytest.approx(COVERAGE, abs=0.03)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = regression(np.arange(20.0), np.random.default_rng(7))
    trust.write(tmp_path / "trust.npz", found)
    again = trust.read(tmp_path / "trust.npz")
    assert np.array_equal(again.precision, found.precision)
    assert half_width(again) == half_width(found)
    assert again.uncertainty.calibrated_on == (20,)
    assert again.distance_limit == found.distance_limit
    with pytest.raises(DataError, match="Run finetune again"):
        trust.read(tmp_path / "gone.npz")
