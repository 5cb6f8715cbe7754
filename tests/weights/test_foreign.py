"""Folders from elsewhere: nothing outside them is read, and nothing altered in them is used."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from neurofoundry import load_encoder
from neurofoundry.errors import DataError, NeurofoundryError
from tests.support import tiny
from tests.support.foreign import change, command, commands
from tests.support.published import trained, write_simclr

SECRET = "person\nsomebody/else\n"
COMMANDS = ["import", "embed", "export", "finetune", "evaluate"]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_volumes(tmp_path_factory.mktemp("foreign") / "volumes", tiny.scans_table(28))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return tiny.write_encoder(tmp_path / "theirs")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the user, outside the folder."""
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine/secret.tsv"
    path.write_text(SECRET)
    return path


def link(path: Path, target: Path) -> None:
    """Put a link to an existing content, if there is any, in the place of a file."""
    if path.exists() and target.suffix != ".tsv":
        target.write_bytes(path.read_bytes())
    path.unlink(missing_ok=True)
    path.symlink_to(target)


class TestLinks:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_refuses_a_link_out_of_the_folder(
        self, theirs: Path, outside: Path, volumes: Path, tmp_path: Path, name: str
    ) -> None:
        link(theirs / "subjects.tsv", outside)
        ended = command(*commands(theirs, scans=volumes, volumes=volumes, out=tmp_path)[name])
        assert isinstance(ended, DataError)
        assert f"{theirs / 'subjects.tsv'}: a link out of its folder, to {outside}" in str(ended)
        written = [each for each in tmp_path.rglob("*.tsv") if each.parent.name != "mine"]
        assert not any(each.read_text() == SECRET for each in written if not each.is_symlink())

    @pytest.mark.parametrize(
        "name", ["plan.json", "encoder.safetensors", "images.tsv", "history.tsv", "stage.json"]
    )
    def test_whatever_the_file_is(
        self, theirs: Path, outside: Path, tmp_path: Path, name: str
    ) -> None:
        link(theirs / name, outside.with_suffix(".other" if (theirs / name).exists() else ".tsv"))
        ended = command("import", theirs, "--as", "x", "--out", tmp_path / "out")
        assert isinstance(ended, DataError)
        assert f"{theirs / name}: a link out of its folder" in str(ended)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda here, _: (here / "more").symlink_to("/etc"), "more: a link out"),
            (lambda here, _: (here / "up").symlink_to(".."), "up: a link out"),
            (lambda here, _: (here / "gone").symlink_to("nowhere"), "gone: a link to nothing"),
            (lambda here, _: (here / "self").symlink_to("self"), "self: a link to nothing"),
            (lambda here, _: os.mkfifo(here / "pipe"), "pipe: a pipe or device"),
            (
                lambda here, mine: [
                    (here / "deep").mkdir(),
                    (here / "deep/link").symlink_to(f"../../{mine.parent.name}/{mine.name}"),
                ],
                "deep/link: a link out",
            ),
        ],
        ids=["folder", "parent", "nothing", "itself", "pipe", "relative"],
    )
    def test_whatever_the_link_is(
        self, theirs: Path, outside: Path, make: Callable[[Path, Path], object], words: str
    ) -> None:
        make(theirs, outside)
        with pytest.raises(DataError, match=words):
            load_encoder(theirs)

    @pytest.mark.parametrize("name", ["finetune", "evaluate"])
    def test_a_folder_of_encoders_holds_none_from_outside(
        self, theirs: Path, volumes: Path, tmp_path: Path, name: str
    ) -> None:
        several = tmp_path / "several"
        several.mkdir()
        (several / "one").symlink_to(theirs)
        ended = command(*commands(several, scans=volumes, volumes=volumes, out=tmp_path)[name])
        assert isinstance(ended, DataError)
        assert f"{several / 'one'}: a link out of its folder" in str(ended)

    def test_embed_hashes_no_device(self, theirs: Path, volumes: Path, tmp_path: Path) -> None:
        (theirs / "encoder.safetensors").unlink()
        (theirs / "encoder.safetensors").symlink_to("/dev/zero")
        ended = command("embed", volumes, "--weights", theirs, "--out", tmp_path / "e.tsv")
        assert isinstance(ended, DataError)
        assert "encoder.safetensors: a link out of its folder, to /dev/zero" in str(ended)

    def test_links_within_the_folder_and_to_it_are_taken(
        self, theirs: Path, tmp_path: Path
    ) -> None:
        (theirs / "encoder.safetensors").rename(theirs / "blob")
        (theirs / "encoder.safetensors").symlink_to("blob")
        (tmp_path / "latest").symlink_to(theirs)
        load_encoder(tmp_path / "latest")

    def test_predict_refuses_them_too(self, volumes: Path, outside: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "plan.json").write_text("{}")
        (model / "trust.npz").symlink_to(outside)
        ended = command("predict", volumes, "--model", model, "--out", tmp_path / "p.tsv")
        assert isinstance(ended, DataError)
        assert "trust.npz: a link out of its folder" in str(ended)


