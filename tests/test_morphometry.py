"""Sizes of heads that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from neurofoundry import morphometry
from neurofoundry.contracts.volumes import SLOPE, Grid
from tests.evaluate.conftest import GRID, head


def steps(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """As `write_volume` and `open_volume` leave a volume."""
    volume = np.where(mask, np.rint(image / SLOPE), 0).astype(np.int16)
    volume[mask & (volume == 0)] = 1
    return volume.transpose(2, 1, 0)


def measured(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    sizes = morphometry.sizes_of(steps(image, mask), GRID)
    return dict(zip(morphometry.SIZES, sizes, strict=True))


def test_a_head_of_known_size_is_measured_in_millilitres_and_millimetres():
    image, mask = head(wide=False, large=False)
    sizes = measured(image, mask)
    assert sizes["brain_ml"] == pytest.approx(4 / 3 * np.pi * 6.8 * 8.4 * 6.6, rel=0.03)
    assert sizes["width_mm"] == pytest.approx(136, abs=7)
    assert sizes["length_mm"] == pytest.approx(168, abs=7)
    assert sizes["fluid_share"] == pytest.approx(0.3**3, rel=0.25)
    assert sizes["white_share"] == pytest.approx(0.75**3 - 0.3**3, rel=0.1)
    assert sizes["ventricles_ml"] > 0.8 * sizes["fluid_share"] * sizes["brain_ml"]
    assert sizes["mean_asymmetry"] < 0.1


def test_wide_ventricles_and_large_heads_show_and_brightness_does_not():
    usual, wide, large = (
        measured(*head(*how)) for how in ((False, False), (True, False), (False, True))
    )
    assert wide["ventricles_ml"] > 2 * usual["ventricles_ml"]
    assert large["brain_ml"] == pytest.approx(1.1**3 * usual["brain_ml"], rel=0.05)
    image, mask = head(wide=False, large=False)
    assert measured(0.7 * image + 0.4, mask) == pytest.approx(usual, rel=1e-6)


def test_a_lesion_of_one_side_is_an_asymmetry():
    image, mask = head(wide=False, large=False)
    image[5:9, 14:18, 11:15] = -2
    assert measured(image, mask)["largest_asymmetry"] > 0.8


def test_finer_grids_give_the_same_sizes():
    random = np.random.default_rng(0)
    fine, coarse = Grid(spacing=1.0), Grid(spacing=3.0)
    small = random.integers(1, 3000, (5, 5, 5)).repeat(10, 0).repeat(12, 1).repeat(12, 2)
    volume = np.zeros(coarse.shape[::-1], np.int16)
    volume[:50, :60, :60] = small
    whole = volume.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    one, other = morphometry.sizes_of(volume, coarse), morphometry.sizes_of(whole, fine)
    assert one == pytest.approx(other)


@pytest.mark.parametrize("seed", range(3))
def test_tissues_are_parted_where_a_search_over_all_pairs_finds_most_variance_between(seed):
    random = np.random.default_rng(seed)
    values = np.concatenate(
        [random.normal(m, 250, n) for m, n in ((-2000, 300), (0, 800), (1200, 700))]
    ).astype(np.int16)
    low, high = morphometry.tissue_thresholds(values)

    def between(a: float, b: float) -> float:
        parts = [values[values < a], values[(values >= a) & (values < b)], values[values >= b]]
        return sum(len(p) * (p.mean() - values.mean()) ** 2 for p in parts if len(p))

    best = max(between(a, b) for a in range(-2600, 2000, 100) for b in range(a + 100, 2000, 100))
    assert between(low, high) > 0.995 * best


def test_an_empty_volume_is_measured_as_nothing():
    assert not morphometry.sizes_of(np.zeros(GRID.shape[::-1], np.int16), GRID).any()


def test_fluid_beside_the_right_hippocampus_is_on_the_right():
    image, mask = head(wide=False, large=False)
    places = np.moveaxis(np.indices(GRID.shape), 0, -1) * GRID.spacing + GRID.affine[:3, 3]
    low, high = np.transpose(morphometry.TEMPORAL)
    right = ((low <= places) & (places <= high)).all(axis=-1)
    before, after = measured(image, mask), measured(np.where(right, -2.0, image), mask)
    assert after["right_temporal"] > 0.9 > before["right_temporal"] + 0.5
    assert after["left_temporal"] == pytest.approx(before["left_temporal"])


def test_the_rim_is_six_millimetres_deep():
    image, mask = head(wide=False, large=False)
    outer = mask & ~ndimage.binary_erosion(mask)  # a shell of one voxel of 6 mm
    sizes = measured(np.where(outer, -2.0, image), mask)
    assert sizes["rim_fluid_share"] == pytest.approx(1)
    assert sizes["fluid_share"] < 0.5
