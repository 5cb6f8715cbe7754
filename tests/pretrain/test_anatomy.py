from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neurofoundry.contracts.encoder import EncoderParams, read_plan
from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.morphometry import SIZES, sizes_of
from neurofoundry.nn import augment, encoders
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.pretrain.anatomy import Anatomy, magnified
from neurofoundry.pretrain.gradients import compute_gradients
from neurofoundry.pretrain.objectives.simclr import Simclr, SimclrParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from tests.pretrain.conftest import run_stage

GRID = Grid(spacing=3.0)
STRAIGHT = AugmentParams(
    crop=(0.8, 0.9),
    stretch=1.1,
    rotation=0,
    gamma=1,
    remap=0,
    bias=0,
    blur=0,
    coarse=1,
    noise=0,
)
SCANS = ["a", "b", "c"]


def brain() -> np.ndarray:
    """An ellipsoid within all crops, with white matter, and fluid on one side of it."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in GRID.shape[::-1])]
    radius = np.sqrt((z / 0.5) ** 2 + (y / 0.55) ** 2 + (x / 0.45) ** 2)
    volume = np.where(radius < 1, 300.0, 0)
    volume[(radius < 0.7)] = 1500
    fluid = ((z + 0.15) / 0.12) ** 2 + ((y - 0.1) / 0.12) ** 2 + ((x - 0.22) / 0.1) ** 2 < 1
    volume[fluid & (radius < 1)] = -2500
    return volume.astype(np.int16)


def test_the_sizes_of_a_zoomed_view_are_those_measured_in_it() -> None:
    """Resampled by the code that makes views, and measured anew."""
    volume = brain()
    zscores = torch.from_numpy(np.stack([volume] * len(SCANS))[:, None] * np.float32(SLOPE))
    draws = augment.draw(STRAIGHT, seed=1, epoch=2, scans=SCANS, view=0, shape=volume.shape)
    # In the middle, so that nothing is cut off.
    draws = replace(
        draws, affine=torch.cat([draws.affine[:, :, :3], 0 * draws.affine[:, :, 3:]], 2)
    )
    views = (augment.apply(zscores, draws)[:, 0].numpy() / SLOPE).astype(np.int16)
    zoom = augment.magnifications(STRAIGHT, seed=1, epoch=2, scans=SCANS, view=0)
    assert set(np.sign(zoom[:, 0])) == {-1.0, 1.0}
    told = magnified(np.stack([sizes_of(volume, GRID)] * len(SCANS)), zoom)
    measured = np.stack([sizes_of(view, GRID) for view in views])
    for name in ("brain_ml", "width_mm", "length_mm", "height_mm"):
        place = SIZES.index(name)
        assert abs(told[:, place] / sizes_of(volume, GRID)[place] - 1).min() > 0.05
        np.testing.assert_allclose(told[:, place], measured[:, place], rtol=0.04)
    left, right = SIZES.index("left_temporal"), SIZES.index("right_temporal")
    sides = np.sign(told[:, left] - told[:, right])
    assert set(sides) == {-1.0, 1.0}
    np.testing.assert_array_equal(sides, np.sign(measured[:, left] - measured[:, right]))


def test_views_that_keep_millimetres_have_the_sizes_of_the_volume() -> None:
    sizes = np.random.default_rng(0).uniform(1, 2, (3, len(SIZES)))
    params = STRAIGHT.model_copy(update={"zoom": False, "flip": 0.0})
    zoom = augment.magnifications(params, seed=1, epoch=0, scans=SCANS, view=1)
    np.testing.assert_array_equal(magnified(sizes, zoom), sizes)


def anatomy_of(features: int) -> tuple[Anatomy, np.ndarray]:
    sizes = np.random.default_rng(0).uniform(1, 2, (3, len(SIZES)))
    torch.manual_seed(0)
    anatomy = Anatomy(features)
    anatomy.learn_of(SCANS, sizes, STRAIGHT, seed=1, views=2)
    return anatomy, sizes


def test_the_error_is_the_smooth_l1_of_standardized_sizes_in_the_order_that_is_expected() -> None:
    anatomy, sizes = anatomy_of(8)
    features = torch.randn(2, 2, 8)
    anatomy.expect(["c", "a"], STRAIGHT, 1, 4, views=2)
    shown = [
        magnified(
            sizes[[2, 0]],
            augment.magnifications(STRAIGHT, seed=1, epoch=4, scans=["c", "a"], view=view),
        )
        for view in range(2)
    ]
    of_cohort = np.concatenate(
        [
            magnified(
                sizes, augment.magnifications(STRAIGHT, seed=1, epoch=0, scans=SCANS, view=view)
            )
            for view in range(2)
        ]
    )
    wanted = (np.stack(shown) - of_cohort.mean(0)) / of_cohort.std(0)
    found = (features @ anatomy.head.weight.T + anatomy.head.bias).detach().numpy()
    apart = abs(found - wanted)
    loss = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    assert anatomy.error(features).item() == pytest.approx(loss, rel=1e-5)


def objective(**params: float) -> Simclr:
    torch.manual_seed(5)
    encoder = encoders.build(EncoderParams(stem_stride=2, width=0.125, norm="group"), seed=1)
    made = Simclr(encoder, SimclrParams(projection=8, **params), spacing_mm=6.0).double()
    sizes = np.random.default_rng(0).uniform(1, 2, (3, len(SIZES)))
    made.prepare(SCANS, lambda _: sizes, STRAIGHT, seed=1)
    made.expect(SCANS, STRAIGHT, 1, 0)
    return made


@pytest.mark.parametrize("chunk", [None, 2])
def test_its_gradient_is_the_same_however_a_batch_is_encoded(chunk: int | None) -> None:
    views = torch.randn(2, 3, 1, 12, 16, 16, dtype=torch.float64)
    persons = torch.arange(3)
    ours, theirs, without = objective(anatomy=0.5), objective(anatomy=0.5), objective()
    loss, measures = compute_gradients(ours, views, persons, ranks=Ranks(), chunk=chunk)
    features = theirs.encoder(views.flatten(0, 1)).unflatten(0, (2, 3))
    plain, _ = theirs.loss(features, persons)
    plain.backward()
    torch.testing.assert_close(loss, plain.detach())
    contrast, _ = without.loss(features.detach(), persons)
    assert loss.item() - contrast.item() == pytest.approx(0.5 * measures["anatomy_error"].item())
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-9, atol=1e-10)


def test_pretraining_learns_sizes_and_says_so(volumes: Path, tmp_path: Path) -> None:
    simclr = {"projection": 16, "anatomy": 1.0}
    run_stage(
        volumes,
        tmp_path / "with",
        simclr=simclr,
        augment=STRAIGHT.model_dump(),
        epochs=10,
        learning_rate=3e-3,
    )
    history = pd.read_csv(tmp_path / "with" / "history.tsv", sep="\t")
    assert history["anatomy_error"].iloc[-1] < 0.8 * history["anatomy_error"].iloc[0]
    assert read_plan(tmp_path / "with").pretraining.sizes  # type: ignore[union-attr]
    assert not any(
        name.startswith("anatomy") for name in encoders.load(tmp_path / "with")[0].state_dict()
    )
    run_stage(volumes, tmp_path / "without", epochs=1)
    assert not json.loads((tmp_path / "without" / "plan.json").read_text())["pretraining"]["sizes"]


def test_its_weight_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="anatomy"):
        PretrainParams.model_validate({"simclr": {"anatomy": -1}})
