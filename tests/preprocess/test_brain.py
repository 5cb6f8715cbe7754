from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial import ConvexHull, Delaunay

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import brain
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.resample import Image
from neurofoundry.preprocess.scan import _find_brain
from tests.preprocess.conftest import image_of
from tests.preprocess.test_scan import PARAMS

RNG = np.random.default_rng(0)


def test_the_sphere_is_round_closed_and_turns_outwards() -> None:
    vertices, faces = brain.sphere()
    assert vertices.shape == (642, 3)
    assert faces.shape == (1280, 3)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1)
    edges = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    # Closed and oriented: every edge is walked once in each direction.
    assert len(np.unique(edges, axis=0)) == len(edges)
    assert {tuple(e) for e in edges.tolist()} == {tuple(e[::-1]) for e in edges.tolist()}
    a, b, c = (vertices[faces[:, n]] for n in range(3))
    assert ((np.cross(b - a, c - a) * (a + b + c)).sum(axis=1) > 0).all()


def test_filling_an_ellipsoid_agrees_with_its_convex_hull_at_every_voxel() -> None:
    vertices, _ = brain.sphere()
    surface = vertices * [31, 44, 27] + [3, -5, 8]
    affine, shape = from_matvec(np.diag([3.0, 3, 3]), [-50, -60, -40]), (32, 34, 30)
    filled = brain.fill(surface, affine, shape)
    centres = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))
    expected = Delaunay(surface[ConvexHull(surface).vertices]).find_simplex(centres) >= 0
    np.testing.assert_array_equal(filled.ravel(), expected)


def test_filling_does_not_depend_on_the_axes_of_the_grid() -> None:
    vertices, _ = brain.sphere()
    surface = vertices * (20 + 3 * RNG.random((642, 1)))
    affine = from_matvec(np.diag([2.0, 2, 2]), [-30.3, -29.7, -30.1])
    filled = brain.fill(surface, affine, (30, 30, 30))
    turned = brain.fill(surface, affine[:, [2, 0, 1, 3]], (30, 30, 30))
    np.testing.assert_array_equal(turned.transpose(1, 2, 0), filled)


def test_the_brain_of_synthetic_heads_is_found(heads: list[Head]) -> None:
    for scan in heads:
        surface = _find_brain(image_of(scan), PARAMS).surface
        found = brain.fill(surface, scan.affine, scan.brain.shape)
        dice = 2 * (found & scan.brain).sum() / (found.sum() + scan.brain.sum())
        assert dice > 0.85


def test_the_template_overrules_the_mask_only_far_from_its_edge() -> None:
    depth = np.array([-9.0, -6.0, 1.0, 4.0], np.float32)
    everywhere, nowhere = np.ones(4, bool), np.zeros(4, bool)
    assert brain.correct(everywhere, depth).tolist() == [False, True, True, True]
    assert brain.correct(nowhere, depth).tolist() == [False, False, False, True]


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


def test_an_image_without_a_head_is_refused_in_words() -> None:
    speck = np.zeros((40, 40, 40), np.float32)
    speck[20, 20, 20] = 1
    with pytest.raises(UnusableScanError, match="no head"):
        brain.find_surface(Image(speck, np.diag([3.0, 3, 3, 1])))


def test_the_surface_around_a_mask_encloses_what_the_mask_does(heads: list[Head]) -> None:
    scan = image_of(heads[0])
    mask = Image(heads[0].brain.astype(np.float32), scan.affine)
    filled = brain.fill(brain.wrap(mask), scan.affine, mask.values.shape)
    assert 2 * (filled & heads[0].brain).sum() / (filled.sum() + heads[0].brain.sum()) > 0.95


def test_a_scan_of_a_brain_alone_is_its_own_mask_and_a_head_is_not(heads: list[Head]) -> None:
    scan = image_of(heads[2])
    assert brain.stripped(scan) is None
    alone = Image(np.where(heads[2].brain, scan.values, 0).astype(np.float32), scan.affine)
    found = brain.stripped(alone)
    assert found is not None
    # Dark voxels within are filled, strays without are not brain.
    assert (found.values.astype(bool) ^ heads[2].brain).sum() < 0.01 * heads[2].brain.sum()


def test_the_largest_part_is_the_one_with_most_voxels_and_nothing_of_nothing() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, :2] = mask[2, 2, 1:5] = mask[5, 5, 3:] = True
    found = brain.largest_part(mask)
    assert np.argwhere(found).tolist() == [[2, 2, x] for x in range(1, 5)]
    assert not brain.largest_part(np.zeros_like(mask)).any()
