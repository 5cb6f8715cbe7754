"""What messages tell people to do: all that they name is there, and doing it ends the problem.

Kinds that need more are tried where they arise: killed and interrupted commands, a full disk
(reliability/), altered outputs (runtime/test_verify.py), checkpoints of other code
(pretrain/test_code_change.py), files that were gone (preprocess/test_run.py), splits
(ingest/test_remedies.py).
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import typer.main
from typer.testing import CliRunner

import neurofoundry.cli.main  # noqa: F401  all commands
from neurofoundry.cli.options import app
from neurofoundry.errors import NeurofoundryError
from neurofoundry.ingest.pseudonyms import KEY
from neurofoundry.pretrain import objectives
from neurofoundry.project import Params
from pipelines.__main__ import app as pipelines_app
from tests.support import tiny
from tests.support.building import bids, run, write_scan
from tests.support.dicom_files import hospital
from tests.support.published import trained, write_simclr

ROOT = Path(__file__).parents[1]
OF_OTHERS = {
    "--container", "--field-selector",  # kubectl
    "--rev", "--out", "--force",  # dvc
    "--shm-size",  # docker
    "--force-reinstall",  # pip
    "--include-online",  # wandb
    "--raw",  # gdcmconv
}  # fmt: skip
"""Options of programs that are not ours."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`neurofoundry ([a-z]+)")
ELSEWHERE = {"finetune.accelerator", "preprocess.standard"}
"""Keys of other files: pools of nodes, and the plan of weights."""

PARAMETER = re.compile(
    r"(?<![\w./-])(?:ingest|preprocess|pretrain|finetune|evaluate|tracking)\.[a-z_]+(?:\.[a-z_]+)*"
)


