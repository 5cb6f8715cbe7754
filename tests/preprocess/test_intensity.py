from __future__ import annotations

import numpy as np
import pytest
from scipy import interpolate, stats

from neurofoundry.preprocess.intensity import (
    PERCENTILES,
    STRIPE,
    STRIPE_UNIT,
    landmarks,
    nyul,
    standard_scale,
    white_mode,
    whitestripe,
    zscore,
)

RNG = np.random.default_rng(0)
MASK = RNG.random((30, 30, 30)) < 0.7


def brain(csf: float = 0.2, grey: float = 0.6, white: float = 1.0) -> np.ndarray:
    tissue = RNG.choice([csf, grey, white], p=[0.15, 0.45, 0.4], size=MASK.shape)
    values = tissue + RNG.normal(0, 0.05, MASK.shape)
    return np.where(MASK, values, 77.0).astype(np.float32)


def test_zscores_are_those_of_scipy() -> None:
    values = brain()
    found = zscore(values, MASK)
    np.testing.assert_allclose(found[MASK], stats.zscore(values[MASK]), atol=1e-4)
    assert (found[~MASK] == 0).all()


@pytest.mark.parametrize("white", [0.9, 1.3])
def test_the_mode_of_white_matter_is_the_brightest_peak_of_a_density_estimate(white: float) -> None:
    inside = brain(white=white)[MASK].astype(float)
    density = stats.gaussian_kde(inside[:6000])
    places = np.linspace(white - 0.15, white + 0.15, 400)
    assert white_mode(inside) == pytest.approx(places[density(places).argmax()], abs=0.02)


def test_whitestripe_agrees_with_a_stripe_counted_by_hand() -> None:
    values = brain()
    inside = np.sort(values[MASK].astype(float))
    mode = white_mode(inside)
    below = int((inside < mode).sum())
    width = round(STRIPE * len(inside))
    stripe = inside[below - width : below + width]
    expected = (values[MASK] - stripe.mean()) / stripe.std() / STRIPE_UNIT
    found = whitestripe(values, MASK)
    np.testing.assert_allclose(found[MASK], expected, atol=0.03 * np.abs(expected).max())
    assert abs(np.median(found[MASK & (np.abs(values - 1) < 0.1)])) < 0.1
    assert (found[~MASK] == 0).all()


def test_whitestripe_and_zscore_forget_gain_and_offset() -> None:
    values = brain()
    for normalize in (zscore, whitestripe):
        once, again = normalize(values, MASK), normalize(values * 37 + 12, MASK)
        np.testing.assert_allclose(once, again, atol=2e-2)


def test_landmarks_are_percentiles_counted_by_hand() -> None:
    inside = RNG.random(1000)
    ordered = np.sort(inside)
    for percentile, found in zip(PERCENTILES, landmarks(inside), strict=True):
        place = percentile / 100 * 999
        low = int(place)
        share = place - low
        by_hand = ordered[low] * (1 - share) + ordered[low + 1] * share
        assert found == pytest.approx(by_hand)


def test_nyul_is_the_piecewise_linear_map_of_scipy_beyond_its_ends_too() -> None:
    values = brain()
    found = landmarks(values[MASK])
    standard = np.sort(RNG.normal(size=len(PERCENTILES)))
    line = interpolate.interp1d(found, standard, fill_value="extrapolate")
    mapped = nyul(values, MASK, own=found, standard=standard)
    np.testing.assert_allclose(mapped[MASK], line(values[MASK].astype(float)), atol=1e-5)
    np.testing.assert_allclose(landmarks(mapped[MASK]), standard, atol=1e-3)
    assert (mapped[~MASK] == 0).all()


def test_nyul_bears_landmarks_that_coincide() -> None:
    values = np.where(MASK, np.round(brain() * 3), 0).astype(np.float32)
    mapped = nyul(values, MASK, own=landmarks(values[MASK]), standard=np.arange(11.0))
    assert np.isfinite(mapped).all()
    uniform = np.array([2.0] * 11)
    np.testing.assert_array_equal(
        nyul(values, MASK, own=uniform, standard=np.arange(11.0)), zscore(values, MASK)
    )


def test_the_standard_scale_is_a_median_that_one_odd_scan_hardly_moves() -> None:
    insides = [brain(csf=0.2 + 0.02 * n, grey=0.6 + 0.01 * n)[MASK].astype(float) for n in range(7)]
    brains = [(landmarks(inside), float(inside.mean()), float(inside.std())) for inside in insides]
    expected = [
        sorted((np.percentile(inside, p) - inside.mean()) / inside.std() for inside in insides)[3]
        for p in PERCENTILES
    ]
    standard = standard_scale(brains)
    np.testing.assert_allclose(standard, expected, atol=1e-5)
    odd = RNG.exponential(size=5000)
    moved = standard_scale([*brains, (landmarks(odd), float(odd.mean()), float(odd.std()))])
    assert np.abs(np.subtract(moved, standard)).max() < 0.15
