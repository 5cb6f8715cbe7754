from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from monai import transforms
from monai.data.meta_tensor import MetaTensor
from pydantic import ValidationError

from neurofoundry.nn import augment, seeds
from neurofoundry.nn.augment import Draws
from neurofoundry.nn.augment.batched import bias_field
from neurofoundry.nn.augment.draws import KNOTS
from neurofoundry.nn.augment.params import AugmentParams
from tests.nn.augment.conftest import PAPER, SHAPE, STILL, draw, in_voxels


def rows(draws: Draws) -> list[bytes]:
    """Each scan's parameters as bytes."""
    columns = [getattr(draws, field.name).numpy() for field in fields(draws)]
    return [b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0]))]


def test_the_same_key_draws_the_same_view() -> None:
    assert rows(draw(AugmentParams(), "a", "b")) == rows(draw(AugmentParams(), "a", "b"))


@pytest.mark.parametrize("params", [AugmentParams(), PAPER], ids=["robust", "paper"])
def test_no_two_views_are_alike(params: AugmentParams) -> None:
    scans = [f"scan-{number}" for number in range(50)]
    drawn = [
        row
        for seed in (1, 2)
        for epoch in range(3)
        for view in range(2)
        for row in rows(draw(params, *scans, view=view, epoch=epoch, seed=seed))
    ]
    assert len(set(drawn)) == len(drawn) == 600


def test_no_parameter_is_shared_between_views() -> None:
    views = [draw(AugmentParams(), *map(str, range(40)), view=view) for view in range(2)]
    for field in fields(Draws):
        values = torch.cat([getattr(view, field.name) for view in views])
        few = field.name in ("negative", "coarse", "shown")
        assert few or len(values.unique(dim=0)) == 80


def test_the_batch_does_not_change_a_scans_view() -> None:
    together = rows(draw(AugmentParams(), "a", "b", "c", view=1))
    assert rows(draw(AugmentParams(), "c", "a", view=1)) == [together[2], together[0]]


def test_the_random_numbers_are_those_of_every_machine() -> None:
    assert seeds.generator(1, "order", 2).integers(1000, size=4).tolist() == [
        4,
        834,
        495,
        854,
    ]


def test_a_view_is_a_rigid_turn_of_a_bounded_nearly_isotropic_crop() -> None:
    params = AugmentParams(crop=(0.5, 0.9), stretch=1.2)
    flipped = 0
    for affine in draw(params, *map(str, range(200))).affine:
        linear, _ = in_voxels(affine)
        gram = linear.T @ linear
        edges = np.sqrt(np.diag(gram))
        np.testing.assert_allclose(gram, np.diag(edges**2), atol=1e-6)
        assert 0.5 - 1e-6 <= edges.min() <= edges.max() <= 0.9 + 1e-6
        assert edges.max() / edges.min() <= 1.2 + 1e-6
        flipped += np.linalg.det(linear) < 0
    assert 70 < flipped < 130


@pytest.mark.parametrize(
    "params",
    [
        AugmentParams(rotation=0, min_overlap=0.8),
        AugmentParams(rotation=0, crop=(0.3, 0.9), stretch=1.4, min_overlap=0.5),
    ],
)
def test_two_views_share_what_was_asked(params: AugmentParams) -> None:
    scans = [str(number) for number in range(200)]
    views = [draw(params, *scans, view=view).affine.double() for view in range(2)]
    axis = (torch.arange(30, dtype=torch.float64) + 0.5) / 15 - 1
    points = torch.cartesian_prod(axis, axis, axis)
    shares = []
    for affines in zip(*views, strict=True):
        seen = [
            (torch.linalg.solve(affine[:, :3], (points - affine[:, 3]).T).abs() <= 1).all(0)
            for affine in affines
        ]
        shares.append(((seen[0] & seen[1]).sum() / min(seen[0].sum(), seen[1].sum())).item())
    assert min(shares) > params.min_overlap - 0.05  # as finely as a lattice of 30³ points sees
    assert min(shares) < params.min_overlap + 0.1
    assert max(shares) > 0.9


def test_two_turned_views_share_most_of_the_brain() -> None:
    params = AugmentParams()
    scans = [str(number) for number in range(300)]
    views = [draw(params, *scans, view=view).affine.double() for view in range(2)]
    axis = (torch.arange(24, dtype=torch.float64) + 0.5) / 12 - 1
    points = torch.cartesian_prod(axis, axis, axis)
    # An ellipsoid as wide, long and high as the template's brain in its box.
    brain = points[((points / torch.tensor([0.73, 0.92, 0.93])) ** 2).sum(dim=1) < 1]
    for affines in zip(*views, strict=True):
        seen = [
            (torch.linalg.solve(affine[:, :3], (brain - affine[:, 3]).T).abs() <= 1).all(0)
            for affine in affines
        ]
        shared = (seen[0] & seen[1]).sum() / min(seen[0].sum(), seen[1].sum())
        assert shared > params.min_overlap + 0.1