class TestRecord:
    @pytest.mark.parametrize("name", ["import", "embed", "export", "finetune"])
    def test_altered_weights_are_refused(
        self, theirs: Path, volumes: Path, tmp_path: Path, name: str
    ) -> None:
        other = tiny.write_encoder(tmp_path / "other", seed=2)
        (theirs / "encoder.safetensors").write_bytes((other / "encoder.safetensors").read_bytes())
        ended = command(*commands(theirs, scans=volumes, volumes=volumes, out=tmp_path)[name])
        assert isinstance(ended, DataError)
        assert "encoder.safetensors" in str(ended)

    @pytest.mark.parametrize("name", ["plan.json", "subjects.tsv", "encoder.safetensors"])
    def test_a_wrong_hash_is_named(self, theirs: Path, name: str) -> None:
        change(theirs / "stage.json", lambda record: record["contents"].update({name: "0" * 64}))
        with pytest.raises(DataError, match=rf"{name}: not the file that stage\.json"):
            load_encoder(theirs)

    @pytest.mark.parametrize("content", ["[]", "{", '{"contents": 3}', "[" * 100_000])
    def test_what_is_no_record_is_refused(self, theirs: Path, content: str) -> None:
        (theirs / "stage.json").write_text(content)
        with pytest.raises(DataError, match="not a stage record"):
            load_encoder(theirs)

    def test_paths_in_a_record_are_not_followed(self, theirs: Path, outside: Path) -> None:
        names = {"../mine/secret.tsv": "0" * 64, "/etc/passwd": "0" * 64}
        change(theirs / "stage.json", lambda record: record["contents"].update(names))
        load_encoder(theirs)

    def test_names_of_persons_may_be_removed(self, theirs: Path, tmp_path: Path) -> None:
        change(
            theirs / "stage.json",
            lambda record: record["contents"].update({"subjects.tsv": "0" * 64}),
        )
        (theirs / "subjects.tsv").unlink()
        load_encoder(theirs)

    def test_tables_that_are_none_are_not_imported(self, theirs: Path, tmp_path: Path) -> None:
        (theirs / "subjects.tsv").write_bytes(b"\xff\xfe\x00 no table")
        ended = command("import", theirs, "--as", "x", "--out", tmp_path / "out")
        assert isinstance(ended, DataError)
        assert "subjects.tsv" in str(ended)


def damage(path: Path, tensor: str, value: float) -> None:
    """Write one value into a tensor of a safetensors file."""
    tensors = safetensors.torch.load_file(path)
    tensors[tensor].view(-1)[0] = value
    path.write_bytes(safetensors.torch.save(tensors))


VALUES = [
    ("layer1.0.conv1.weight", float("nan"), "1 values that are NaN or infinite"),
    ("layer4.1.bn2.weight", float("inf"), "1 values that are NaN or infinite"),
    ("bn1.running_mean", float("-inf"), "1 values that are NaN or infinite"),
    ("layer2.0.bn1.running_var", -1e-3, "1 negative variances"),
]


