"""Weights are data: nothing that somebody else's plan.json names is run or read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from neurofoundry import load_encoder
from neurofoundry.contracts.recipe import describe_command
from neurofoundry.errors import DataError, NeurofoundryError, UsageError
from tests.support import tiny
from tests.support.foreign import change, command, commands

PROBE = {"initializations": {"probe": {"encoder": "simclr", "mode": "probe"}}}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that only a command of the attacker makes."""
    return tmp_path / "canary"


@pytest.fixture
def malice(canary: Path) -> str:
    return f"sh -c 'touch {canary}' {{input}} {{output}}"


@pytest.fixture
def theirs(weights: Path, tmp_path: Path) -> Path:
    return shutil.copytree(weights, tmp_path / "theirs")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_volumes(tmp_path_factory.mktemp("foreign") / "volumes", tiny.scans_table(28))


@pytest.fixture(scope="module")
def trained(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    encoder = tiny.write_encoder(folder / "encoder")
    models = tiny.run(folder / "models", volumes, encoder, PROBE, {"age": tiny.AGE})
    return models / "age/probe/1.0/0"


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "model")


def set_recipe(folder: Path, **values: Any) -> None:
    change(folder / "plan.json", lambda plan: plan["preprocess"].update(values))


@pytest.mark.parametrize("text", ["MIT\nname: theirs", "\x1b]0;theirs\x07MIT", "x" * 2000])
def test_a_text_of_theirs_is_a_short_line(theirs: Path, text: str) -> None:
    change(theirs / "plan.json", lambda plan: plan.update(licence=text))
    with pytest.raises(DataError, match="licence"):
        load_encoder(theirs)


