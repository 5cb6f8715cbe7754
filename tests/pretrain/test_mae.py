from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.nn import encoders, seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.pretrain.objectives.mae import Mae, MaeParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.sparse import batch_norm, group_norm, visible_maps

SHAPE = (25, 32, 32)
NETWORKS = {
    "basic batch": EncoderParams(stem_stride=2, width=0.125),
    "basic group": EncoderParams(width=0.125, norm="group"),
    "bottleneck batch": EncoderParams(architecture="resnet50", stem_stride=2, width=0.125),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mae(norm: str = "batch", channels: int = 1, **values: object) -> Mae:
    params = EncoderParams.model_validate({"stem_stride": 2, "width": 0.125, "norm": norm})
    with seeds.seeded(1):
        encoder = encoders.build(params, seed=1, channels=channels)
        return Mae(encoder, MaeParams.model_validate(values), spacing_mm=6.0)


def heads(batch: int) -> torch.Tensor:
    """Noise in a box, background 0."""
    volumes = torch.zeros(batch, 1, *SHAPE)
    volumes[:, :, 4:20, 5:27, 6:26] = random(batch, 1, 16, 22, 20)
    return volumes


class TestSparse:
    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_with_nothing_hidden_it_is_the_dense_encoder(
        self, network: str, training: bool
    ) -> None:
        sparse = encoders.build(NETWORKS[network], seed=3).double().train(training)
        dense = encoders.build(NETWORKS[network], seed=3).double().train(training)
        volumes = random(2, 1, *SHAPE, dtype=torch.float64)
        maps = visible_maps(sparse, volumes, torch.ones_like(volumes))[-1][0]
        ours, expected = maps.mean((2, 3, 4)), dense(volumes)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
        for features in (ours, expected):
            features.square().sum().backward()
        gradients = {name: weight.grad for name, weight in dense.named_parameters()}
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for name, weight in sparse.named_parameters():  # where norms follow, that of a bias is 0
            size = 1e-6 * gradients[name].abs().max() + 1e-12 * largest
            assert (weight.grad - gradients[name]).abs().max() < size, name
        for name, buffer in dense.state_dict().items():
            torch.testing.assert_close(sparse.state_dict()[name], buffer, msg=name)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_what_is_hidden_changes_nothing(self, network: str) -> None:
        encoder = encoders.build(NETWORKS[network], seed=3)
        visible = torch.zeros(2, 1, *SHAPE)
        visible[..., :16] = 1
        volumes, other = random(2, 1, *SHAPE), random(2, 1, *SHAPE, seed=9)
        mixed = torch.where(visible == 1, volumes, other)
        levels = [visible_maps(encoder, each, visible) for each in (volumes, mixed)]
        for (one, seen), (two, _) in zip(*levels, strict=True):
            assert torch.equal(one, two)
            assert not one[(seen == 0).expand_as(one)].any()
        one = levels[0][-1][0]
        columns = 1 if one.shape[-1] == 1 else -(-one.shape[-1] // 2)
        assert not one[..., columns:].any()

    @pytest.mark.parametrize(
        "norm", [nn.BatchNorm3d(6), nn.GroupNorm(2, 6)], ids=["batch", "group"]
    )
    def test_norms_have_the_statistics_of_visible_positions(self, norm: nn.Module) -> None:
        # The visible slices alone, side by side, are what the plain norm must see.
        maps = random(3, 6, 4, 5, 7)
        seen = torch.zeros(3, 1, 4, 5, 7)
        seen[..., 2:5] = 1
        if isinstance(norm, nn.GroupNorm):
            normalized = group_norm(norm, maps * seen, seen)
        else:
            normalized = batch_norm(norm, maps * seen, seen)
        expected = norm(maps[..., 2:5])
        torch.testing.assert_close(normalized[..., 2:5], expected, rtol=1e-4, atol=1e-5)
        assert not normalized[..., :2].any()
        assert not normalized[..., 5:].any()


def test_a_baseline_that_is_trained_from_scratch_is_not_pretrained() -> None:
    with pytest.raises(ValidationError, match="sfcn is a baseline that is trained from scratch"):
        PretrainParams.model_validate({"encoder": {"architecture": "sfcn"}})


class TestMask:
    def test_the_share_of_hidden_patches_is_what_was_asked(self) -> None:
        objective = mae(mask=0.75, patch_mm=24)
        visible = objective.draw_visible((24, 32, 32), 1, 0, "a")
        patches = visible.float()[::4, ::4, ::4]
        assert patches.shape == (6, 8, 8)
        assert round((1 - patches.mean().item()) * patches.numel()) == round(0.75 * 6 * 8 * 8)
        whole = F.interpolate(patches[None, None], scale_factor=4)[0, 0]
        assert torch.equal(whole, visible.float())

    def test_every_scan_and_epoch_has_patches_of_its_own_that_can_be_drawn_again(self) -> None:
        objective = mae()
        keys = [(1, epoch, scan) for epoch in range(5) for scan in "abcdefgh"]
        drawn = [objective.draw_visible(SHAPE, *key).numpy().tobytes() for key in keys]
        assert len(set(drawn)) == 40
        assert drawn == [objective.draw_visible(SHAPE, *key).numpy().tobytes() for key in keys]

    def test_inputs_are_a_view_and_what_is_visible_of_it(self) -> None:
        inputs = mae().inputs(heads(2), ["a", "b"], AugmentParams(), 1, 0)
        assert inputs.shape == (1, 2, 2, *SHAPE)
        assert set(inputs[0, :, 1].unique().tolist()) == {0, 1}


class TestLoss:
    def test_it_is_the_squared_error_of_the_hidden_voxels_of_the_brain(self) -> None:
        objective = mae(norm="group", patch_mm=24)
        inputs = objective.inputs(heads(3), ["a", "b", "c"], AugmentParams(), 1, 0)
        loss, measures = objective.loss(objective.encode(inputs[0])[None], torch.arange(3))
        errors, powers = [], []
        for row in inputs[0]:
            predicted = objective.predict(row[None, :1], row[None, 1:])[0, 0]
            chosen = (row[0] != 0) & (row[1] == 0)
            target = objective.targets(row[None, :1])[0, 0][chosen]
            errors.append((predicted[chosen] - target).square().mean())
            powers.append(target.square().mean())
        torch.testing.assert_close(loss, torch.stack(errors).mean())
        torch.testing.assert_close(measures["explained"], 1 - sum(errors) / sum(powers))

    def test_of_several_contrasts_each_that_is_there_is_predicted(self) -> None:
        """The second scan lacks FLAIR: its hidden voxels are those of T1w alone."""
        objective = mae(norm="group", patch_mm=24, channels=2)
        volumes = torch.cat([heads(2), heads(2) * 2 + 1 * (heads(2) != 0)], 1)
        volumes[1, 1] = 0
        visible = torch.stack([objective.draw_visible(SHAPE, n).float() for n in (1, 2)])[:, None]
        encoded = objective.encode(torch.cat([volumes, visible], 1))
        predicted = objective.predict(volumes, visible)
        assert predicted.shape == volumes.shape
        for scan, channels in ((0, (0, 1)), (1, (0,))):
            errors = []
            for channel in channels:
                chosen = (volumes[scan, channel] != 0) & (visible[scan, 0] == 0)
                target = objective.targets(volumes[scan : scan + 1, channel : channel + 1])[0, 0]
                errors.append((predicted[scan, channel] - target)[chosen].square())
            torch.testing.assert_close(encoded[scan, 0], torch.cat(errors).mean())

    def test_targets_are_standardized_in_the_brain_of_each_patch(self) -> None:
        objective = mae(patch_mm=24)
        volumes = heads(2) * 3 + 5 * (heads(2) != 0)
        targets = objective.targets(volumes)
        assert torch.equal(targets != 0, volumes != 0)
        for z, y, x in itertools.product(*(range(0, n, 4) for n in SHAPE)):
            for scan in range(2):
                patch, target = (
                    each[scan, 0, z : z + 4, y : y + 4, x : x + 4] for each in (volumes, targets)
                )
                inside = patch != 0
                if inside.any():
                    values = patch[inside].double()
                    expected = (values - values.mean()) / values.std(correction=0)
                    torch.testing.assert_close(
                        target[inside].double(), expected, rtol=1e-3, atol=1e-3
                    )

    def test_nothing_outside_the_brain_or_visible_is_asked(self) -> None:
        objective = mae(norm="group")
        volumes = heads(1)
        inputs = torch.cat([volumes, torch.ones_like(volumes)], 1)
        assert objective.encode(inputs)[0, 0] == 0

    def test_the_decoder_fits_grids_that_no_stride_divides(self) -> None:
        for shape in [(25, 32, 32), (50, 64, 64), (17, 9, 33)]:
            volumes = torch.zeros(1, 1, *shape)
            assert mae(norm="group").predict(volumes, torch.ones_like(volumes)).shape[2:] == shape

    @pytest.mark.parametrize(
        "params",
        [
            *NETWORKS.values(),
            EncoderParams(stem_stride=2, width=0.125, shortcut="padded", dilated=True),
        ],
        ids=[*NETWORKS, "dilated"],
    )
    def test_every_level_and_token_reaches_the_prediction(self, params: EncoderParams) -> None:
        with seeds.seeded(1):
            encoder = encoders.build(params, seed=1)
            # Patches as large as a position of the last level, so that some there are hidden.
            objective = Mae(encoder, MaeParams(patch_mm=96), spacing_mm=3.0)
        visible = torch.stack([objective.draw_visible((64, 64, 64), scan) for scan in "ab"])
        predicted = objective.predict(random(2, 1, 64, 64, 64), visible[:, None].float())
        assert predicted.shape == (2, 1, 64, 64, 64)
        predicted.square().sum().backward()
        for name, weight in objective.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.any(), name

    def test_it_learns_to_predict_the_hidden_from_the_visible(self) -> None:
        objective = mae(mask=0.5, patch_mm=24)
        optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
        source = torch.Generator().manual_seed(0)
        x = torch.linspace(-1, 1, 16)
        anatomy = torch.sin(3 * x)[:, None, None] + torch.cos(4 * x)[:, None] + torch.zeros(16)
        explained = []
        for step in range(55):
            # The sign differs from scan to scan: their mean explains nothing.
            sign = 2.0 * torch.randint(2, (16, 1, 1, 1, 1), generator=source) - 1
            volumes = sign * anatomy
            visible = [objective.draw_visible((16, 16, 16), step, scan) for scan in range(16)]
            inputs = torch.cat([volumes, torch.stack(visible)[:, None]], 1)
            loss, measures = objective.loss(objective.encode(inputs)[None], torch.arange(16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            explained.append(measures["explained"].item())
        assert sum(explained[-10:]) / 10 > 0.7
