from __future__ import annotations

import numpy as np
import pytest

from neurofoundry.contracts import mni
from neurofoundry.contracts.volumes import BOX_MM


def test_maps_are_scaled_to_one_and_are_where_they_belong() -> None:
    t1, affine = mni.load("t1")
    assert (t1.dtype, float(t1.min())) == (np.float32, 0)
    assert 0.9 < t1.max() <= 1
    white, _ = mni.load("wm")
    for place in ((-25, -20, 25), (25, -20, 25)):
        index = tuple(np.rint(np.linalg.inv(affine) @ [*place, 1])[:3].astype(int))
        assert white[index] > 0.9, place
        assert t1[index] > 0.6, place


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_fills_the_box_from_the_top(axis: int) -> None:
    points = mni.plane(axis, 12.5, 2.0)
    across, up = (other for other in range(3) if other != axis)
    sizes = [round((high - low) / 2) for low, high in BOX_MM]
    assert points.shape == (sizes[up], sizes[across], 3)
    assert (points[..., axis] == 12.5).all()
    low, high = BOX_MM[up]
    assert (points[0, :, up] == high - 1).all()
    assert (points[-1, :, up] == low + 1).all()
    low, high = BOX_MM[across]
    assert (points[:, 0, across] == low + 1).all()
    assert (points[:, -1, across] == high - 1).all()
