from __future__ import annotations

import numpy as np
from scipy import ndimage

from neurofoundry.phantom.lattice import LatticeMap, lattice_points, lattice_shape


def test_sampling_agrees_with_scipy_inside_and_beyond_the_edges() -> None:
    rng = np.random.default_rng(0)
    lattice = LatticeMap(
        rng.standard_normal((7, 9, 8, 3)).astype(np.float32), (-4.0, 2.0, 10.0), 1.5
    )
    points = rng.uniform((-8, -2, 6), (12, 20, 28), (40_000, 3)).astype(np.float32)
    index = ((points - lattice.origin) / 1.5).T
    expected = [
        ndimage.map_coordinates(lattice.values[..., c], index, order=1, mode="nearest")
        for c in range(3)
    ]
    np.testing.assert_allclose(lattice.sample(points).T, expected, atol=2e-5)


def test_nearest_reads_the_closest_node() -> None:
    values = np.arange(5 * 6 * 7 * 2, dtype=np.float32).reshape(5, 6, 7, 2)
    lattice = LatticeMap(values, (0.0, 0.0, 0.0), 2.0)
    points = np.array([[2.9, 4.1, 12.0], [-50, 3.1, 90]], np.float32)
    assert lattice.nearest(points, 1).tolist() == [values[1, 2, 6, 1], values[0, 2, 6, 1]]


def test_lattices_reach_the_far_corner() -> None:
    shape = lattice_shape((0.0, 0.0, -1.0), (10.0, 9.0, 1.0), 3.0)
    points = lattice_points((0.0, 0.0, -1.0), shape, 3.0)
    assert points.max(axis=0).tolist() == [12, 9, 2]
