from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial import ConvexHull, Delaunay
from scipy.spatial.transform import Rotation

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import surface
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.resample import Image, coarsen, resample
from tests.support.preprocessing import image_of

RNG = np.random.default_rng(0)


def test_the_sphere_is_round_closed_and_turns_outwards() -> None:
    vertices, faces = surface.sphere()
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
    vertices, _ = surface.sphere()
    ellipsoid = vertices * [31, 44, 27] + [3, -5, 8]
    affine, shape = from_matvec(np.diag([3.0, 3, 3]), [-50, -60, -40]), (32, 34, 30)
    filled = surface.fill(ellipsoid, affine, shape)
    centres = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))
    expected = Delaunay(ellipsoid[ConvexHull(ellipsoid).vertices]).find_simplex(centres) >= 0
    np.testing.assert_array_equal(filled.ravel(), expected)


def test_filling_does_not_depend_on_the_axes_of_the_grid() -> None:
    vertices, _ = surface.sphere()
    bumpy = vertices * (20 + 3 * RNG.random((642, 1)))
    affine = from_matvec(np.diag([2.0, 2, 2]), [-30.3, -29.7, -30.1])
    filled = surface.fill(bumpy, affine, (30, 30, 30))
    turned = surface.fill(bumpy, affine[:, [2, 0, 1, 3]], (30, 30, 30))
    np.testing.assert_array_equal(turned.transpose(1, 2, 0), filled)


def test_an_image_without_a_head_is_refused_in_words() -> None:
    speck = np.zeros((40, 40, 40), np.float32)
    speck[20, 20, 20] = 1
    with pytest.raises(UnusableScanError, match="no head"):
        surface.find_surface(Image(speck, np.diag([3.0, 3, 3, 1])))


def test_the_surface_around_a_mask_encloses_what_the_mask_does(heads: list[Head]) -> None:
    scan = image_of(heads[0])
    mask = Image(heads[0].brain.astype(np.float32), scan.affine)
    filled = surface.fill(surface.wrap(mask), scan.affine, mask.values.shape)
    assert 2 * (filled & heads[0].brain).sum() / (filled.sum() + heads[0].brain.sum()) > 0.95


@pytest.mark.parametrize("angles", [(28, -20, 15), (-25, 25, -28), (0, 0, 0)])
def test_the_surface_of_a_tilted_head_stays_in_the_brain(
    heads: list[Head], angles: tuple[float, float, float]
) -> None:
    turn = from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), np.zeros(3))
    for scan in heads:
        tilted = Image(scan.image.astype(np.float32), turn @ scan.affine)
        head = coarsen(tilted, surface.SPACING_MM, outside=float(tilted.values.min()))
        found = surface.fill(surface.find_surface(head), head.affine, head.values.shape)
        true = Image(scan.brain.astype(np.float32), tilted.affine)
        expected = resample(true, head.affine, head.values.shape).values > 0.5
        assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.85
