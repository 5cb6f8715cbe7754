from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from monai.networks.nets import resnet18
from pydantic import ValidationError
from torch import nn

from neurofoundry.contracts.encoder import (
    EncoderParams,
    Plan,
    check_grid,
    check_normalization,
    find_encoders,
)
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import build
from tests.support.disk import files_of_at_most

SMALL = EncoderParams(stem_stride=2, width=0.125)


def plan_of(params: EncoderParams, features: int, spacing: float = 3.0) -> Plan:
    return Plan(
        name="own",
        encoder=params,
        features=features,
        grid=Grid(spacing=spacing).describe(),
        method="random",
        licence="CC0-1.0",
    )


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


class TestBuild:
    def test_the_default_is_the_network_of_the_published_weights(self) -> None:
        # As the reference builds it: MONAI's resnet18 with one channel and its stem of stride 1,
        # max-pool kept, biased shortcuts, the classifier taken away.
        reference = resnet18(spatial_dims=3, n_input_channels=1, num_classes=0)
        reference.fc = nn.Identity()
        ours = encoders.build(EncoderParams(), seed=1)
        assert round(parameters(ours) / 1e6, 2) == 33.16
        assert ours.features == 512
        assert "layer2.0.downsample.0.bias" in ours.state_dict()
        reference.load_state_dict(ours.state_dict(), strict=True)
        volumes = torch.randn(2, 1, 25, 32, 32)
        torch.testing.assert_close(ours.eval()(volumes), reference.eval()(volumes))
        assert ours(volumes).shape == (2, 512)

    @pytest.mark.parametrize(
        ("params", "features"),
        [
            (SMALL, 64),
            (EncoderParams(width=0.25, norm="group"), 128),
            (EncoderParams(architecture="resnet50", stem_stride=2, width=0.125), 256),
        ],
    )
    def test_features_are_what_the_network_gives(
        self, params: EncoderParams, features: int
    ) -> None:
        encoder = encoders.build(params, seed=0)
        assert encoder.features == features
        assert encoder(torch.randn(2, 1, 25, 32, 32)).shape == (2, features)

    def test_group_norm_replaces_every_batch_norm_so_that_a_scan_is_alone(self) -> None:
        encoder = encoders.build(EncoderParams(stem_stride=2, width=0.125, norm="group"), seed=0)
        assert not any(isinstance(module, nn.BatchNorm3d) for module in encoder.modules())
        random = torch.Generator().manual_seed(0)  # another draw may differ by 1.1e-5 of rounding
        volumes = torch.randn(3, 1, 25, 32, 32, generator=random)
        torch.testing.assert_close(encoder(volumes)[:1], encoder(volumes[:1]))

    def test_weights_depend_on_the_seed_alone_and_leave_the_random_state(self) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = encoders.build(SMALL, seed=3).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
        again = encoders.build(SMALL, seed=3).state_dict()
        other = encoders.build(SMALL, seed=4).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["conv1.weight"], other["conv1.weight"])

    def test_sfcn_is_the_network_of_peng_et_al(self) -> None:
        # As its authors wrote it (github.com/ha-ailab/UKBiobank_deep_pretrain, dp_model/sfcn.py),
        # without the classifier, whose mean over positions is the average pool of theirs.
        layers: list[nn.Module] = []
        channels = [1, 32, 64, 128, 256, 256]
        for inside, outside in itertools.pairwise(channels):
            layers += [
                nn.Conv3d(inside, outside, 3, padding=1),
                nn.BatchNorm3d(outside),
                nn.MaxPool3d(2, stride=2),
                nn.ReLU(),
            ]
        layers += [nn.Conv3d(256, 64, 1), nn.BatchNorm3d(64), nn.ReLU()]
        reference = nn.Sequential(*layers, nn.AvgPool3d((2, 2, 2)), nn.Flatten()).eval()
        ours = encoders.build(EncoderParams(architecture="sfcn"), seed=1).eval()
        assert [weight.shape for weight in reference.parameters()] == [
            weight.shape for weight in ours.parameters()
        ]
        values = list(ours.state_dict().values())
        reference.load_state_dict(dict(zip(reference.state_dict(), values, strict=True)))
        volumes = torch.randn(2, 1, 64, 64, 64)
        torch.testing.assert_close(ours(volumes), reference(volumes))

    def test_sfcn_takes_volumes_that_five_pools_do_not_divide_and_drops_features(self) -> None:
        params = EncoderParams(architecture="sfcn", width=0.25)
        encoder = encoders.build(params, seed=0)
        features = encoder(torch.randn(8, 1, 25, 30, 27))
        assert features.shape == (8, params.features) == (8, 16)
        assert torch.equal(
            encoder.eval()(torch.ones(1, 1, 25, 30, 27)), encoder(torch.ones(1, 1, 25, 30, 27))
        )
        with pytest.raises(ValidationError, match="stem_stride: no effect on sfcn"):
            EncoderParams(architecture="sfcn", stem_stride=2)

    @pytest.mark.parametrize("width", [0, 0.3, -1, 8])
    def test_a_width_without_whole_channels_is_refused(self, width: float) -> None:
        with pytest.raises(ValidationError):
            EncoderParams(width=width)


