"""Folders of weights as somebody else could hand them over, and commands that are given them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from neurofoundry.cli import main as cli
from tests.support import tiny

FINETUNE = {
    "seed": 0,
    "tracking": {"mode": "disabled"},
    "finetune": {"initializations": {"probe": {"encoder": "simclr", "mode": "probe"}}},
    "tasks": {
        "diagnosis": {"kind": "classification", "column": "diagnosis", "classes": ["CN", "AD"]}
    },
}


def command(*arguments: object) -> BaseException | None:
    """Run a command line; return what ended it, None where it succeeded."""
    said = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    return said.exception


def commands(folder: Path, *, scans: Path, volumes: Path, out: Path) -> dict[str, list[object]]:
    """Return every command that takes an encoder's folder."""
    models = out / "trained"  # what it is made with is asked for before the encoder is read
    models.mkdir(parents=True, exist_ok=True)
    (models / "runs.tsv").touch()
    tiny.finished(models, "finetune", "runs.tsv")
    others = ["--cohort", volumes, "--volumes", volumes, "--models", models]
    return {
        "embed": ["embed", scans, "--weights", folder, "--out", out / "e.tsv"],
        "import": ["import", folder, "--as", "theirs", "--out", out / "imported"],
        "export": ["export", folder, "--out", out / "exported"],
        "finetune": [
            *("finetune", "--volumes", volumes, "--encoder", folder, "--out", out / "models"),
            *("--params", json.dumps(FINETUNE)),
        ],
        "evaluate": ["evaluate", *others, "--encoder", folder, "--out", out / "evaluation"],
    }


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
