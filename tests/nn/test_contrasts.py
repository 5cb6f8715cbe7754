"""Encoders that see several contrasts: what a channel is, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neurofoundry.contracts.encoder import EncoderParams, Plan, read_plan
from neurofoundry.contracts.volumes import Grid, VolumeFolder, write_volume
from neurofoundry.nn import augment, encoders
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.batches import read_batch
from neurofoundry.pretrain.objective import draw_views

GRID = Grid(spacing=6.0)
NAMES = {"T1w": "{}.nii", "FLAIR": "{}-FLAIR.nii"}
SCANS = [f"scan-{number}" for number in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, of which the first has a FLAIR."""
    folder = tmp_path_factory.mktemp("volumes")
    mask = np.zeros(GRID.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    for number, name in enumerate(("a.nii", "a-FLAIR.nii", "b.nii")):
        values = np.random.default_rng(number).standard_normal(GRID.shape)
        write_volume(folder / name, values, mask, GRID)
    return folder


def heads(channels: int = 2) -> torch.Tensor:
    """Eight heads (8, channels, z, y, x) that differ between channels."""
    shape = GRID.shape[::-1]
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(each**2 for each in axes) < 0.8
    noise = np.random.default_rng(1).standard_normal((len(SCANS), channels, *shape))
    return torch.from_numpy((noise * inside).astype(np.float32))


def plan_of(params: EncoderParams, *contrasts: str) -> Plan:
    about = {"name": "x", "grid": GRID.describe(), "method": "simclr", "licence": "none"}
    return Plan(encoder=params, features=params.features, contrasts=contrasts, **about)


class TestBatch:
    def test_a_channel_is_a_contrast_and_zero_where_a_scan_lacks_it(self, folder: Path) -> None:
        volumes = VolumeFolder(folder, GRID, NAMES)
        batch = read_batch(volumes, ["b", "a"])
        assert batch.shape == (2, 2, *GRID.shape[::-1])
        assert not batch[0, 1].any()
        for row, channel, name in ((0, 0, "b"), (1, 0, "a"), (1, 1, "a-FLAIR")):
            alone = read_batch(VolumeFolder(folder, GRID), [name])
            torch.testing.assert_close(batch[row, channel], alone[0, 0])

    def test_weights_choose_their_channels_and_the_order(self, folder: Path) -> None:
        volumes = VolumeFolder(folder, GRID, NAMES)
        both = read_batch(volumes, ["a"])
        torch.testing.assert_close(read_batch(volumes, ["a"], contrasts=("T1w",)), both[:, :1])
        more = read_batch(volumes, ["a"], contrasts=("T1w", "T2w", "FLAIR"))
        torch.testing.assert_close(more[:, ::2], both)
        assert not more[:, 1].any()


@pytest.mark.parametrize("architecture", ["resnet18", "sfcn"])
class TestWiden:
    def test_it_says_what_it_said_until_it_is_trained(self, architecture: str) -> None:
        params = EncoderParams.model_validate({"architecture": architecture, "width": 0.125})
        narrow, plan = encoders.build(params, seed=1).eval(), plan_of(params, "T1w")
        wide, about = encoders.widen(narrow, plan, ("T1w", "FLAIR"))
        assert about.contrasts == ("T1w", "FLAIR")
        both = heads()[:1]
        before, after = narrow(both[:, :1]), wide.eval()(both)
        torch.testing.assert_close(after, before)
        after.sum().backward()
        gradient = dict(wide.named_parameters())[wide.stem].grad
        assert gradient is not None
        assert gradient[:, 1].abs().sum() > 0  # so that training opens its eyes

    def test_nothing_new_changes_nothing(self, architecture: str) -> None:
        params = EncoderParams.model_validate({"architecture": architecture, "width": 0.125})
        encoder, plan = encoders.build(params, seed=1, channels=2), plan_of(params, "T1w", "FLAIR")
        assert encoders.widen(encoder, plan, ("T1w",)) == (encoder, plan)


def test_the_plan_names_the_channels_and_says_nothing_of_t1w_alone(tmp_path: Path) -> None:
    params = EncoderParams(stem_stride=2, width=0.125)
    for contrasts in (("T1w",), ("T1w", "FLAIR")):
        folder = tmp_path / "-".join(contrasts)
        folder.mkdir()
        encoder = encoders.build(params, seed=1, channels=len(contrasts))
        encoders.save(folder, encoder, plan_of(params, *contrasts))
        assert ("contrasts" in (folder / "plan.json").read_text()) == (len(contrasts) > 1)
        assert read_plan(folder).contrasts == contrasts
        assert encoders.load(folder)[0].channels == len(contrasts)
    with pytest.raises(ValueError, match="T1w first"):
        plan_of(params, "FLAIR", "T1w")


class TestViews:
    def test_channels_are_seen_from_the_same_place_with_noise_of_their_own(self) -> None:
        params = AugmentParams(noise=0.0, bias=0.0)
        one = heads(1)[:2]
        z, y, x = one.shape[2:]
        draws = augment.draw(params, seed=1, epoch=0, scans=SCANS[:2], view=0, shape=(z, y, x))
        alone = augment.apply(one, draws)
        both = augment.apply(torch.cat([one, one], 1), draws)
        torch.testing.assert_close(both[:, :1], alone)
        torch.testing.assert_close(both[:, 1:], alone)
        noisy = augment.draw(
            AugmentParams(bias=0.0), seed=1, epoch=0, scans=SCANS[:2], view=0, shape=(z, y, x)
        )
        first, second = augment.apply(torch.cat([one, one], 1), noisy).unbind(1)
        assert (first != second).any()

    def test_views_lack_further_contrasts_as_often_as_is_said_and_never_t1w(self) -> None:
        volumes = heads()
        lacking = []
        for epoch in range(12):
            views = draw_views(volumes, SCANS, AugmentParams(lacking=0.3), 7, epoch, views=2)
            assert views.shape == (2, *volumes.shape)
            there = views.flatten(3).any(3)
            assert there[:, :, 0].all()
            lacking.append(~there[:, :, 1])
        assert 0.2 < torch.stack(lacking).float().mean() < 0.4
        again = draw_views(volumes, SCANS, AugmentParams(lacking=0.3), 7, 11, views=2)
        torch.testing.assert_close(again, views)
        whole = draw_views(volumes, SCANS, AugmentParams(lacking=0.0), 7, 0, views=2)
        assert whole.flatten(3).any(3).all()

    def test_of_one_contrast_views_are_what_they_were(self) -> None:
        volumes = heads(1)[:2]
        z, y, x = volumes.shape[2:]
        views = draw_views(volumes, SCANS[:2], AugmentParams(), 7, 0, views=1)
        draws = augment.draw(
            AugmentParams(), seed=7, epoch=0, scans=SCANS[:2], view=0, shape=(z, y, x)
        )
        torch.testing.assert_close(views[0], augment.apply(volumes, draws))
