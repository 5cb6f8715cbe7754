from __future__ import annotations

import numpy as np

from neurofoundry.phantom.atlas import BRAIN_CHANNELS, Atlas


def test_structures_of_the_average_brain_have_plausible_volumes(atlas: Atlas) -> None:
    volumes = {
        name: float(atlas.brain.values[..., BRAIN_CHANNELS.index(name)].sum()) * 0.008
        for name in ("ventricle", "hippocampus")
    }
    assert 15 < volumes["ventricle"] < 28
    assert 7 < volumes["hippocampus"] < 13


def test_both_sides_are_alike_before_anything_random(atlas: Atlas) -> None:
    x, y, z = np.random.default_rng(0).uniform((3, -90, -40), (60, 60, 70), (5000, 3)).T
    right, left = (np.stack([s * x, y, z], axis=1).astype(np.float32) for s in (1, -1))
    # The nodes are not mirrored about the midline, so interpolation differs a little.
    for lattice, tolerance in ((atlas.brain, 0.03), (atlas.shell, 0.3)):
        difference = np.abs(lattice.sample(right) - lattice.sample(left)).mean(axis=0)
        assert difference.max() < tolerance
