"""What the steps of a run leave is what its last step tells, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurofoundry.kubeflow import journal, summary
from neurofoundry.kubeflow.journal import Note
from neurofoundry.runtime.store import circumstances_of

RUN = "neurofoundry-abc"
PARAMS = Path(__file__).parents[2] / "params.yaml"


def told(folder: Path, **parameters: str) -> str:
    """The executor input of a step."""
    values = {"store": str(folder / "store"), **parameters}
    outputs = {"parameters": {}, "outputFile": str(folder / "told.json")}
    return json.dumps({"inputs": {"parameterValues": values}, "outputs": outputs})


def start(folder: Path, *words: object, **parameters: str) -> subprocess.Popen[str]:
    given = ["--executor-input", told(folder, **parameters)]
    environment = {**os.environ, "NEUROFOUNDRY_RUN": RUN, "HOSTNAME": "pod-1"}
    return subprocess.Popen(
        [sys.executable, "-m", "neurofoundry", *map(str, words), *given],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def notes(folder: Path) -> dict[str, int | None]:
    return {note.step: note.exit_code for note in journal.read(folder / "store", RUN)}


def test_a_step_leaves_how_it_ended(tmp_path: Path) -> None:
    assert start(tmp_path, "configure", "--params", PARAMS).wait() == 0
    cohort = tmp_path / "cohort"
    words = ["preprocess", "--data", tmp_path, "--cohort", cohort, "--out", tmp_path / "out"]
    step = start(tmp_path, *words, "--params", "nowhere.yaml", shard="2/4")
    assert step.wait() == 2
    # A manifest that cannot be read ends a command while its options are read.
    cohort.write_text("{")
    assert start(tmp_path, *words, "--params", PARAMS, shard="3/4").wait() == 3
    assert notes(tmp_path) == {"configure": 0, "preprocess 2/4": 2, "preprocess 3/4": 3}
    (failed,) = (n for n in journal.read(tmp_path / "store", RUN) if n.step == "preprocess 2/4")
    assert failed.pod == "pod-1"


def test_a_step_that_is_killed_has_no_end_and_the_next_try_replaces_its_note(
    tmp_path: Path,
) -> None:
    words = ["configure", "--params", PARAMS, "--store", tmp_path / "store"]
    step = start(tmp_path, *words, "--repository", "http://127.0.0.1:9/", "--revision", "v1")
    until = time.monotonic() + 60
    while not notes(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    step.send_signal(signal.SIGKILL)
    step.wait()
    assert notes(tmp_path) == {"configure": None}
    version = tmp_path / "store/data/abc"
    version.mkdir(parents=True)
    assert start(tmp_path, *words, "--data-version", "abc").wait() == 0
    assert notes(tmp_path) == {"configure": 0}


def test_a_store_that_cannot_be_written_is_for_the_step_to_report(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    step = start(tmp_path, "check", "--store", tmp_path / "store", "--out", tmp_path / "out")
    _, said = step.communicate()
    assert step.returncode == 2
    assert f"{tmp_path / 'store'}: Not a directory" in said
    assert "Traceback" not in said


def note(step: str, code: int | None, **facts: str) -> Note:
    return Note(step=step, pod=f"pod-of-{step.partition(' ')[0]}", exit_code=code, facts=facts)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    ends = {"": 0.81234, "_low": 0.7, "_high": 0.9}
    scores = {f"sex_auc_test_simclr{end}": value for end, value in ends.items()}
    record = {"summary": {**scores, "site_accuracy_simclr": 0.4, "promoted": True}}
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "stage.json").write_text(json.dumps(record))
    circumstances_of(folder).write_text(json.dumps({"tracking_run": "study/4711"}))
    return folder


def test_a_success_says_what_came_out(evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFOUNDRY_RUN", RUN)
    done = [note("configure", 0), note("promote", 0, evaluation=str(evaluation), model="/store/m")]
    said = summary.describe(done)
    assert said.startswith("# The run has succeeded")
    assert "| sex_auc_test_simclr | 0.812 | 0.7 to 0.9 |" in said
    assert "site_accuracy" not in said
    assert f"- evaluation: `{evaluation}`" in said
    assert "- promoted: `/store/m`" in said
    assert f"- W&B: study/4711, in the group {RUN}" in said
    last = note("promote", 0, evaluation=str(evaluation), reason="not better by 0.01.")
    assert "- no model is promoted: not better by 0.01." in summary.describe([last])


def test_a_failure_says_which_steps_failed_and_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "namespace").write_text("lab")
    monkeypatch.setattr(summary, "SERVICE_ACCOUNT", tmp_path)
    steps = [note("configure", 0), note("finetune 2/4", 3), note("finetune 3/4", None)]
    said = summary.describe([*steps, note("summarize", None)])
    assert said.startswith("# The run has not come to its end")
    assert (
        "- `finetune 2/4` failed (exit code 3: the input data): "
        "`kubectl logs --namespace lab --container main pod-of-finetune`"
    ) in said
    assert "- `finetune 3/4` was stopped while it ran" in said
    assert "- done: `configure`\n" in said
    assert "summarize" not in said
    assert said.rstrip().endswith("continues.")


def test_a_pod_that_could_not_start_is_no_step_that_failed() -> None:
    said = summary.describe([note("configure", 0), note("summarize", None)])
    assert "no step has failed that had begun" in said
    assert "kubectl get events" in said


def test_without_a_run_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROFOUNDRY_RUN", raising=False)
    journal.begin("ingest", told(tmp_path))
    assert not (tmp_path / "store").exists()
    assert journal.read(tmp_path / "store", "") == []
