from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess.placement import Placement
from neurofoundry.preprocess.warp import Warp

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
