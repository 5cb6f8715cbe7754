from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import registration
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.placement import Placement, place
from neurofoundry.preprocess.resample import Image, resample
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.warp import Warp
from tests.support.preprocessing import PARAMS

POINTS = np.random.default_rng(0).uniform(-40, 40, (60, 3))
TURN = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix()
AFFINE, RIGID = from_matvec(TURN * 0.9, [5, -3, 8]), from_matvec(TURN, [5, -3, 8])


@pytest.mark.parametrize("bent", [False, True])
def test_points_are_bent_before_they_are_mapped_and_come_back(bent: bool) -> None:
    shift = np.full((60, 60, 60, 3), [2.0, -1, 3], np.float32)
    grid = from_matvec(np.diag([2.0, 2, 2]), [-59, -59, -59])
    placement = Placement(AFFINE, RIGID, Warp(shift, -shift, grid) if bent else None)
    moved = np.add(POINTS, [2.0, -1, 3]) if bent else POINTS
    np.testing.assert_allclose(placement.in_scan(POINTS), apply_affine(RIGID, moved), atol=1e-9)
    np.testing.assert_allclose(placement.in_mni(placement.in_scan(POINTS)), POINTS, atol=1e-9)


def test_the_template_is_seen_at_the_size_that_the_subject_has_in_mni_space() -> None:
    placement = Placement(AFFINE, RIGID)
    in_template = apply_affine(placement.to_template, POINTS)
    np.testing.assert_allclose(
        apply_affine(AFFINE, in_template), placement.in_scan(POINTS), atol=1e-9
    )
    assert np.linalg.det(placement.to_template) == pytest.approx(0.9**-3)


def test_a_turned_head_is_set_upright_with_its_brain_whole(
    heads: list[Head], template: Template
) -> None:
    """Lying on its side or upside down, the surface first grows in the face or the neck."""
    scan = heads[0]
    turns = registration.right_angled_rotations()[1::7]
    for turn in turns:
        affine = from_matvec(turn, np.zeros(3)) @ scan.affine
        found = find_brain(Image(scan.image.astype(np.float32), affine), PARAMS)
        ((placement, brain),) = place([found], [found.intensities()], PARAMS, template)
        true = from_matvec(turn, np.zeros(3)) @ np.linalg.inv(scan.pose)
        points = template.centre + POINTS
        apart = apply_affine(placement.to_scan, points) - apply_affine(true, points)
        assert np.linalg.norm(apart, axis=1).mean() < 3
        expected = Image(scan.brain.astype(np.float32), affine)
        inside = resample(expected, brain.head.affine, brain.inside.shape).values > 0.5
        assert 2 * (inside & brain.inside).sum() / (inside.sum() + brain.inside.sum()) > 0.9