class TestCommands:
    """Of every command line that takes weights, none runs what a plan names."""

    def test_embed_asks_for_the_command_and_runs_none(
        self, raw: Path, theirs: Path, canary: Path, malice: str, tmp_path: Path
    ) -> None:
        set_recipe(theirs, mask={"command": malice, "timeout": 5})
        ended = command("embed", raw, "--weights", theirs, "--out", tmp_path / "e.tsv")
        assert isinstance(ended, UsageError)
        assert "masked by another program: sh," in str(ended)
        assert "--mask-command" in str(ended)
        assert str(canary) not in str(ended)
        assert not canary.exists()
        assert not (tmp_path / "e.tsv").exists()

    def test_predict_asks_for_the_command_and_runs_none(
        self, raw: Path, model: Path, canary: Path, malice: str, tmp_path: Path
    ) -> None:
        def infect(plan: dict[str, Any]) -> None:
            mask = {"mask": {"command": malice, "timeout": 5}}
            plan["volumes"]["preprocess"] = mask
            plan["encoder"]["preprocess"] = mask

        change(model / "plan.json", infect)
        ended = command("predict", raw, "--model", model, "--out", tmp_path / "p.tsv")
        assert isinstance(ended, UsageError)
        assert "--mask-command" in str(ended)
        assert not canary.exists()

    def test_import_finetune_and_export_keep_no_command(
        self, raw: Path, theirs: Path, volumes: Path, canary: Path, malice: str, tmp_path: Path
    ) -> None:
        set_recipe(theirs, mask={"command": malice, "timeout": 5})
        tiny.finished(theirs, "pretrain", "encoder.safetensors")
        listed = commands(theirs, scans=raw, volumes=volumes, out=tmp_path)
        for name in ("import", "finetune", "export"):
            assert command(*listed[name]) is None
        load_encoder(theirs)
        assert not canary.exists()
        described = describe_command(malice, 5.0)
        for name in ("imported", "exported"):
            text = (tmp_path / name / "plan.json").read_text()
            assert json.loads(text)["preprocess"]["mask"] == described
            assert str(canary) not in text
        for path in (tmp_path / "models").rglob("*.json"):
            assert str(canary) not in path.read_text()

    def test_a_command_of_the_user_runs_and_is_shown(
        self,
        raw: Path,
        theirs: Path,
        canary: Path,
        malice: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        set_recipe(theirs, mask={"command": malice, "timeout": 5})
        one, mine = raw / "first.nii.gz", tmp_path / "mine"
        script = f"import pathlib; pathlib.Path({str(mine)!r}).touch()"
        given = f'{sys.executable} -c "{script}" {{input}} {{output}}'
        out = tmp_path / "e.tsv"
        with caplog.at_level("INFO", logger="neurofoundry"):
            asked = ["embed", one, "--weights", theirs, "--out", out, "--workers", 1]
            assert command(*asked, "--mask-command", given) is None
        assert mine.exists()
        assert not canary.exists()
        assert f"Running once a scan: {given}" in caplog.messages
        assert any("not the text" in message for message in caplog.messages)
        assert "no mask: the command ended with 0 and wrote no file" in out.read_text()

    def test_a_command_that_the_weights_do_not_know_is_refused(
        self, raw: Path, weights: Path, canary: Path, malice: str, tmp_path: Path
    ) -> None:
        out = tmp_path / "e.tsv"
        asked = ["embed", raw, "--weights", weights, "--out", out]
        ended = command(*asked, "--mask-command", malice)
        assert isinstance(ended, UsageError)
        assert "made without one. Leave it out" in str(ended)
        assert not canary.exists()


HASH = "0" * 64


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"template": "/etc"}, "template names a file"),
        ({"template": "words"}, "template names a file"),
        ({"overrides": "/etc/passwd"}, "overrides names a file"),
        ({"template_sha256": "/etc/passwd"}, "template_sha256"),
        ({"mask": "touch canary"}, "mask"),
        ({"mask": ["touch canary"]}, "mask"),
        ({"mask": {"command": ["touch", "canary"]}}, "mask"),
        ({"mask": {"program": "../sh", "command_sha256": HASH}}, "mask.program"),
        ({"mask": {"program": "sh\x1b[2J", "command_sha256": HASH}}, "mask.program"),
        ({"mask": {"program": "sh", "command_sha256": "{input.__class__}"}}, "command_sha256"),
        ({"mask": {"program": "sh", "command_sha256": HASH, "extra": "x"}}, "mask.extra"),
        ({"mask": {"program": "sh", "command_sha256": HASH, "timeout": 1e12}}, "mask.timeout"),
        ({"quality": {"contrast": {"min": "$(touch canary)"}}}, "quality.contrast.min"),
        ({"standard": "/etc/passwd"}, "standard"),
        ({"standard": {"a": 1}}, "standard"),
        ({"quality": {"contrast": {"min": 10**400}}}, "quality.contrast.min"),
    ],
)
def test_a_plan_that_names_files_or_commands_otherwise_is_refused(
    raw: Path, theirs: Path, model: Path, tmp_path: Path, recipe: dict[str, Any], named: str
) -> None:
    set_recipe(theirs, **recipe)
    change(model / "plan.json", lambda plan: plan["volumes"].update(preprocess=recipe))
    for asked in (
        ["embed", raw, "--weights", theirs, "--out", tmp_path / "e.tsv"],
        ["predict", raw, "--model", model, "--out", tmp_path / "p.tsv"],
    ):
        ended = command(*asked)
        assert isinstance(ended, DataError)
        assert named in str(ended)
        assert "plan.json" in str(ended)


@pytest.mark.parametrize("kind", ["embed", "import", "export", "finetune", "evaluate"])
def test_every_command_refuses_a_plan_that_names_a_file(
    raw: Path, theirs: Path, volumes: Path, tmp_path: Path, kind: str
) -> None:
    tiny.finished(theirs, "pretrain", "encoder.safetensors")
    set_recipe(theirs, template="/etc")
    ended = command(*commands(theirs, scans=raw, volumes=volumes, out=tmp_path)[kind])
    assert isinstance(ended, DataError)
    assert "template names a file" in str(ended)


@pytest.mark.parametrize(
    "recipe",
    [{"unknown": 3}, {"registration": "guess"}, {"normalization": "nyul", "standard": [1.0, 2.0]}],
)
def test_a_recipe_that_preprocess_does_not_know_is_refused(
    raw: Path, theirs: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    set_recipe(theirs, **recipe)
    ended = command("embed", raw, "--weights", theirs, "--out", tmp_path / "e.tsv")
    assert isinstance(ended, NeurofoundryError)
    assert "of the weights' plan" in str(ended)