class TestWeights:
    def test_what_was_saved_is_loaded(self, tmp_path: Path) -> None:
        encoder = encoders.build(SMALL, seed=1).to(memory_format=torch.channels_last_3d)
        encoder(torch.randn(4, 1, 25, 32, 32))  # moves the running statistics
        plan = plan_of(SMALL, encoder.features)
        encoders.save(tmp_path, encoder, plan)
        loaded, read = encoders.load(tmp_path)
        assert read == plan
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])
        assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.safetensors", "plan.json"]

    def test_the_same_weights_are_the_same_bytes(self, tmp_path: Path) -> None:
        for name in "ab":
            encoders.write_weights(tmp_path / name, encoders.build(SMALL, seed=1))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_disk_that_takes_no_more_is_an_error_and_leaves_the_old_weights(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "a"
        encoders.write_weights(path, encoders.build(SMALL, seed=1))
        before = path.read_bytes()
        with files_of_at_most(10_000), pytest.raises(OSError, match="File too large"):
            encoders.write_weights(path, encoders.build(SMALL, seed=2))
        assert path.read_bytes() == before

    def test_misfits_are_named(self, tmp_path: Path) -> None:
        encoder = encoders.build(SMALL, seed=1)
        encoders.save(tmp_path, encoder, plan_of(SMALL, encoder.features))
        tensors = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        del tensors["bn1.bias"]
        tensors["fc.weight"] = torch.zeros(3)
        tensors["conv1.weight"] = tensors["conv1.weight"][:, :, :5]
        tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].double()
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            tmp_path / "encoder.safetensors",
        )
        with pytest.raises(DataError) as caught:
            encoders.load(tmp_path)
        message = str(caught.value)
        assert "4 places" in message
        assert "bn1.bias is missing" in message
        assert "fc.weight is not part of the network" in message
        assert "conv1.weight is (8, 1, 5, 7, 7)" in message
        assert "expected (8, 1, 7, 7, 7)" in message
        assert "layer1.0.conv1.weight is (8, 8, 3, 3, 3) torch.float64" in message

    def test_weights_of_another_width_are_refused(self, tmp_path: Path) -> None:
        encoders.save(tmp_path, encoders.build(SMALL, seed=1), plan_of(EncoderParams(), 512))
        with pytest.raises(DataError, match="do not fit"):
            encoders.load(tmp_path)

    def test_torn_and_missing_files_are_reported(self, tmp_path: Path) -> None:
        encoder = encoders.build(SMALL, seed=1)
        with pytest.raises(DataError, match=r"plan\.json"):
            encoders.load(tmp_path)
        encoders.save(tmp_path, encoder, plan_of(SMALL, encoder.features))
        weights = tmp_path / "encoder.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(DataError, match="cannot be read"):
            encoders.load(tmp_path)
        plan = json.loads((tmp_path / "plan.json").read_text())
        (tmp_path / "plan.json").write_text(json.dumps({**plan, "schema_version": 2}))
        with pytest.raises(DataError, match="not an adaptation plan"):
            encoders.load(tmp_path)


class TestGrid:
    def test_the_grid_of_the_weights_passes(self) -> None:
        check_grid(plan_of(SMALL, 64), Grid(spacing=3.0))

    def test_another_grid_is_refused_with_the_fix(self) -> None:
        with pytest.raises(UsageError) as caught:
            check_grid(plan_of(SMALL, 64, spacing=1.0), Grid(spacing=3.0))
        message = str(caught.value)
        assert "spacing_mm 1.0 (volumes: 3.0)" in message
        assert "shape_xyz [192, 192, 150] (volumes: [64, 64, 50])" in message
        assert "preprocess.grid.spacing to 1.0" in message

    def test_another_orientation_is_refused(self) -> None:
        plan = plan_of(SMALL, 64)
        turned = plan.model_copy(update={"grid": {**plan.grid, "orientation": "LPS+"}})
        with pytest.raises(UsageError, match=r"orientation LPS\+"):
            check_grid(turned, Grid(spacing=3.0))


class TestNormalization:
    def test_volumes_normalized_alike_pass_and_others_are_refused_with_the_fix(self) -> None:
        plan = plan_of(SMALL, 64).model_copy(update={"normalization": "whitestripe"})
        check_normalization(plan, "whitestripe")
        with pytest.raises(UsageError, match=r"by zscore\. Set preprocess\.normalization to white"):
            check_normalization(plan, "zscore")

    def test_two_fitted_scales_are_not_alike(self) -> None:
        plan = plan_of(SMALL, 64).model_copy(update={"normalization": "nyul at -2 0 2"})
        check_normalization(plan, "nyul at -2 0 2")
        with pytest.raises(UsageError, match="both cohorts in one run"):
            check_normalization(plan, "nyul at -1 0 2")


class TestFind:
    @staticmethod
    def place(folder: Path, name: str) -> Path:
        folder.mkdir(parents=True)
        encoder = build(SMALL, seed=1)
        plan = plan_of(SMALL, encoder.features).model_copy(update={"name": name})
        encoders.save(folder, encoder, plan)
        return folder

    def test_folders_and_folders_of_folders_are_found_by_name(self, tmp_path: Path) -> None:
        one = self.place(tmp_path / "encoder/simclr", "simclr")
        two = self.place(tmp_path / "encoder/b", "mae")
        self.place(tmp_path / "encoder/.torn.partial", "torn")
        other = self.place(tmp_path / "elsewhere", "published")
        by_name = find_encoders([tmp_path / "encoder", other])
        assert by_name == {"mae": two, "simclr": one, "published": other}

    def test_two_of_one_name_are_refused(self, tmp_path: Path) -> None:
        self.place(tmp_path / "a", "simclr")
        self.place(tmp_path / "b", "simclr")
        with pytest.raises(DataError, match=r"b: there is another .* 'simclr' \(.*a\)"):
            find_encoders([tmp_path])

    def test_a_folder_without_encoders_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no encoder.*neurofoundry pretrain"):
            find_encoders([tmp_path])
