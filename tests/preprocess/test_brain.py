from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import brain, surface
from neurofoundry.preprocess.resample import Image, Mask
from tests.support.preprocessing import PARAMS, image_of


def test_the_brain_of_synthetic_heads_is_found(heads: list[Head]) -> None:
    for scan in heads:
        vertices = brain.find_brain(image_of(scan), PARAMS).surface
        found = surface.fill(vertices, scan.affine, scan.brain.shape)
        dice = 2 * (found & scan.brain).sum() / (found.sum() + scan.brain.sum())
        assert dice > 0.85


def test_what_splines_leave_below_the_air_changes_no_brain(heads: list[Head]) -> None:
    air = image_of(heads[0])
    lowest = np.float32(np.percentile(air.values, 5))
    clean = Image(np.maximum(air.values, lowest), air.affine)
    values = clean.values.copy()
    rng = np.random.default_rng(0)
    below = (values == lowest) & (rng.random(values.shape) < 0.05)
    values[below] -= np.float32(0.2 * values.max())
    assert 0 < below.mean() < 0.01
    found = brain.find_brain(Image(values, air.affine), PARAMS)
    expected = brain.find_brain(clean, PARAMS)
    np.testing.assert_allclose(found.surface, expected.surface)
    assert found.zero == expected.zero


def layers() -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, Mask]]:
    """A ball of brain in fluid, skull and fat at 2 mm; depth within a template's edge at 50 mm."""
    place = 2.0 * (np.indices((80, 80, 80)) - 40)
    radius = np.sqrt((place**2).sum(axis=0))
    stalk = (abs(place[1]) <= 2) & (abs(place[2]) < 2) & (place[0] > 0)
    parts = {
        "brain": radius < 48,
        "ventricle": radius < 12,
        "sulcus": (abs(place[0]) <= 2) & (radius > 30) & (radius < 48) & (place[2] > 0),
        "fat": radius > 56,
        "stalk": stalk & (radius >= 48) & (radius < 56),
    }
    values = np.full(radius.shape, 30, np.float32)
    values[parts["brain"] | parts["stalk"]] = 100
    values[parts["ventricle"] | parts["sulcus"]] = 30
    values[parts["fat"]] = 220
    return values, (50 - radius).astype(np.float32), parts


def test_the_brain_is_what_is_bright_within_the_template_with_its_sulci_and_ventricles() -> None:
    values, depth, parts = layers()
    found = brain.tissue_of_brain(Image(values, np.diag([2.0, 2, 2, 1])), depth, 0)
    assert found[parts["ventricle"] | (parts["sulcus"] & (depth > 6))].all()
    assert not found[parts["fat"] | (parts["stalk"] & (depth < -3))].any()
    assert (found ^ parts["brain"]).sum() < 0.02 * parts["brain"].sum()


def test_dark_fluid_inside_the_template_and_brain_outside_of_it_are_told_apart() -> None:
    values, depth, parts = layers()
    affine = np.diag([2.0, 2, 2, 1])
    # An atrophic brain ends 4 mm deeper than it does, one that swells reaches 4 mm beyond.
    for shift in (-4, 4):
        found = brain.tissue_of_brain(Image(values, affine), depth - shift, 0)
        assert 2 * (found & parts["brain"]).sum() / (found.sum() + parts["brain"].sum()) > 0.97


def test_slices_that_mix_the_skull_with_its_neighbours_do_not_let_the_mask_grow() -> None:
    values, depth, parts = layers()
    # The dark between brain and scalp as slices of 4 mm show it: half of either lies in each.
    mixed = np.where((depth < 2) & (depth > -6), np.float32(47), values)
    thin, thick = (
        brain.tissue_of_brain(Image(mixed, np.diag([2.0, 2, 2, 1])), depth, 0, slices_mm)
        for slices_mm in (3, 4)
    )
    assert (thin & ~parts["brain"]).sum() > 0.1 * parts["brain"].sum()
    assert (thick ^ parts["brain"]).sum() < 0.02 * parts["brain"].sum()


def test_where_the_template_has_no_brain_nothing_is_one() -> None:
    values, depth, _ = layers()
    head = Image(values, np.diag([2.0, 2, 2, 1]))
    assert not brain.tissue_of_brain(head, np.full_like(depth, -100), 0).any()