class TestValues:
    @pytest.mark.parametrize(("tensor", "value", "words"), VALUES)
    def test_of_an_encoder_are_numbers(
        self, theirs: Path, tensor: str, value: float, words: str
    ) -> None:
        damage(theirs / "encoder.safetensors", tensor, value)
        tiny.finished(theirs, "pretrain", "encoder.safetensors")
        with pytest.raises(DataError, match=rf"damaged in 1 tensors:\s+{tensor} has {words}"):
            load_encoder(theirs)

    @pytest.mark.parametrize("name", ["import", "embed", "export", "finetune"])
    def test_every_command_names_the_tensor(
        self, theirs: Path, volumes: Path, tmp_path: Path, name: str
    ) -> None:
        damage(theirs / "encoder.safetensors", "conv1.weight", float("nan"))
        tiny.finished(theirs, "pretrain", "encoder.safetensors")
        ended = command(*commands(theirs, scans=volumes, volumes=volumes, out=tmp_path)[name])
        assert isinstance(ended, DataError)
        assert "conv1.weight has 1 values that are NaN or infinite" in str(ended)

    @pytest.mark.parametrize(("tensor", "value", "words"), VALUES)
    @pytest.mark.parametrize("suffix", [".tar", ".pt", ".safetensors"])
    def test_of_a_checkpoint_are_numbers(
        self, tmp_path: Path, suffix: str, tensor: str, value: float, words: str
    ) -> None:
        tensors, path = trained(1, "biased").state_dict(), tmp_path / f"theirs{suffix}"
        tensors[tensor].view(-1)[0] = value
        if suffix == ".tar":
            named = {f"module.encoder.{name}": value for name, value in tensors.items()}
            torch.save({"model_state_dict": named}, path)
        elif suffix == ".pt":
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        else:
            safetensors.torch.save_file(tensors, path)
        asked = ["import", path, "--as", "x", "--out", tmp_path / "out"]
        ended = command(*asked, *([] if suffix == ".tar" else ["--licence", "MIT"]))
        assert isinstance(ended, DataError)
        assert f"{tensor} has {words}" in str(ended)
        assert not (tmp_path / "out").exists()

    def test_inverted_bytes_in_a_torch_file_are_told_by_its_sums(self, tmp_path: Path) -> None:
        path = tmp_path / "theirs.tar"
        write_simclr(path, trained(1, "biased"))
        content = bytearray(path.read_bytes())
        tensors = torch.load(path, weights_only=True)["model_state_dict"]
        largest = tensors["module.encoder.layer4.1.conv2.weight"].numpy().tobytes()
        start = bytes(content).index(largest[:64])
        content[start : start + 2000] = (byte ^ 0x01 for byte in content[start : start + 2000])
        path.write_bytes(content)
        ended = command("import", path, "--as", "x", "--out", tmp_path / "out")
        assert isinstance(ended, DataError)
        assert "does not have the CRC that it was written with" in str(ended)
        assert not (tmp_path / "out").exists()

    def test_a_torch_file_that_grows_when_it_is_read_is_not_read(self, tmp_path: Path) -> None:
        path, grown = tmp_path / "theirs.tar", tmp_path / "packed.tar"
        torch.save({"model_state_dict": {"conv1.weight": torch.zeros(10**6)}}, path)
        with (
            zipfile.ZipFile(path) as plain,
            zipfile.ZipFile(grown, "w", zipfile.ZIP_DEFLATED) as to,
        ):
            for name in plain.namelist():
                to.writestr(name, plain.read(name))
        assert grown.stat().st_size < 10_000
        ended = command("import", grown, "--as", "x", "--out", tmp_path / "out")
        assert isinstance(ended, DataError)
        assert "it is packed, and 400" in str(ended)

    @pytest.mark.parametrize("seed", range(6))
    def test_inverted_bytes_anywhere_are_an_error_and_no_defect(
        self, tmp_path: Path, seed: int
    ) -> None:
        path = tmp_path / "theirs.tar"
        write_simclr(path, trained(1, "biased"))
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        random = np.random.default_rng(seed)
        # The start and the end of the file hold the pickle and the directory of the zip.
        place = int(random.choice([random.integers(3000), len(content) - random.integers(3000)]))
        content[max(place - 40, 8) : place] ^= 0xFF
        path.write_bytes(content.tobytes())
        ended = command("import", path, "--as", "x", "--out", tmp_path / "out")
        assert ended is None or isinstance(ended, DataError)


