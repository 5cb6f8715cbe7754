from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import neurofoundry
from neurofoundry.runtime.code import code_hash, deciding_code, differing
from neurofoundry.runtime.stage import STAGES

PACKAGE = Path(neurofoundry.__file__).parent


class Copy:
    """A copy of the package whose files can be changed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "neurofoundry"
        shutil.copytree(PACKAGE, self.root, ignore=shutil.ignore_patterns("__pycache__"))

    def code(self, entry: str) -> dict[str, str]:
        """`deciding_code` as the copy itself sees it."""
        script = "import json, sys; from neurofoundry.runtime.code import deciding_code as code;"
        script += "print(json.dumps(dict(code(sys.argv[1]))))"
        said = subprocess.run(
            [sys.executable, "-c", script, entry],
            cwd=self.root.parent,
            env={"PYTHONPATH": str(self.root.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, str] = json.loads(said.stdout)
        return found


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def changed(copy: Copy, entry: str, before: Mapping[str, str]) -> list[str]:
    return differing(before, copy.code(entry))


PRETRAIN = STAGES["pretrain"].entry


def test_comments_docstrings_and_formatting_decide_nothing(copy: Copy) -> None:
    before = deciding_code(PRETRAIN)
    for path in copy.root.rglob("*.py"):
        text = path.read_text().replace('"""', '"""Anew: ', 1) + "\n\n\n# a comment\n"
        path.write_text(text.replace("return self.layers", "return (self.layers)"))
    assert changed(copy, PRETRAIN, before) == []


def test_what_a_module_does_decides_and_is_named(copy: Copy) -> None:
    before = deciding_code(PRETRAIN)
    path = copy.root / "pretrain/train.py"
    text = path.read_text()
    assert "READERS = 4" in text
    path.write_text(text.replace("READERS = 4", "READERS = 5"))
    assert changed(copy, PRETRAIN, before) == ["pretrain.train"]


@pytest.mark.parametrize("service", ["runtime", "cli", "kubeflow"])
def test_services_decide_nothing(copy: Copy, service: str) -> None:
    before = {name: deciding_code(stage.entry) for name, stage in STAGES.items()}
    for path in (copy.root / service).rglob("*.py"):
        if path.name not in ("code.py", "promote.py"):
            path.write_text(path.read_text() + "\nONE_MORE = 1\n")
    for name in ("ingest", "preprocess", "pretrain", "finetune", "evaluate"):
        assert changed(copy, STAGES[name].entry, before[name]) == [], name


def test_a_metric_decides_what_evaluate_writes_and_no_model(copy: Copy) -> None:
    before = {name: deciding_code(STAGES[name].entry) for name in ("finetune", "evaluate")}
    path = copy.root / "stats/metrics.py"
    path.write_text(path.read_text() + "\nONE_MORE = 1\n")
    assert changed(copy, STAGES["finetune"].entry, before["finetune"]) == []
    assert changed(copy, STAGES["evaluate"].entry, before["evaluate"]) == ["stats.metrics"]


def test_a_template_decides_what_the_module_that_names_it_writes(copy: Copy) -> None:
    evaluate, scan = STAGES["evaluate"].entry, "neurofoundry.preprocess.scan"
    before = {entry: deciding_code(entry) for entry in (evaluate, scan)}
    for name in ("evaluate/report/report.html", "preprocess/qc.html"):
        path = copy.root / name
        path.write_text(path.read_text() + "<!-- more -->")
    assert changed(copy, evaluate, before[evaluate]) == ["evaluate/report/report.html"]
    assert changed(copy, scan, before[scan]) == []  # a scan's files do not depend on the page


def test_a_stage_is_decided_by_its_own_modules_and_those_it_imports() -> None:
    names = set(deciding_code(PRETRAIN))
    assert {"pretrain.simclr", "nn.encoders", "nn.augment.draws", "contracts.volumes"} <= names
    rooms = {name.split(".")[0] for name in names}
    assert not rooms & {"finetune", "evaluate", "ingest", "preprocess", "stats", "runtime", "cli"}
    assert len({code_hash(stage.entry) for stage in STAGES.values()}) == len(STAGES)
