from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from neurofoundry.contracts.encoder import EncoderParams, check_grid, read_plan, read_pretrained
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, NeurofoundryError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.runtime import stage
from neurofoundry.weights.params import ImportParams
from neurofoundry.weights.published import import_checkpoint
from tests.support import tiny
from tests.support.published import trained, write_simclr


def import_to(out: Path, checkpoint: Path, **given: Any) -> Path:
    params = ImportParams(**{"name": "theirs", **given})
    return stage.run(
        "pretrain",
        lambda work: import_checkpoint(work, checkpoint=checkpoint, params=params),
        to=stage.Destination(out),
        params={"import": params},
        inputs={},
    )


def features_of(folder: Path, volumes: Tensor) -> Tensor:
    encoder, _ = encoders.load(folder)
    with torch.no_grad():
        return encoder.eval()(volumes)


@pytest.fixture(scope="module")
def volumes() -> Tensor:
    return torch.randn(2, 1, 26, 32, 30, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def simclr(tmp_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    network = trained(1, "biased")
    path = tmp_path / "simclr_3d_brain_foundation.tar"
    return path, network, write_simclr(path, network)


class TestFeatures:
    """Those of a network written apart from ours, from the same tensors."""

    def test_of_the_published_simclr(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]], volumes: Tensor
    ) -> None:
        path, network, _ = simclr
        folder = import_to(tmp_path / "out", path)
        with torch.no_grad():
            expected = network(volumes)
        torch.testing.assert_close(features_of(folder, volumes), expected, rtol=1e-5, atol=1e-5)
        plan = read_plan(folder)
        assert (plan.method, plan.licence, plan.name) == ("simclr", "MIT", "theirs")
        assert plan.encoder == EncoderParams(stem_stride=1, width=0.125)

    @pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
    def test_of_medicalnet(self, tmp_path: Path, volumes: Tensor, legacy: bool) -> None:
        network = trained(2, "padded", dilated=True)
        tensors = {f"module.{name}": value for name, value in network.state_dict().items()}
        tensors["module.conv_seg.0.weight"] = torch.zeros(3)
        path = tmp_path / "resnet_18.pth"
        torch.save(
            {"state_dict": tensors, "epoch": 3, "optimizer": {}},
            path,
            _use_new_zipfile_serialization=not legacy,
        )
        folder = import_to(tmp_path / "out", path)
        with torch.no_grad():
            expected = network(volumes)
        torch.testing.assert_close(features_of(folder, volumes), expected, rtol=1e-5, atol=1e-5)
        left_out = json.loads((folder / "import.json").read_text())["left_out"]
        assert {row["name"] for row in left_out} == {
            "module.conv_seg.0.weight",
            "epoch",
            "optimizer",
        }
        assert all(row["reason"] for row in left_out)

    @pytest.mark.parametrize("stem_stride", [1, 2])
    @pytest.mark.parametrize("shortcut", ["biased", "unbiased", "padded"])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_of_monai(
        self, tmp_path: Path, volumes: Tensor, stem_stride: int, shortcut: str, suffix: str
    ) -> None:
        network = trained(stem_stride, shortcut)
        tensors = dict(network.state_dict()) | {"fc.weight": torch.ones(2, 64)}
        path = tmp_path / f"monai{suffix}"
        if suffix == ".pt":
            torch.save(tensors, path)
        else:
            safetensors.torch.save_file(tensors, path)
        folder = import_to(tmp_path / "out", path, licence="CC0-1.0", stem_stride=stem_stride)
        with torch.no_grad():
            expected = network(volumes)
        torch.testing.assert_close(features_of(folder, volumes), expected, rtol=1e-5, atol=1e-5)

    def test_of_our_own_under_another_name(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]], volumes: Tensor
    ) -> None:
        first = import_to(tmp_path / "first", simclr[0])
        (first / "subjects.tsv").write_text("person\na/sub-1\n")
        second = import_to(tmp_path / "second", first, name="again")
        assert torch.equal(features_of(second, volumes), features_of(first, volumes))
        assert read_plan(second).name == "again"
        assert read_pretrained(second).persons == {"a/sub-1"}

    def test_that_learn_let_gradients_through_a_padded_shortcut(self) -> None:
        # MONAI's own shortcut of this kind takes them away.
        encoder = encoders.build(
            EncoderParams(stem_stride=2, width=0.125, shortcut="padded"), seed=0
        )
        block = encoder.layer2[0]
        x = torch.randn(1, 8, 4, 4, 4, requires_grad=True)
        (kept,) = torch.autograd.grad(block.downsample(x).sum(), x)
        expected = torch.zeros(4, 4, 4)
        expected[::2, ::2, ::2] = 1
        assert torch.equal(kept[0, 0], expected)