def test_a_brain_settles_where_the_template_is_unless_its_mask_was_given_or_it_is_not_there() -> (
    None
):
    values, depth, parts = layers()
    head = Image(values, np.diag([2.0, 2, 2, 1]))
    leaked = parts["brain"] | (abs(np.indices(depth.shape)[0] - 40) < 5)
    alone = brain.Brain(head, leaked, surface.sphere()[0], None, None)
    settled = brain.settle(alone, depth)
    assert settled.mask is not None
    np.testing.assert_array_equal(settled.mask.values > 0, settled.inside)
    assert (settled.inside ^ parts["brain"]).sum() < 0.02 * parts["brain"].sum()
    given = replace(alone, mask=Image(leaked.astype(np.float32), head.affine))
    assert brain.settle(given, depth) is given
    dark = replace(alone, head=Image(np.where(depth > 8, values, 0), head.affine))
    beside = np.roll(depth, 36, axis=0)
    assert brain.settle(dark, beside) is dark


def test_a_ball_is_round() -> None:
    assert brain.ball(1).sum() == 7
    assert brain.ball(1.5).sum() == 19
    assert brain.ball(2.05).sum() == 33


def test_a_scan_of_a_brain_alone_is_its_own_mask_and_a_head_is_not(heads: list[Head]) -> None:
    scan = image_of(heads[2])
    assert brain.stripped(scan) is None
    alone = Image(np.where(heads[2].brain, scan.values, 0).astype(np.float32), scan.affine)
    found = brain.stripped(alone)
    assert found is not None
    # Dark voxels within are filled, strays without are not brain.
    assert (found.values.astype(bool) ^ heads[2].brain).sum() < 0.01 * heads[2].brain.sum()


def test_a_stripped_brain_with_ripples_below_its_background_is_one_too(heads: list[Head]) -> None:
    """As splines leave them that resample it, on any value of the background."""
    scan = image_of(heads[2])
    alone = np.where(heads[2].brain, scan.values, 0).astype(np.float32)
    rippled = ndimage.shift(alone, (0.4, 0.3, -0.4), order=3, prefilter=True).astype(np.float32)
    assert rippled.min() < -0.02 * rippled.max()
    for offset in (0, -500, 300):
        image = Image(rippled + np.float32(offset), scan.affine)
        found = brain.find_brain(image, PARAMS)
        assert found.mask is not None
        moved = ndimage.shift(heads[2].brain.astype(np.float32), (0.4, 0.3, -0.4), order=1) > 0.5
        inside = found.mask.values > 0
        assert 2 * (inside & moved).sum() / (inside.sum() + moved.sum()) > 0.9
        assert found.head.values.min() >= offset - 1


def test_surroundings_of_a_brain_may_have_a_value_from_the_middle_of_its_own(
    heads: list[Head],
) -> None:
    """As in z-scores, and in intensities from -1 to 1."""
    scan, inside = image_of(heads[2]), heads[2].brain
    values = np.where(inside, scan.values, 0)
    own = values[inside]
    for scaled in ((values - own.mean()) / own.std(), 2 * values / own.max() - 1):
        image = Image(np.where(inside, scaled, 0).astype(np.float32), scan.affine)
        found = brain.find_brain(image, PARAMS)
        assert found.mask is not None
        assert ((found.mask.values > 0) ^ inside).sum() < 0.01 * inside.sum()
        # What lies around the brain is as dark as its darkest: no brighter than fluid.
        fluid = np.percentile(found.head.values[found.inside], 5)
        assert np.median(found.head.values[~found.inside]) < fluid


def test_a_small_head_with_a_dark_skull_in_blackened_air_is_not_stripped() -> None:
    """What is bright in it is as small as a brain."""
    radius = 2.0 * np.sqrt(((np.indices((90, 90, 90)) - 45) ** 2).sum(axis=0))
    values = np.select([radius < 72, radius < 84], [100.0, 3.0], 0.0).astype(np.float32)
    assert brain.stripped(Image(values, np.diag([2.0, 2, 2, 1]))) is None
    values[radius >= 72] = 0
    assert brain.stripped(Image(values, np.diag([2.0, 2, 2, 1]))) is not None


def test_the_largest_component_is_the_one_with_most_voxels_and_nothing_of_nothing() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, :2] = mask[2, 2, 1:5] = mask[5, 5, 3:] = True
    found = brain.largest_component(mask)
    assert np.argwhere(found).tolist() == [[2, 2, x] for x in range(1, 5)]
    assert not brain.largest_component(np.zeros_like(mask)).any()
