"""No command replaces what it has not made: every command that writes, at every bad place."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofoundry.cli.main import main
from neurofoundry.errors import UsageError
from neurofoundry.runtime import guard
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.guard import guard_mount
from neurofoundry.runtime.stage import SCHEMA_VERSION
from pipelines.__main__ import main as pipelines_main
from tests.support.tiny import write_encoder

ROOT = Path(__file__).resolve().parents[1]
PARAMS = f"--params {ROOT / 'params.yaml'}"

COMMANDS = {
    "ingest": (f"ingest {PARAMS} --data in/data", "in/data"),
    "preprocess": (f"preprocess {PARAMS} --data in/data --cohort in/cohort", "in/cohort"),
    "pretrain": (f"pretrain {PARAMS} --volumes in/volumes --method simclr", "in/volumes"),
    "finetune": (f"finetune {PARAMS} --volumes in/volumes --encoder in/encoder", "in/encoder"),
    "evaluate": (
        f"evaluate {PARAMS} --cohort in/cohort --volumes in/volumes --encoder in/encoder "
        "--models in/models",
        "in/models",
    ),
    "run": (f"run {PARAMS} --data in/data", "in/data"),
    "promote": ("promote --models in/models --evaluation in/evaluation", "in/evaluation"),
    "import": ("import in/encoder --as theirs", "in/encoder"),
    "export": ("export in/encoder", "in/encoder"),
    "embed": ("embed in/data --weights in/encoder", "in/data"),
    "predict": ("predict in/data --model in/models", "in/models"),
    "phantom": ("phantom", ""),
    "compare": ("compare in/evaluation in/other", "in/other"),
    "run-local": (f"run-local {PARAMS} --data in/data --runner subprocess", "in/data"),
}
"""Each command, and the input whose place is tried; phantom has none."""

PLACES = {
    "a file": ("thesis.docx", "this is a f"),
    "a folder with other files": ("mine", "this is a folder"),
    "the output of another": ("theirs", "this is "),
    "below a file": ("thesis.docx/out", "which is a file"),
    "the working folder": (".", "the working folder"),
    "above the working folder": ("..", "above the working folder"),
    "the root": ("/", "above the working folder"),
    "a home": ("../home/", "a home"),
    "a link that leads nowhere": ("dangling", "leads nowhere"),
    "a link to a folder": ("link", "this is a folder"),
    "a name that is too long": ("x" * 300, "no path"),
    "a name too long for what lies beside it": ("x" * 241, "no path"),
    "a home that no shell has put in": ("~/out", "no shell has replaced"),
    "an input": ("{}", "an input"),
    "an input by a slash and dots": ("in/../{}/", "an input"),
    "an input by a link": ("link-to-in/{name}", "an input"),
    "above an input": ("in", "above the input"),
    "within an input": ("{}/new/out", "within the input"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with an input of every kind, a home, and things that must not be lost."""
    work = tmp_path_factory.mktemp("guard") / "work"
    (work / "in/data").mkdir(parents=True)
    (work / "in/data/scan.nii").write_text("raw")
    (work.parent / "home").mkdir()
    stages = {"cohort": "ingest", "volumes": "preprocess", "models": "finetune"}
    for name in ("cohort", "volumes", "models", "evaluation", "other"):
        write_record(work / "in" / name, stages.get(name, "evaluate"))
    write_encoder(work / "in/encoder")
    write_record(work / "theirs", "someone")
    (work / "mine").mkdir()
    (work / "mine/thesis.docx").write_text("precious")
    (work / "thesis.docx").write_text("precious")
    (work / "dangling").symlink_to("nowhere/at/all")
    (work / "link").symlink_to("mine")
    (work / "link-to-in").symlink_to("in")
    return work


def write_record(folder: Path, stage: str) -> None:
    folder.mkdir(parents=True)
    record = {"stage": stage, "schema_version": SCHEMA_VERSION, "data_version": "", "contents": {}}
    write_json(folder / "stage.json", record)


def hash_tree(folder: Path) -> str:
    """The hash of all names, links and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"\0{path}\0".encode())
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_where_something_would_be_lost(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    place: str,
) -> None:
    words, given = COMMANDS[command]
    out, reason = PLACES[place]
    if "input" in place:
        if not given:
            pytest.skip("it has no input")
        out = out.format(given, name=Path(given).name)
    option = "--store" if command == "run-local" else "--out"
    run: Callable[[], None] = pipelines_main if command == "run-local" else main
    monkeypatch.chdir(tree)
    monkeypatch.setenv("HOME", str(tree.parent / "home"))
    monkeypatch.setattr(sys, "argv", ["neurofoundry", *words.split(), option, out])
    before = hash_tree(tree.parent)
    with pytest.raises(SystemExit) as ended:
        run()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, told
    assert f"{option} {Path(out)}: " in told
    assert reason in told
    assert hash_tree(tree.parent) == before


def test_a_mounted_volume_is_refused_before_the_work_with_a_place_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_mount(tmp_path)
    with pytest.raises(UsageError, match=r"--out /proc: this is a mounted volume.*/proc/NAME\."):
        guard_mount(Path("/proc"))
    out = tmp_path / "with a space"
    (tmp_path / "mounts").write_text(
        f"36 35 98:0 / {str(out).replace(' ', chr(92) + '040')} rw,noatime - ext4 /dev/root rw\n"
    )
    monkeypatch.setattr(guard, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(UsageError, match="such as"):
        guard_mount(out)
    guard_mount(out / "NAME")