class TestPlan:
    def test_the_published_grid_is_the_one_of_preprocess_at_1_mm(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]]
    ) -> None:
        plan = read_plan(import_to(tmp_path / "out", simclr[0]))
        grid = Grid(spacing=1.0)
        check_grid(plan, grid)
        # x −95…96, y −113…78, z −68…81 of MNI152: the reference's crop of 193 × 229 × 193.
        assert grid.shape == (192, 192, 150)
        first, last = grid.affine[:3, 3], grid.affine @ [191, 191, 149, 1]
        assert first.tolist() == [-95, -113, -68]
        assert last[:3].tolist() == [96, 78, 81]
        with pytest.raises(UsageError, match=r"Set preprocess\.grid\.spacing to 1\.0"):
            check_grid(plan, Grid(spacing=2.0))

    def test_weights_without_a_grid_take_any_unless_bound_to_one(self, tmp_path: Path) -> None:
        path = tmp_path / "monai.pt"
        torch.save(trained(1, "biased").state_dict(), path)
        plan = read_plan(import_to(tmp_path / "any", path, licence="MIT"))
        check_grid(plan, Grid(spacing=3.0))
        check_grid(plan, Grid(spacing=1.0))
        plan = read_plan(import_to(tmp_path / "2", path, licence="MIT", spacing=2.0))
        with pytest.raises(UsageError, match="another grid"):
            check_grid(plan, Grid(spacing=3.0))

    def test_whom_they_have_seen_is_unknown(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]]
    ) -> None:
        seen = read_pretrained(import_to(tmp_path / "out", simclr[0]))
        assert seen.persons is None
        assert seen.images is None


