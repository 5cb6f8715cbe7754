from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from neurofoundry.stats.outlines import compare, hausdorff95, lesions

Mask = NDArray[np.bool_]


def blobs(seed: int, level: float = 1.3) -> Mask:
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=(14, 15, 16))
    smooth = ndimage.gaussian_filter(noise, 1.5)
    found: Mask = smooth > level * smooth.std()
    return found


def surface(mask: Mask) -> list[tuple[int, ...]]:
    """Voxels of a mask of which a face touches the outside, one after another."""
    padded = np.pad(mask, 1)
    places = []
    for place in np.argwhere(mask):
        around = [
            tuple(place + 1 + step) for step in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int))
        ]
        if not all(padded[each] for each in around):
            places.append(tuple(place))
    return places


def naive_hausdorff95(one: Mask, other: Mask, spacing: float) -> float:
    ends = []
    for here, there in ((one, other), (other, one)):
        distances = [min(math.dist(a, b) for b in surface(there)) * spacing for a in surface(here)]
        ends.append(np.percentile(distances, 95))
    return float(max(ends))


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_a_naive_loop(seed: int) -> None:
    one, other = blobs(seed), blobs(seed + 10)
    expected = naive_hausdorff95(one, other, 2.5)
    assert hausdorff95(one, other, 2.5) == pytest.approx(expected, rel=1e-5)
    assert hausdorff95(other, one, 2.5) == pytest.approx(expected, rel=1e-5)
    assert hausdorff95(one, one, 2.5) == 0
    assert math.isnan(hausdorff95(one & False, one, 2.5))


@pytest.mark.parametrize("seed", range(4))
def test_dice_and_volumes_are_those_of_a_naive_loop_and_of_monai(seed: int) -> None:
    import torch
    from monai.metrics import compute_dice

    one, other = blobs(seed), blobs(seed + 1, 1.0)
    both = sum(bool(a and b) for a, b in zip(one.flat, other.flat, strict=True))
    compared = compare(one, other, spacing=1.0, voxel_ml=0.5)
    assert compared["dice"] == pytest.approx(2 * both / (sum(one.flat) + sum(other.flat)))
    pair = (torch.from_numpy(each)[None, None] for each in (one, other))
    assert compared["dice"] == pytest.approx(float(compute_dice(*pair)), rel=1e-6)
    assert compared["volume_error_ml"] == abs(sum(one.flat) - sum(other.flat)) * 0.5


def test_lesions_are_counted_by_hand() -> None:
    """Three lesions of 1, 8 and 64 voxels; the middle one is missed, and two are invented."""
    truth, found = np.zeros((2, 20, 20, 20), bool)
    truth[1, 1, 1] = truth[5:7, 5:7, 5:7] = truth[10:14, 10:14, 10:14] = True
    found[1, 1, 1] = found[12:16, 10:14, 10:14] = True
    found[0, 18, 18] = found[1, 19, 19] = True  # by a corner, so one
    found[18, 2, 2] = True
    counted = lesions(found, truth, voxel_ml=0.2)
    assert counted == {
        "lesion_f1": 2 * 2 / (2 + 3 + 2),
        "sensitivity_small": 1.0,
        "sensitivity_medium": 0.0,
        "sensitivity_large": 1.0,
    }


def test_an_empty_label_image_says_only_whether_anything_is_invented() -> None:
    nothing = np.zeros((4, 4, 4), bool)
    something = nothing.copy()
    something[0, 0] = True
    for found, right in ((nothing, 1.0), (something, 0.0)):
        compared = compare(found, nothing, spacing=1.0, voxel_ml=0.5)
        assert compared["nothing_found"] == right
        assert compared["volume_error_ml"] == 2.0 * (1 - right)
        assert math.isnan(compared["dice"])
    missed = compare(nothing, something, spacing=1.0, voxel_ml=0.5)
    assert (missed["dice"], missed["lesion_f1"]) == (0, 0)
    assert math.isnan(missed["hd95_mm"])
