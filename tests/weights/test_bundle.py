from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import monai.bundle
import pandas as pd
import pytest
import torch
import yaml

from neurofoundry import load_encoder
from neurofoundry.contracts.encoder import EncoderParams, read_plan, read_pretrained
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.errors import DataError
from neurofoundry.nn import encoders
from neurofoundry.runtime import stage
from neurofoundry.weights.bundle import export, inference
from neurofoundry.weights.params import ImportParams
from neurofoundry.weights.published import import_checkpoint
from tests.support import tiny

# What MONAI's schema of 2024-07-25 demands; its own check needs jsonschema and fetches the schema.
REQUIRED = (
    "schema version monai_version pytorch_version numpy_version required_packages_version task "
    "description authors copyright network_data_format"
)
OBJECTS = ("required_packages_version", "network_data_format")
TENSOR = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
}

PERSONS = ("clinic/sub-0007", "clinic/sub-0011")


def export_to(out: Path, encoder: Path) -> Path:
    return stage.run(
        "export",
        lambda work: export(work, encoder=encoder, authors="A & B"),
        to=stage.Destination(out),
        params={},
        inputs={"pretrain": encoder},
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_encoder(tmp_path_factory.mktemp("bundle") / "encoder", persons=PERSONS)


@pytest.fixture(scope="module")
def exported(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("bundle") / "exported", encoder)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "volumes"
    return next(tiny.write_volumes(folder, tiny.scans_table(1)).glob("*.nii"))


class TestRoundTrip:
    def test_features_are_the_same(self, encoder: Path, exported: Path, volume: Path) -> None:
        assert torch.equal(load_encoder(exported)(volume), load_encoder(encoder)(volume))

    def test_import_brings_weights_and_persons_back(
        self, tmp_path: Path, encoder: Path, exported: Path, volume: Path
    ) -> None:
        params = ImportParams(name="back")
        back = stage.run(
            "pretrain",
            lambda work: import_checkpoint(work, checkpoint=exported, params=params),
            to=stage.Destination(tmp_path / "back"),
            params={},
            inputs={},
        )
        assert torch.equal(load_encoder(back)(volume), load_encoder(encoder)(volume))
        scans = tiny.scans_table(4).assign(person=["clinic/sub-0007"] * 2 + ["x", "y", "z"][:3])
        scans["split"] = "test"
        with pytest.raises(DataError, match="clinic/sub-0007 was pretrained on"):
            guard_leaks(scans, pretrained=read_pretrained(back))
        again = export_to(tmp_path / "again", back)
        assert (again / "subjects.tsv").read_text() == (exported / "subjects.tsv").read_text()


class TestPrivacy:
    def test_persons_are_hashed_under_the_salt_beside_them(self, exported: Path) -> None:
        table = pd.read_csv(exported / "subjects.tsv", sep="\t")
        (salt,) = set(table["salt"])
        expected = {hmac.digest(salt.encode(), p.encode(), "sha256").hex() for p in PERSONS}
        assert set(table["person_hash"]) == expected

    def test_no_file_names_a_person_or_a_place(self, exported: Path, encoder: Path) -> None:
        for path in exported.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for secret in (*PERSONS, "sub-0007", str(encoder.parent), "/tmp/"):
                    assert secret.encode() not in content, path


class TestCard:
    def front(self, folder: Path) -> dict[str, Any]:
        text = (folder / "README.md").read_text()
        _, matter, _ = text.split("---\n", 2)
        front: dict[str, Any] = yaml.safe_load(matter)
        return front

    def test_the_hub_can_read_its_front_matter(self, exported: Path) -> None:
        front = self.front(exported)
        assert front["library_name"] == "neurofoundry"
        assert front["pipeline_tag"] == "image-feature-extraction"
        assert (front["license"], front["license_name"]) == ("other", "none")
        assert all(isinstance(tag, str) for tag in front["tags"])
        assert "synthetic" not in front["tags"]

    def test_a_licence_that_the_hub_knows_is_called_as_there(
        self, tmp_path: Path, encoder: Path
    ) -> None:
        plan = read_plan(encoder).model_copy(update={"licence": "CC-BY-4.0"})
        folder = tmp_path / "encoder"
        folder.mkdir()
        encoders.save(folder, encoders.load(encoder)[0], plan)
        tiny.finished(folder, "pretrain", "encoder.safetensors")
        out = export_to(tmp_path / "out", folder)
        assert self.front(out)["license"] == "cc-by-4.0"
        assert "license_name" not in self.front(out)
        assert "Whom these weights have seen is unknown" in (out / "README.md").read_text()
        assert not (out / "subjects.tsv").exists()

    def test_it_says_where_only_phantoms_were_seen(self, tmp_path: Path) -> None:
        encoder = tiny.write_encoder(tmp_path / "encoder", persons=("phantom/sub-1",))
        out = export_to(tmp_path / "out", encoder)
        assert "synthetic" in self.front(out)["tags"]
        assert "**Synthetic.**" in (out / "README.md").read_text()

    def test_it_says_what_is_needed(self, exported: Path) -> None:
        text = (exported / "README.md").read_text()
        for words in ("6.0 mm", "32 × 32 × 25", "RAS+", "Not for diagnosis", "2 persons", "A & B"):
            assert words in text


class TestMonai:
    """By MONAI's own functions, without a network."""

    def test_metadata_hold_what_its_schema_demands(self, exported: Path) -> None:
        found = monai.bundle.ConfigParser.load_config_file(exported / "configs/metadata.json")
        assert set(REQUIRED.split()) <= set(found)
        for name, value in found.items():
            assert isinstance(value, dict if name in OBJECTS else str), name
        for tensors in (found["network_data_format"][side] for side in ("inputs", "outputs")):
            for tensor in tensors.values():
                for name, kind in TENSOR.items():
                    assert isinstance(tensor[name], kind), name
                assert all(isinstance(size, str | int) for size in tensor["spatial_shape"])
                assert all(isinstance(value, float | int) for value in tensor["value_range"])

    def test_the_network_takes_and_gives_what_metadata_say(self, exported: Path) -> None:
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(exported / "configs/metadata.json"),
            config_file=str(exported / "configs/inference.json"),
        )

    def test_its_loader_gives_the_same_features(self, exported: Path, volume: Path) -> None:
        network: Any = monai.bundle.load(
            exported.name, bundle_dir=exported.parent, workflow_type="inference", device="cpu"
        )
        parser = monai.bundle.ConfigParser(
            monai.bundle.ConfigParser.load_config_file(exported / "configs/inference.json")
        )
        read = parser.get_parsed_content("preprocessing")
        with torch.no_grad():
            found = network.eval()(read(str(volume))[None])
        expected = load_encoder(exported)(volume)
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "params",
        [
            EncoderParams(stem_stride=2, width=0.125, norm="group"),
            EncoderParams(stem_stride=2, width=0.125, shortcut="padded", dilated=True),
            EncoderParams(stem_stride=2, width=0.125, shortcut="padded"),
            EncoderParams(width=0.125, shortcut="unbiased"),
        ],
        ids=["group", "dilated", "padded", "unbiased"],
    )
    def test_its_configuration_builds_every_network(
        self, encoder: Path, params: EncoderParams
    ) -> None:
        both = {"encoder": params, "contrasts": ("T1w", "FLAIR")}
        plan = read_plan(encoder).model_copy(update=both)
        network = monai.bundle.ConfigParser(inference(plan)).get_parsed_content("network_def")
        ours = encoders.build(params, seed=1, channels=2)
        network.load_state_dict(ours.state_dict(), strict=True)
        x = torch.randn(1, 2, 20, 18, 16)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), ours.eval()(x))