def edit(*names: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what puts a value under nested names."""

    def put(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value

    return put


class TestPlan:
    @pytest.mark.parametrize(
        ("change_plan", "words"),
        [
            (edit("grid", "spacing_mm", value=1e-300), "grid"),
            (edit("grid", "spacing_mm", value=1e300), "grid"),
            (edit("grid", "spacing_mm", value=-6.0), "grid"),
            (edit("grid", "spacing_mm", value=0), "grid"),
            (edit("grid", "spacing_mm", value=float("nan")), "not a finite number"),
            (edit("grid", "spacing_mm", value=float("inf")), "not a finite number"),
            (edit("grid", "spacing_mm", value=5.0), "must divide 192 mm"),
            (edit("grid", "spacing_mm", value="6.0"), "spacing_mm is '6.0', expected a number"),
            (edit("grid", "spacing_mm", value=True), "spacing_mm is True, expected a number"),
            (edit("grid", "spacing_mm", value=[6.0]), "expected a number"),
            (edit("grid", "spacing_mm", value=10**400), "grid"),
            (edit("grid", value={"shape_xyz": [32, 32, 25]}), "spacing_mm is missing"),
            (edit("grid", value=[1]), "grid"),
            (edit("grid", "shape_xyz", value=[10**9] * 3), "shape_xyz is .* for 6 mm"),
            (edit("grid", "affine", value=[[1e300] * 4] * 4), "affine is"),
            (edit("grid", "orientation", value="LPS"), "orientation is 'LPS'"),
            (edit("grid", "more", value=1), "more is 1"),
            (edit("features", value=65), "features is 65; resnet18 of width 0.125 has 64"),
            (edit("features", value="many"), "features"),
            (edit("features", value=-64), "features is -64"),
            (edit("encoder", "width", value=1e-300), "width"),
            (edit("encoder", "width", value=400), "width"),
            (edit("name", value="../../somewhere"), "name"),
            (edit("name", value="a\x1b[2Jb"), "name"),
            (edit("contrasts", value=["FLAIR"]), "expected T1w first"),
            (edit("contrasts", value=["T1w", "T1w"]), "listed twice"),
            # MONAI would run it: contrasts are in the expressions of exported bundles.
            (edit("contrasts", value=["T1w", "a else __import__('os').abort()"]), "of BIDS"),
            (edit("contrasts", value=["T1w", "../x"]), "suffixes of BIDS such as FLAIR"),
            (edit("more", value=1), "more"),
        ],
    )
    def test_what_is_impossible_is_named(
        self, theirs: Path, change_plan: Callable[[dict[str, Any]], object], words: str
    ) -> None:
        change(theirs / "plan.json", change_plan)
        with pytest.raises(DataError, match=rf"(?s)plan\.json: not an adaptation plan.*{words}"):
            load_encoder(theirs)

    def test_a_number_beyond_any_float_is_named(self, theirs: Path) -> None:
        path = theirs / "plan.json"
        path.write_text(path.read_text().replace('"spacing_mm": 6.0', '"spacing_mm": 6e999'))
        with pytest.raises(DataError, match="6e999 is not a finite number"):
            load_encoder(theirs)

    def test_depth_is_an_error_and_no_defect(self, theirs: Path) -> None:
        for depth in (200, 900, 100_000):
            deep = "[" * depth + "]" * depth
            plan = json.loads((theirs / "plan.json").read_text()) | {"preprocess": {"a": "DEEP"}}
            text = json.dumps(plan).replace('"DEEP"', deep)
            copy = tiny.write_encoder(theirs.with_name(f"deep{depth}"))
            (copy / "plan.json").write_text(text)
            ended = command(*("embed", copy, "--weights", copy, "--out", theirs.with_name("e.tsv")))
            assert isinstance(ended, NeurofoundryError), depth

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_refuses_an_impossible_grid(
        self, theirs: Path, volumes: Path, tmp_path: Path, name: str
    ) -> None:
        change(theirs / "plan.json", edit("grid", "spacing_mm", value=1e-300))
        tiny.finished(theirs, "pretrain", "encoder.safetensors")
        ended = command(*commands(theirs, scans=volumes, volumes=volumes, out=tmp_path)[name])
        assert isinstance(ended, DataError)
        assert "plan.json: not an adaptation plan (grid" in str(ended)
