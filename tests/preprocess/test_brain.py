from __future__ import annotations

import numpy as np

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import brain, surface
from neurofoundry.preprocess.resample import Image
from tests.support.preprocessing import PARAMS, image_of


def test_the_brain_of_synthetic_heads_is_found(heads: list[Head]) -> None:
    for scan in heads:
        vertices = brain.find_brain(image_of(scan), PARAMS).surface
        found = surface.fill(vertices, scan.affine, scan.brain.shape)
        dice = 2 * (found & scan.brain).sum() / (found.sum() + scan.brain.sum())
        assert dice > 0.85


def test_the_template_overrules_the_mask_only_far_from_its_edge() -> None:
    depth = np.array([-9.0, -6.0, 1.0, 4.0], np.float32)
    everywhere, nowhere = np.ones(4, bool), np.zeros(4, bool)
    assert brain.trust_template(everywhere, depth).tolist() == [False, True, True, True]
    assert brain.trust_template(nowhere, depth).tolist() == [False, False, False, True]


def test_dark_voxels_at_the_edge_and_thin_spikes_are_no_brain() -> None:
    place = np.indices((60, 60, 60)) - 30
    radius = np.sqrt((place**2).sum(axis=0))
    depth = (22 - radius).astype(np.float32)  # the template's edge is at 22 mm
    fluid = (radius > 21) & (place[0] < 0)  # on one side alone
    ventricle = radius < 6
    spike = (abs(place[1]) <= 1) & (abs(place[2]) <= 1) & (radius > 24) & (place[0] > 0)
    mask = (radius < 24) | (spike & (radius < 28))
    values = np.where(fluid | ventricle, 30, 100).astype(np.float32)
    found = brain.rim(values, mask, depth, dark=10, spacing=1)
    # What lies where fluid ends, and the spike's root, are up to the shape that opens the mask.
    sure = (abs(place[0]) > 4) & ~(spike & (radius < 26))
    np.testing.assert_array_equal(found[sure], (mask & (fluid | spike))[sure])
    # With a background at 0 the same fluid has 0.3 of the deep brain's brightness, with voxels of
    # 4 mm a spike of 3 voxels is no thin one, and of a scan without a middle nothing is known.
    np.testing.assert_array_equal(brain.rim(values, mask, depth, 0, 4), mask & fluid)
    assert not brain.rim(values, mask, depth, dark=-40, spacing=4).any()
    assert not brain.rim(values, mask & (depth < 10), depth, dark=10, spacing=1).any()


def test_a_scan_of_a_brain_alone_is_its_own_mask_and_a_head_is_not(heads: list[Head]) -> None:
    scan = image_of(heads[2])
    assert brain.stripped(scan) is None
    alone = Image(np.where(heads[2].brain, scan.values, 0).astype(np.float32), scan.affine)
    found = brain.stripped(alone)
    assert found is not None
    # Dark voxels within are filled, strays without are not brain.
    assert (found.values.astype(bool) ^ heads[2].brain).sum() < 0.01 * heads[2].brain.sum()


def test_the_largest_component_is_the_one_with_most_voxels_and_nothing_of_nothing() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, :2] = mask[2, 2, 1:5] = mask[5, 5, 3:] = True
    found = brain.largest_component(mask)
    assert np.argwhere(found).tolist() == [[2, 2, x] for x in range(1, 5)]
    assert not brain.largest_component(np.zeros_like(mask)).any()
