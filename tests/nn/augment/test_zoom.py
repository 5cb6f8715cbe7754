"""Views that keep millimetres, and the zoom of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from neurofoundry.nn import augment
from neurofoundry.nn.augment import Draws, batched, cpu
from neurofoundry.nn.augment.params import AugmentParams
from tests.nn.augment.conftest import (
    GEOMETRY,
    PAPER,
    PLAIN,
    SHAPE,
    draw,
    heads,
    in_voxels,
    numpy_standardize,
)

Apply = Callable[[torch.Tensor, Draws], torch.Tensor]
MILLIMETRES = GEOMETRY.model_copy(update={"zoom": False, "crop": (0.4, 0.8)})


@pytest.fixture(params=[cpu, batched], ids=["cpu", "batched"])
def apply(request: pytest.FixtureRequest) -> Apply:
    way: Apply = request.param.apply
    return way


@pytest.mark.parametrize("shape", [SHAPE, (25, 32, 32), (33, 40, 37)])
def test_a_crop_without_zoom_is_scipys_rigid_resampling_within_its_edges(
    apply: Apply, shape: tuple[int, int, int]
) -> None:
    volumes = heads(6, shape)
    draws = draw(MILLIMETRES, *"abcdef", view=1, shape=shape)
    zoomed = draw(MILLIMETRES.model_copy(update={"zoom": True}), *"abcdef", view=1, shape=shape)
    views = apply(volumes, draws).numpy()
    for volume, view, affine, twin in zip(
        volumes.numpy(), views, draws.affine, zoomed.affine, strict=True
    ):
        matrix, offset = in_voxels(affine, shape)
        np.testing.assert_allclose(np.linalg.svd(matrix)[1], 1, atol=1e-5)  # no length changes
        edges = np.linalg.norm(in_voxels(twin, shape)[0], axis=0)  # z, y, x: what zoom would undo
        brain, share = (
            ndimage.affine_transform(
                image.astype(float), matrix, offset, order=1, mode="grid-constant"
            )
            for image in (volume[0], volume[0] != 0)
        )
        window = np.zeros(shape, bool)
        widths = [max(1, round(edge * n)) for edge, n in zip(edges, shape, strict=True)]
        starts = [(n - width) // 2 for n, width in zip(shape, widths, strict=True)]
        window[tuple(slice(a, a + w) for a, w in zip(starts, widths, strict=True))] = True
        sure, mask = abs(share - 0.5) > 1e-4, (share >= 0.5) & window
        np.testing.assert_array_equal((view[0] != 0)[sure], mask[sure])
        expected = numpy_standardize(brain / np.maximum(share, 0.5), mask)
        np.testing.assert_allclose(view[0][sure], expected[sure], atol=2e-3)


@pytest.mark.parametrize("shape", [SHAPE, (25, 32, 32)])
def test_both_ways_give_the_same_without_zoom(shape: tuple[int, int, int]) -> None:
    names = [str(number) for number in range(12)]
    params = AugmentParams(zoom=False)
    volumes = heads(len(names), shape)
    draws = replace(draw(params, *names, view=1, shape=shape), noise=torch.zeros(len(names)))
    one, other = cpu.apply(volumes, draws), batched.apply(volumes, draws)
    assert ((one != 0) != (other != 0)).sum() <= 4
    assert (one - other).abs().quantile(0.999) < 5e-4


@pytest.mark.parametrize(
    "params",
    [
        GEOMETRY,
        MILLIMETRES,
        AugmentParams.model_validate({**PLAIN, "rotation": 0}),
        PAPER,
    ],
    ids=["zoom", "millimetres", "straight", "paper"],
)
@pytest.mark.parametrize("view", [0, 1])
def test_magnifications_are_those_of_the_views(params: AugmentParams, view: int) -> None:
    names = [str(number) for number in range(20)]
    zoom = augment.magnifications(params, seed=1, epoch=0, scans=names, view=view)
    for factors, affine in zip(zoom, draw(params, *names, view=view).affine, strict=True):
        matrix, _ = in_voxels(affine)
        # Of the map from the view to the volume: 1 / volume of what a voxel shows, and its sense.
        np.testing.assert_allclose(factors.prod(), 1 / np.linalg.det(matrix), rtol=1e-4)
        if params is not PAPER:  # whose turn comes after the resizing
            lengths = np.linalg.norm(matrix, axis=0)[::-1]
            np.testing.assert_allclose(abs(factors), 1 / lengths, rtol=1e-4)


@pytest.mark.parametrize("way", [cpu, batched], ids=["cpu", "batched"])
def test_views_made_together_are_those_made_one_by_one(
    way: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, params = heads(3), AugmentParams()
    draws = [draw(params, *"abc", view=view) for view in range(2)]
    monkeypatch.setattr(batched, "AT_ONCE", 4)
    together = way.apply(volumes, Draws.joined(draws))  # type: ignore[attr-defined]
    each = torch.cat([way.apply(volumes, one) for one in draws])  # type: ignore[attr-defined]
    torch.testing.assert_close(together, each, atol=1e-4, rtol=0)