class TestRefusal:
    """Nothing is loaded in part, and nothing is run."""

    def change(self, path: Path, **changes: Tensor | None) -> Path:
        content = torch.load(path, weights_only=True)
        for name, value in changes.items():
            key = f"module.{name.replace('__', '.')}"
            content["model_state_dict"].pop(key, None)
            if value is not None:
                content["model_state_dict"][key] = value
        torch.save(content, path)
        return path

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"encoder__layer3__1__conv2__weight": None},
                r"layer3\.1\.conv2\.weight is missing",
            ),
            (
                {"encoder__layer5__0__conv1__weight": torch.ones(3)},
                r"layer5\.0\.conv1\.weight is not part of the network",
            ),
            (
                {"encoder__layer2__0__bn1__weight": torch.ones(17)},
                r"layer2\.0\.bn1\.weight is \(17,\).*expected \(16,\)",
            ),
            ({"decoder__weight": torch.ones(3)}, r"1 entries are neither.*module\.decoder\.weight"),
            ({"encoder__conv1__weight": torch.ones(8, 3, 7, 7, 7)}, "one volume in"),
            ({"encoder__layer4__1__conv1__weight": torch.ones(2).half()}, r"float16.*float32"),
        ],
        ids=["missing", "extra", "misshapen", "strange", "channels", "type"],
    )
    def test_a_tensor_that_does_not_fit_is_named(
        self,
        tmp_path: Path,
        simclr: tuple[Path, Any, dict[str, Any]],
        changes: dict[str, Tensor | None],
        message: str,
    ) -> None:
        path = self.change(simclr[0], **changes)
        with pytest.raises(DataError, match=message):
            import_to(tmp_path / "out", path, kind="3d-neuro-simclr")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
    def test_a_pickle_that_would_run_code_is_not_run(self, tmp_path: Path, legacy: bool) -> None:
        mark = tmp_path / "was-run"

        class Malice:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (mark,))

        path = tmp_path / "evil.tar"
        torch.save(
            {"model_state_dict": {"module.encoder.conv1.weight": Malice()}},
            path,
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(DataError, match=r"refused.*could run code"):
            import_to(tmp_path / "out", path)
        assert not mark.exists()

    def test_a_bare_pickle_that_would_run_code_is_not_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "was-run"

        class Malice:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (mark,))

        path = tmp_path / "evil.pkl"
        path.write_bytes(pickle.dumps(Malice()))
        with pytest.raises(DataError, match=r"could run code|damaged"):
            import_to(tmp_path / "out", path)
        assert not mark.exists()

    @pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
    def test_a_file_cut_short(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]], share: float
    ) -> None:
        content = simclr[0].read_bytes()
        simclr[0].write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=r"cut short.*Download it again"):
            import_to(tmp_path / "out", simclr[0])

    def test_a_legacy_file_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "old.pth"
        torch.save(trained(1, "biased").state_dict(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(DataError, match="cut short"):
            import_to(tmp_path / "out", path)

    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    def test_a_real_tar(
        self, tmp_path: Path, simclr: tuple[Path, Any, dict[str, Any]], mode: Any
    ) -> None:
        path = tmp_path / "real.tar"
        with tarfile.open(path, mode) as archive:
            archive.add(simclr[0], "checkpoint.pt")
        with pytest.raises(DataError, match="a real tar archive"):
            import_to(tmp_path / "out", path)

    def test_an_unpacked_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "x" / "archive").mkdir(parents=True)
        (tmp_path / "x" / "archive" / "data.pkl").touch()
        with pytest.raises(DataError, match="an unpacked checkpoint"):
            import_to(tmp_path / "out", tmp_path / "x")

    def test_a_web_page(self, tmp_path: Path) -> None:
        path = tmp_path / "page.tar"
        path.write_text("<!DOCTYPE html>")
        with pytest.raises(DataError, match="neither a torch checkpoint"):
            import_to(tmp_path / "out", path)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"spacing": 2.0}, "--spacing"),
            ({"stem_stride": 2}, "--stem-stride"),
            ({"kind": "medicalnet"}, "no 'state_dict'"),
        ],
    )
    def test_what_contradicts_the_kind(
        self,
        tmp_path: Path,
        simclr: tuple[Path, Any, dict[str, Any]],
        given: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(NeurofoundryError, match=message):
            import_to(tmp_path / "out", simclr[0], **given)

    def test_weights_without_a_licence(self, tmp_path: Path) -> None:
        path = tmp_path / "monai.pt"
        torch.save(trained(1, "biased").state_dict(), path)
        with pytest.raises(UsageError, match="--licence"):
            import_to(tmp_path / "out", path)


class TestUse:
    def test_finetune_takes_them_by_their_name(self, tmp_path: Path) -> None:
        path = tmp_path / "monai.pt"
        torch.save(trained(2, "biased").state_dict(), path)
        folder = import_to(tmp_path / "encoder", path, licence="MIT", stem_stride=2)
        scans = tiny.scans_table(28)
        volumes = tiny.write_volumes(tmp_path / "volumes", scans)
        probe = {"initializations": {"probe": {"encoder": "theirs", "mode": "probe"}}}
        models = tiny.run(
            tmp_path / "models", volumes, folder, probe, {"diagnosis": tiny.DIAGNOSIS}
        )
        table = tiny.predictions(models / "diagnosis/probe/1.0/0")
        assert len(table) == (~scans["split"].isin(["pretrain", "train"])).sum()
        assert json.loads((models / "stage.json").read_text())["inputs"]["pretrain/simclr"]