def test_the_paper_preset_draws_from_the_published_distribution() -> None:
    """Against 200,000 draws of the authors' MONAI transforms: fractions of them."""
    shape = (150, 192, 192)
    scans = [str(number) for number in range(1500)]
    views = [
        augment.draw(PAPER, seed=1, epoch=0, scans=scans, view=view, shape=shape)
        for view in range(2)
    ]
    extent = np.array(shape[::-1])[:, None]
    edges, centres = [], []
    for draws in views:
        affine = draws.affine.double().numpy()
        # Rows are edges times the rows of a rotation, in voxels.
        edges.append(np.linalg.norm(affine[:, :, :3] * extent / extent[:, 0], axis=2))
        centres.append((affine[:, :, 3] + 1) / 2)
    both = np.concatenate(edges)
    volume, ratio = both.prod(1), both.max(1) / both.min(1)
    assert abs(volume.mean() - 0.22) < 0.01
    assert abs(np.median(volume) - 0.177) < 0.015
    assert abs((ratio > 2).mean() - 0.52) < 0.03
    assert abs((ratio > 3).mean() - 0.19) < 0.03
    apart = (abs(centres[0] - centres[1]) >= (edges[0] + edges[1]) / 2).any(1)
    assert abs(apart.mean() - 0.11) < 0.03
    gammas = torch.cat([draws.gamma for draws in views])
    assert abs((gammas == 1).double().mean() - 0.2) < 0.03
    assert 0.5 <= gammas.min() < 0.52
    assert 1.48 < gammas.max() <= 1.5
    linear = torch.cat([draws.affine for draws in views]).double()[:, :, :3].numpy()
    assert abs((np.linalg.det(linear) < 0).mean() - 0.5) < 0.04


def turns(linear: np.ndarray) -> np.ndarray:
    """The rotations of maps from views to volumes, in voxels (x, y, z), which are edges times
    rotation, and of the other order no rotations."""
    turn = linear / np.linalg.norm(linear, axis=2, keepdims=True)  # its edges taken out
    turn[:, 0] *= np.sign(np.linalg.det(turn))[:, None]  # and its flip of left and right
    assert np.allclose(turn @ turn.transpose(0, 2, 1), np.eye(3), atol=1e-6)
    return turn


def test_the_paper_preset_turns_about_the_axis_that_monai_turns_about_and_no_other() -> None:
    shape = (15, 17, 19)
    extent = np.array(shape[::-1])
    theirs = transforms.Compose(
        [
            transforms.RandSpatialCrop(roi_size=(8, 9, 10), random_size=True),
            transforms.Resize(shape),
            transforms.RandFlip(prob=0.5, spatial_axis=2),
            transforms.RandRotate(range_x=0.785, prob=1),
        ]
    ).set_random_state(5)
    views = (theirs(MetaTensor(torch.zeros(1, *shape))).affine for _ in range(20))
    by_monai = turns(np.stack([view[:3, :3].numpy()[::-1, ::-1] for view in views]))
    drawn = draw(PAPER, *map(str, range(600)), shape=shape).affine.double().numpy()
    turn = turns(drawn[:, :, :3] * extent[:, None] / extent)
    for each in (by_monai, turn):  # about z, the first axis of an array (z, y, x)
        assert np.allclose(each[:, 2], [0, 0, 1], atol=1e-6)
        assert np.allclose(each[:, :, 2], [0, 0, 1], atol=1e-6)
    assert np.abs(by_monai[:, 0, 1]).max() > 0.5
    angles = np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))
    still = np.abs(angles) < 1e-3
    assert abs(still.mean() - 0.5) < 0.07
    assert -45 <= angles.min() < -43
    assert 43 < angles.max() <= 45
    assert abs(angles[~still].mean()) < 5


@pytest.mark.parametrize(
    "values",
    [
        {"crop": [0.9, 0.5]},
        {"crop": [0.0, 1.0]},
        {"crop": [0.5, 1.1]},
        {"min_overlap": 1.0},
        {"min_overlap": 0.9, "stretch": 1.5},
        {"gamma": 0.5},
        {"shift": 0.1},
        {"coarse": 0.5},
        {"preset": "paper", "rotation": 20},
    ],
)
def test_impossible_parameters_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentParams.model_validate(values)


def test_curves_of_contrast_rise_from_0_to_1() -> None:
    curves = draw(AugmentParams(remap=1), *map(str, range(100))).remap
    assert torch.equal(curves[:, 0], torch.zeros(100))
    assert torch.equal(curves[:, -1], torch.ones(100))
    assert (curves.diff() > 0).all()
    assert torch.allclose(draw(STILL, "a").remap[0], torch.linspace(0, 1, KNOTS))


def test_one_axis_has_slices_no_thicker_than_asked() -> None:
    left = draw(AugmentParams(coarse=2), *map(str, range(200))).coarse
    thickness = torch.tensor(SHAPE) / left
    assert ((thickness > 1).sum(1) <= 1).all()
    assert thickness.max() <= 2
    assert (thickness.amax(0) > 1.8).all()


def test_the_bias_field_is_as_strong_as_asked() -> None:
    params = STILL.model_copy(update={"bias": 0.3})
    drawn = draw(params, *map(str, range(200))).bias
    strengths = bias_field(drawn, torch.Size(SHAPE)).flatten(1).std(1)
    assert strengths.max() < 0.302
    assert abs(strengths.mean() - 0.15) < 0.02