def messages() -> Iterator[tuple[str, str]]:
    """Yield where each text of the code stands and the text, but for its documentation."""
    for package in ("neurofoundry", "pipelines", "components"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            within = {id(part) for node in ast.walk(tree) for part in _parts(node)}
            for node in ast.walk(tree):
                if id(node) not in within and (text := _text(node)) and " " in text:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text  # type: ignore[attr-defined]


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is part of a longer text, or a docstring."""
    if isinstance(node, ast.JoinedStr):
        yield from node.values
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node.value


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        return "".join(map(str, parts))
    return None


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for each in getattr(command, "commands", {}).values():
        yield from _options(each)


def test_every_option_command_and_parameter_that_a_text_names_is_there() -> None:
    ours: Any = typer.main.get_command(app)
    theirs = typer.main.get_command(pipelines_app)
    options = {*_options(ours), *_options(theirs), *OF_OTHERS, "--help"}
    commands = set(ours.commands)
    wrong = []
    for where, text in messages():
        named = [*OPTION.findall(text)]
        wrong += [(where, option) for option in named if option not in options]
        wrong += [(where, name) for name in COMMAND.findall(text) if name not in commands]
        keys = set(PARAMETER.findall(text)) - ELSEWHERE
        wrong += [(where, key) for key in keys if not _is_parameter(key)]
    assert wrong == []


def _is_parameter(key: str) -> bool:
    """Return whether a key leads to a value of params.yaml; below a dictionary anything does."""
    section: object = Params
    names = key.split(".")
    if names[0] == "pretrain" and names[1] in objectives.MODULES:
        section, names = objectives.find(names[1]).Params, names[2:]
    for name in names:
        fields = getattr(section, "model_fields", None)
        if fields is None:
            return True
        if name not in fields:
            return False
        kinds = [fields[name].annotation, *getattr(fields[name].annotation, "__args__", ())]
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return True


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes, an encoder, a model of its features, and a checkpoint of others."""
    folder = tmp_path_factory.mktemp("outputs")
    volumes = tiny.write_volumes(folder / "volumes", tiny.scans_table(28))
    encoder = tiny.write_encoder(folder / "encoder/simclr")
    tiny.run(folder / "models", volumes, encoder, tiny.PROBED, {"age": tiny.AGE})
    write_simclr(folder / "checkpoint.pt", trained(1, "padded"))
    torch.save(trained(2, "biased").state_dict(), folder / "monai.pt")
    return folder


@pytest.fixture
def here(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, in which commands run."""
    shutil.copytree(outputs, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refusal(words: str) -> str:
    """Run a command; return what it refuses with, '' where it ends well."""
    done = CliRunner().invoke(app, shlex.split(words))
    if isinstance(done.exception, NeurofoundryError):
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return ""


Damage = Callable[[Path], object]
Mend = Callable[[Path, str, str], str]
"""Does what a message says, in a folder, after a command; returns the command to give then."""

EMBED = "embed volumes --weights encoder/simclr --out table.tsv"
PREDICT = "predict volumes --model models/age/probe/1.0/0 --out table.tsv"
IMPORT = "import checkpoint.pt --as theirs --kind 3d-neuro-simclr --out imported"


def nothing(folder: Path) -> None:
    """The command alone is at fault."""


def with_example(folder: Path, said: str, words: str) -> str:
    """Add the option that the message gives as an example."""
    example = re.search(r"such as (--\S+ \S+?);", said)
    assert example
    return f"{words} {example[1]}"


def left_out(folder: Path, said: str, words: str) -> str:
    """Leave out the options that the message begins with."""
    options = OPTION.findall(said.partition(":")[0])
    assert "eave" in said
    return re.sub(rf" ({'|'.join(options)}) \S+", "", words)


def other(old: str, new: str) -> Mend:
    return lambda _, __, words: words.replace(old, new)


def moved(folder: Path, said: str, words: str) -> str:
    """Move away what the message names."""
    shutil.move(folder / re.split(r"[:(]", said)[0].split()[-1], folder.parent / "moved")
    return words


def removed(folder: Path, said: str, words: str) -> str:
    (folder / said.partition(":")[0]).unlink()
    return words


def copied_back(folder: Path, said: str, words: str) -> str:
    """Get the file or folder again from where it came."""
    shutil.rmtree(folder / "encoder")
    tiny.write_encoder(folder / "encoder/simclr")
    write_simclr(folder / "checkpoint.pt", trained(1, "padded"))
    return words


def finetuned_again(folder: Path, said: str, words: str) -> str:
    assert "un finetune again" in said or "run 'finetune' again" in said or "make it again" in said
    tiny.run(
        folder / "models",
        folder / "volumes",
        folder / "encoder/simclr",
        tiny.PROBED,
        {"age": tiny.AGE},
    )
    return words


def linked_out(folder: Path) -> None:
    weights = folder / "encoder/simclr/encoder.safetensors"
    weights.rename(folder / "elsewhere")
    weights.symlink_to(folder / "elsewhere")


def copied_with_links(folder: Path, said: str, words: str) -> str:
    assert "`cp -rL`" in said
    subprocess.run(["cp", "-rL", "encoder/simclr", "copy"], cwd=folder, check=True)
    return words.replace("encoder/simclr", "copy")


def piped(folder: Path) -> None:
    os.mkfifo(folder / "encoder/simclr/pipe")


def torn(name: str) -> Damage:
    def tear(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return tear


CASES: dict[str, tuple[Damage, str, str, Mend]] = {
    "another format": (
        nothing, EMBED.replace(".tsv", ".csv"), "expected a table, .tsv", other(".csv", ".tsv"),
    ),
    "a file is there": (
        lambda folder: (folder / "table.tsv").write_text("mine"),
        EMBED, "Give a new file", other("table.tsv", "new.tsv"),
    ),
    "a folder is there": (
        lambda folder: write_scan(folder / "imported/mine.nii"),
        f"{IMPORT} --licence MIT", "Give a new or empty folder", other("imported", "new"),
    ),
    "a name is taken": (
        lambda folder: write_scan(folder / ".imported.partial/mine.nii"),
        f"{IMPORT} --licence MIT", "Move it elsewhere", moved,
    ),
    "no licence": (
        nothing, "import monai.pt --as theirs --kind monai --stem-stride 2 --out imported",
        "Give it, such as", with_example,
    ),
    "a stride that is known": (
        nothing, f"{IMPORT} --licence MIT --stem-stride 1", "Leave it out", left_out,
    ),
    "what a folder says itself": (
        nothing,
        "import encoder/simclr --as theirs --licence MIT --spacing 2 --out imported",
        "Leave them out", left_out,
    ),
    "parameters that weights have": (
        nothing, f"{EMBED} --set seed=1", "Give --params, too", other(" --set seed=1", ""),
    ),
    "a checkpoint cut short": (
        torn("checkpoint.pt"), f"{IMPORT} --licence MIT", "ownload it again", copied_back,
    ),
    "a link out": (linked_out, EMBED, "copy the folder with what", copied_with_links),
    "a pipe": (piped, EMBED, "Remove it", removed),
    "weights cut short": (
        torn("encoder/simclr/encoder.safetensors"), EMBED, "again", copied_back,
    ),
    "trust cut short": (
        torn("models/age/probe/1.0/0/trust.npz"), PREDICT, "again", finetuned_again,
    ),
    "a model cut short": (
        torn("models/age/probe/1.0/0/model.safetensors"), PREDICT, "again", finetuned_again,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_message_says_ends_the_problem(case: str, here: Path) -> None:
    damage, words, fragment, mend = CASES[case]
    damage(here)
    said = refusal(words)
    assert fragment in said
    assert refusal(mend(here, said, words)) == ""


def test_a_key_for_pseudonyms_is_made_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    hospital(tmp_path / "data")
    with pytest.raises(NeurofoundryError) as told:
        run(tmp_path / "data", tmp_path / "out")
    (command,) = re.findall(r"`(export [^`]+)`", str(told.value))
    made = subprocess.run(
        ["sh", "-ec", f'{command}; printf %s "${KEY}"'], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv(KEY, made.stdout)
    assert len(run(tmp_path / "data", tmp_path / "out").scans) == 3


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_orientation(file: Path) -> None:
    image: Any = nib.load(file)
    image.header["sform_code"] = image.header["qform_code"] = 0
    content = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    nib.save(content, file)


SCANS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut_in_half, "opy the file again"),
    "no gzip": (lambda file: file.write_bytes(b"\x1f\x8b" + bytes(500)), "opy the file again"),
    "a pointer": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "`git lfs pull`",
    ),
    "a link to nothing": (
        lambda file: file.symlink_to(file.rename(file.parents[3] / "elsewhere") and "nowhere"),
        "copy the file",
    ),
    "a link elsewhere": (
        lambda file: file.symlink_to(file.rename(file.parents[3] / file.name)),
        "Copy the file there",
    ),
    "no orientation": (without_orientation, "Convert the scan again"),
}  # fmt: skip


def test_a_scan_that_is_brought_as_its_reason_says_is_in_the_cohort(tmp_path: Path) -> None:
    """One scan for each kind of damage; each is then replaced by what its source has."""
    data = bids(tmp_path / "source", len(SCANS) + 2)
    shutil.copytree(data, tmp_path / "data")
    files = sorted(file.relative_to(data) for file in data.rglob("*.nii.gz"))
    for file, (damage, _) in zip(files, SCANS.values(), strict=False):
        damage(tmp_path / "data" / file)
    found = run(tmp_path / "data", tmp_path / "first")
    assert len(found.scans) == 2
    for file, (_, remedy) in zip(files, SCANS.values(), strict=False):
        assert remedy in found.excluded[file.as_posix()]
        (tmp_path / "data" / file).unlink()
        shutil.copy(data / file, tmp_path / "data" / file)
    assert len(run(tmp_path / "data", tmp_path / "second").scans) == len(SCANS) + 2


def test_an_altered_output_is_brought_back_as_verify_says(here: Path) -> None:
    """By DVC itself."""
    for words in ("git init -q", "dvc init -q", "dvc add -q volumes"):
        program, *rest = words.split()
        start = [sys.executable, "-m", program] if program == "dvc" else [program]
        subprocess.run([*start, *rest], cwd=here, check=True, capture_output=True)
    volume = next((here / "volumes").glob("*.nii"))
    volume.chmod(0o644)
    volume.write_bytes(b"altered")
    said = refusal("verify volumes")
    (command,) = re.findall(r"`dvc (checkout --force FOLDER)`", said)
    words = command.replace("FOLDER", "volumes").split()
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=here, check=True, capture_output=True)
    assert refusal("verify volumes") == ""
