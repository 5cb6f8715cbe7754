from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from neurofoundry.pretrain import objectives
from neurofoundry.runtime.code import code_hash, deciding_code, differing
from neurofoundry.runtime.stage import STAGES
from tests.support.package import Copy


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def changed(copy: Copy, entry: str, before: Mapping[str, str]) -> list[str]:
    return differing(before, copy.code(entry))


PRETRAIN = STAGES["pretrain"].entry
SIMCLR = objectives.MODULES["simclr"]


def test_comments_docstrings_and_formatting_decide_nothing(copy: Copy) -> None:
    before = deciding_code(PRETRAIN)
    for path in copy.root.rglob("*.py"):
        text = path.read_text().replace('"""', '"""Anew: ', 1) + "\n\n\n# a comment\n"
        path.write_text(text.replace("return self.layers", "return (self.layers)"))
    assert changed(copy, PRETRAIN, before) == []


def test_what_a_module_does_decides_and_is_named(copy: Copy) -> None:
    before = deciding_code(PRETRAIN)
    copy.replace("pretrain/batches.py", "READERS = 4", "READERS = 5")
    assert changed(copy, PRETRAIN, before) == ["pretrain.batches"]


@pytest.mark.parametrize("service", ["runtime", "cli", "kubeflow"])
def test_services_decide_nothing(copy: Copy, service: str) -> None:
    before = {name: deciding_code(stage.entry) for name, stage in STAGES.items()}
    for path in (copy.root / service).rglob("*.py"):
        if path.name not in ("code.py", "promote.py"):
            path.write_text(path.read_text() + "\nONE_MORE = 1\n")
    for name in ("ingest", "preprocess", "pretrain", "finetune", "evaluate"):
        assert changed(copy, STAGES[name].entry, before[name]) == [], name


@pytest.mark.parametrize("service", ["cli", "errors", "kubeflow", "params", "project", "runtime"])
def test_a_service_decides_nothing_even_where_it_is_imported(copy: Copy, service: str) -> None:
    ingest = STAGES["ingest"].entry
    before = deciding_code(ingest)
    copy.append("ingest/run.py", f"from neurofoundry.{service} import __name__ as SERVICE")
    assert changed(copy, ingest, before) == ["ingest.run"]


def test_a_package_decides_what_its_modules_make(copy: Copy) -> None:
    before = deciding_code(PRETRAIN)
    copy.append("contracts/__init__.py", "ONE_MORE = 1")  # no statement imports it by itself
    assert changed(copy, PRETRAIN, before) == ["contracts"]


def test_the_commit_is_that_of_the_code_and_marked_where_files_differ(copy: Copy) -> None:
    def commit(**environment: str) -> str:
        script = "from neurofoundry.runtime.code import git_commit; print(git_commit())"
        ours = {key: value for key, value in copy.environment.items() if "GIT" not in key}
        done = subprocess.run(
            [sys.executable, "-B", "-c", script],
            cwd=copy.root.parent,
            env=ours | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git = ["git", "-C", str(copy.root), "-c", "user.name=test", "-c", "user.email=t@example.org"]
    assert commit() == ""
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert commit() == head
    copy.append("nn/__init__.py", "ONE_MORE = 1")
    assert commit() == f"{head}+"
    assert commit(NEUROFOUNDRY_GIT_COMMIT="of the image") == "of the image"


def test_a_metric_decides_what_evaluate_writes_and_no_model(copy: Copy) -> None:
    before = {name: deciding_code(STAGES[name].entry) for name in ("finetune", "evaluate")}
    copy.append("stats/metrics.py", "ONE_MORE = 1")
    assert changed(copy, STAGES["finetune"].entry, before["finetune"]) == []
    assert changed(copy, STAGES["evaluate"].entry, before["evaluate"]) == ["stats.metrics"]


def test_an_objective_decides_its_own_encoders_alone(copy: Copy) -> None:
    before = deciding_code(PRETRAIN, SIMCLR)
    copy.append("pretrain/objectives/mae.py", "ONE_MORE = 1")
    (copy.root / "pretrain/objectives/another.py").write_text("ONE_MORE = 1\n")
    assert differing(before, copy.code(PRETRAIN, SIMCLR)) == []
    copy.append("pretrain/objectives/simclr.py", "ONE_MORE = 1")
    assert differing(before, copy.code(PRETRAIN, SIMCLR)) == ["pretrain.objectives.simclr"]


def test_a_template_decides_what_the_module_that_names_it_writes(copy: Copy) -> None:
    evaluate, scan = STAGES["evaluate"].entry, "neurofoundry.preprocess.scan"
    before = {entry: deciding_code(entry) for entry in (evaluate, scan)}
    for name in ("evaluate/report/report.html", "preprocess/qc.html"):
        path = copy.root / name
        path.write_text(path.read_text() + "<!-- more -->")
    assert changed(copy, evaluate, before[evaluate]) == ["evaluate/report/report.html"]
    assert changed(copy, scan, before[scan]) == []  # a scan's files do not depend on the page


def test_a_stage_is_decided_by_its_own_modules_and_those_it_imports() -> None:
    names = set(deciding_code(PRETRAIN, SIMCLR))
    assert {
        "pretrain.objectives.simclr",
        "nn.encoders",
        "nn.augment.draws",
        "contracts.volumes",
    } <= names
    rooms = {name.split(".")[0] for name in names}
    assert not rooms & {"finetune", "evaluate", "ingest", "preprocess", "stats", "runtime", "cli"}
    assert not rooms & {"errors", "kubeflow", "params", "project"}
    assert len({code_hash(stage.entry) for stage in STAGES.values()}) == len(STAGES)
