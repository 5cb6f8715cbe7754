from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts.sketches import (
    COPY,
    LENGTH,
    SAME_PERSON,
    detail,
    nearest,
    pairs,
    sketch,
    unit_rows,
)
from neurofoundry.contracts.volumes import Grid


def brain(seed: int, spacing: float = 3) -> NDArray[np.int16]:
    """A ball with detail of 8 mm of its own, axes (z, y, x)."""
    shape = Grid(spacing=spacing).shape[::-1]
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    coarse = np.random.default_rng(seed).normal(size=(25, 32, 32))
    fine = ndimage.zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    ball = np.linalg.norm(axes, axis=0) < 0.8
    return np.where(ball, 300 * fine + 400 * axes[0] + 900, 0).astype(np.int16)


def test_the_detail_is_that_of_a_loop_over_the_cells() -> None:
    volume = brain(1)
    means, filled = np.zeros((25, 32, 32)), np.zeros((25, 32, 32))
    for place in np.ndindex(means.shape):
        cell = volume[tuple(slice(2 * at, 2 * at + 2) for at in place)]
        filled[place] = np.mean(cell != 0)
        means[place] = cell[cell != 0].mean() if filled[place] else 0
    kernel = np.ones((3, 3, 3)) / 27
    slow = ndimage.convolve(means * filled, kernel) / np.maximum(
        ndimage.convolve(filled, kernel), 1e-6
    )
    expected = np.where(filled > 0.5, means - slow, 0)
    expected[filled > 0.5] -= expected[filled > 0.5].mean()
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(detail(volume), expected.ravel(), atol=1e-4)


def test_cosines_of_sketches_estimate_correlations_within_their_standard_error() -> None:
    base = brain(1)
    errors = []
    for seed in range(2, 22):
        mixed = (base * 0.8 + 0.6 * brain(seed)).astype(np.int16)
        exact = float(detail(base) @ detail(mixed))
        one, other = unit_rows([sketch(base), sketch(mixed)])
        errors.append((float(one @ other) - exact) / ((1 - exact**2) / np.sqrt(LENGTH)))
    assert np.std(errors) == pytest.approx(1, abs=0.45)
    assert abs(np.mean(errors)) < 0.8


@pytest.mark.parametrize("spacing", [1.5, 2, 3, 6])
def test_a_sketch_is_about_the_same_on_every_grid(spacing: float) -> None:
    cosine = unit_rows([sketch(brain(1))])[0] @ unit_rows([sketch(brain(1, spacing))])[0]
    assert cosine > 0.9


def test_copies_are_near_and_others_far() -> None:
    base = brain(1)
    noise = np.random.default_rng(0).normal(0, 60, base.shape)
    noisy = np.where(base, np.rint(base * 1.01 + noise), 0).astype(np.int16)
    rows = unit_rows([sketch(base), sketch(noisy), sketch(brain(2)), sketch(brain(3))])
    assert pairs(rows, COPY) == [(0, 1)]
    np.testing.assert_allclose(nearest(rows[:1], rows[1:]), [rows[0] @ rows[1]], rtol=1e-5)
    assert (nearest(rows[2:], rows[:2]) < SAME_PERSON).all()
    assert nearest(rows, rows[:0]).tolist() == [-1] * 4


def test_pairs_are_those_of_a_loop_however_many_rows_there_are() -> None:
    rows = np.random.default_rng(0).normal(size=(2100, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.triu(rows @ rows.T, 1)
    expected = [tuple(pair) for pair in np.argwhere(cosines >= 0.97)]
    assert sorted(pairs(rows, 0.97)) == expected
    assert len(expected) > 10


def test_no_brain_and_no_sketch() -> None:
    assert not detail(np.zeros((50, 64, 64), np.int16)).any()
    with pytest.raises(ValueError, match="base64"):
        unit_rows(["no sketch!"])
