from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import stage
from neurofoundry.runtime.code import deciding_code
from neurofoundry.runtime.files import hash_file, hash_json
from neurofoundry.runtime.store import read_circumstances
from neurofoundry.runtime.tracking import Answer, Tracker

ROOT = Path(__file__).parents[2]


def publish(
    out: Path,
    name: str = "ingest",
    inputs: dict[str, Path] | None = None,
    leads: bool = True,
    **params: Any,
) -> list[Path]:
    """Run a tiny stage; says in which folders its body ran."""
    ran = []

    def body(work: stage.Workspace) -> None:
        ran.append(work.dir)
        (work.dir / "scans.tsv").write_text(f"{params}\n")
        work.data_version = work.data_version or "v1"
        work.summary["scans"] = 3

    to = stage.Destination(out)
    stage.run(name, body, to=to, params=params, inputs=inputs or {}, leads=leads)
    return ran


def test_an_output_appears_whole_and_explains_itself(tmp_path: Path) -> None:
    publish(tmp_path / "cohort", seed=1)
    beside = ".cohort.run.json"  # when and where it was made
    assert sorted(path.name for path in tmp_path.iterdir()) == [beside, "cohort"]
    text = (tmp_path / "cohort/stage.json").read_text()
    record = json.loads(text)
    assert record["stage"] == "ingest"
    assert record["params"] == {"seed": 1}
    assert record["summary"] == {"scans": 3}
    assert record["data_version"] == "v1"
    assert record["contents"] == {"scans.tsv": hash_file(tmp_path / "cohort/scans.tsv")}
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_an_unchanged_stage_does_not_run_again_and_a_changed_one_does(tmp_path: Path) -> None:
    cohort, volumes = tmp_path / "cohort", tmp_path / "volumes"
    publish(cohort)
    assert publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    assert not publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    publish(cohort)  # the same content, at another time
    assert not publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    assert publish(volumes, "preprocess", {"ingest": cohort}, grid=2)
    publish(cohort, seed=2)  # other content
    assert publish(volumes, "preprocess", {"ingest": cohort}, grid=2)
    assert json.loads((volumes / "stage.json").read_text())["data_version"] == "v1"


def test_that_nothing_is_to_do_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, volumes = tmp_path / "cohort", tmp_path / "volumes"
    publish(cohort)
    with caplog.at_level("INFO", logger="neurofoundry"):
        publish(volumes, "preprocess", {"ingest": cohort})
        assert not caplog.messages
        publish(volumes, "preprocess", {"ingest": cohort})
    assert caplog.messages == [f"{volumes}: up to date"]
    assert capsys.readouterr().out == ""


def test_other_code_makes_another_output_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, evaluation = tmp_path / "cohort", tmp_path / "evaluation"
    publish(cohort)
    publish(evaluation, "evaluate", {"ingest": cohort})
    record = json.loads((evaluation / "stage.json").read_text())
    assert record["code"] == deciding_code(stage.STAGES["evaluate"].entry)
    assert record["code_sha256"] == hash_json(record["code"])
    monkeypatch.setattr(stage, "deciding_code", lambda entry: {entry: "other"})
    assert publish(evaluation, "evaluate", {"ingest": cohort})
    assert not publish(evaluation, "evaluate", {"ingest": cohort})
    record = json.loads((evaluation / "stage.json").read_text())
    assert record["code"] == {"neurofoundry.evaluate.run": "other"}
    assert record["accepted_code_changes"] == []


def test_a_change_of_code_that_was_accepted_is_recorded(tmp_path: Path) -> None:
    def body(work: stage.Workspace) -> None:
        (work.dir / "scans.tsv").touch()
        if work.accept_code_change:
            work.code_changes = ("pretrain.train",)

    to = stage.Destination(tmp_path / "cohort")
    for accepted, modules in ((False, []), (True, ["pretrain.train"])):
        stage.run("ingest", body, to=to, params={}, inputs={}, accept_code_change=accepted)
        record = json.loads((tmp_path / "cohort/stage.json").read_text())
        assert record["accepted_code_changes"] == modules


def test_an_encoder_that_was_imported_serves_as_one_that_was_pretrained(tmp_path: Path) -> None:
    publish(tmp_path / "encoder", "import")
    assert stage.read_record("pretrain", tmp_path / "encoder")["data_version"] == "v1"
    publish(tmp_path / "models", "finetune", {"pretrain/medicalnet": tmp_path / "encoder"})
    record = stage.read_record("finetune", tmp_path / "models")
    assert list(record["inputs"]) == ["pretrain/medicalnet"]


def test_neither_an_import_nor_a_pretraining_takes_the_place_of_the_other(tmp_path: Path) -> None:
    publish(tmp_path / "ours", "pretrain")
    with pytest.raises(UsageError, match="the output of 'pretrain', not of 'import'"):
        publish(tmp_path / "ours", "import")

    def write(work: stage.Workspace) -> None:
        (work.dir / stage.IMPORTED).write_text("{}")

    to = stage.Destination(tmp_path / "theirs")
    stage.run("import", write, to=to, params={}, inputs={})
    stage.run("import", write, to=to, params={"other": 1}, inputs={})
    with pytest.raises(UsageError, match="the output of 'import', not of 'pretrain'"):
        publish(tmp_path / "theirs", "pretrain")


def test_a_shard_is_an_output_of_its_own_and_the_whole_is_no_shard(tmp_path: Path) -> None:
    publish(tmp_path / "cohort")
    keys, shards = set(), []

    def body(work: stage.Workspace) -> None:
        shards.append(str(work.shard))
        (work.dir / "scans.tsv").touch()

    for shard in (stage.Shard(), stage.Shard(1, 2), stage.Shard(2, 2)):
        stage.run(
            "preprocess",
            body,
            to=stage.Destination(tmp_path / "volumes", shard=shard),
            params={},
            inputs={"ingest": tmp_path / "cohort"},
        )
        record = stage.read_record("preprocess", tmp_path / "volumes")
        assert record.get("shard") == (None if shard.whole else str(shard))
        keys.add(record["key"])
    assert shards == ["1/1", "1/2", "2/2"]
    assert len(keys) == 3


def test_items_are_reused_from_what_was_given_and_the_newest_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "MOST_EARLIER", 2)
    given, folders = (tmp_path / "shard",), []
    publish(tmp_path / "cohort")

    def body(work: stage.Workspace) -> None:
        assert work.earlier == (*given, *reversed(folders[-2:]))
        (work.dir / "scans.tsv").touch()

    for epochs in range(4):
        folder = stage.run(
            "preprocess",
            body,
            to=stage.Destination(tmp_path / "volumes", tmp_path / "store", reuse=given),
            params={"epochs": epochs},
            inputs={"ingest": tmp_path / "cohort"},
        )
        os.utime(folder / "stage.json", (epochs, epochs))
        folders.append(folder)


def test_who_does_not_lead_runs_beside_and_leaves_nothing(tmp_path: Path) -> None:
    cohort, encoder = tmp_path / "cohort", tmp_path / "encoder"
    publish(cohort)
    (ran,) = publish(encoder, "pretrain", {"ingest": cohort}, leads=False, epochs=1)
    assert not ran.exists()
    beside = ".cohort.run.json"  # when and where it was made
    assert sorted(path.name for path in tmp_path.iterdir()) == [beside, "cohort"]
    publish(encoder, "pretrain", {"ingest": cohort}, epochs=1)
    assert not publish(encoder, "pretrain", {"ingest": cohort}, leads=False, epochs=1)
    # Killed while publishing, the leader puts the old output back; the others know.
    encoder.rename(tmp_path / ".encoder.replaced")
    assert not publish(encoder, "pretrain", {"ingest": cohort}, leads=False, epochs=1)
    assert publish(encoder, "pretrain", {"ingest": cohort}, leads=False, epochs=2)


def test_a_failed_run_leaves_the_old_output_and_its_own_work(tmp_path: Path) -> None:
    cohort, evaluation = tmp_path / "cohort", tmp_path / "evaluation"
    publish(cohort)
    publish(evaluation, "evaluate", {"ingest": cohort}, bootstraps=1)
    before = (evaluation / "scans.tsv").read_text()

    def broken(work: stage.Workspace) -> None:
        (work.dir / "half").write_text("half")
        assert work.earlier == (evaluation,)
        raise DataError("no usable scan")

    to = stage.Destination(evaluation)
    arguments: dict[str, Any] = {"to": to, "inputs": {"ingest": cohort}}
    with pytest.raises(DataError):
        stage.run("evaluate", broken, params={"bootstraps": 2}, **arguments)
    assert (evaluation / "scans.tsv").read_text() == before
    seen: dict[int, bool] = {}
    for bootstraps in (2, 3):
        with contextlib.suppress(DataError):
            stage.run(
                "evaluate",
                lambda work, bootstraps=bootstraps: (
                    seen.update({bootstraps: (work.dir / "half").exists()}) or broken(work)
                ),
                params={"bootstraps": bootstraps},
                **arguments,
            )
    assert seen == {2: True, 3: False}  # the same run finds its work, another one does not


SLOW_STAGE = """
import sys, time
from pathlib import Path
from neurofoundry.runtime import stage

def body(work):
    count = work.dir / "count"
    count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
    print("working", flush=True)
    time.sleep(float(sys.argv[2]))
    (work.dir / "scans.tsv").write_text("done")

root = Path(sys.argv[1])
to = stage.Destination(root / "volumes")
stage.run("preprocess", body, to=to, params={}, inputs={"ingest": root / "cohort"})
"""


def test_work_that_somebody_removes_meanwhile_is_told_and_begun_anew(tmp_path: Path) -> None:
    def body(work: stage.Workspace) -> None:
        shutil.rmtree(work.dir)
        (work.dir / "scans.tsv").write_text("")

    out = tmp_path / "cohort"
    with pytest.raises(UsageError, match=r"\.cohort\.partial: .* somebody has removed it"):
        stage.run("ingest", body, to=stage.Destination(out), params={}, inputs={})
    assert publish(out)


def test_a_killed_stage_finds_its_work_again(tmp_path: Path) -> None:
    publish(tmp_path / "cohort")
    command = [sys.executable, "-c", SLOW_STAGE, str(tmp_path)]
    with subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        with pytest.raises(UsageError, match="another process is writing"):
            publish(tmp_path / "volumes", "preprocess", {"ingest": tmp_path / "cohort"})
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "volumes").exists()
    subprocess.run([*command, "0"], check=True)
    assert (tmp_path / "volumes/count").read_text() == "2"
    names = [".cohort.run.json", ".volumes.run.json", "cohort", "volumes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_kill_while_publishing_loses_nothing(tmp_path: Path) -> None:
    cohort, volumes = tmp_path / "cohort", tmp_path / "volumes"
    publish(cohort)
    publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    volumes.rename(tmp_path / ".volumes.replaced")  # what a kill between two renames leaves
    assert not publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    assert (volumes / "scans.tsv").exists()
    volumes.rename(tmp_path / ".volumes.partial")  # finished, but not renamed yet
    assert not publish(volumes, "preprocess", {"ingest": cohort}, grid=1)
    assert (volumes / "scans.tsv").exists()


def test_an_input_that_is_missing_or_of_another_stage_is_refused(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    with pytest.raises(UsageError, match="no finished output of 'ingest'"):
        publish(tmp_path / "volumes", "preprocess", {"ingest": cohort})
    publish(cohort)
    with pytest.raises(DataError, match=r"found the output of 'ingest'.*expected 'preprocess'"):
        publish(tmp_path / "encoder", "pretrain", {"preprocess": cohort})
    (cohort / "stage.json").write_text("{")
    with pytest.raises(DataError, match="not a stage record"):
        publish(tmp_path / "volumes", "preprocess", {"ingest": cohort})


def test_ingest_looks_again_each_time(tmp_path: Path) -> None:
    assert publish(tmp_path / "cohort")
    assert publish(tmp_path / "cohort")  # only it can know whether the raw data have changed


def test_an_output_of_an_earlier_schema_is_refused(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    publish(cohort)
    record = json.loads((cohort / "stage.json").read_text())
    (cohort / "stage.json").write_text(json.dumps({**record, "schema_version": 1}))
    with pytest.raises(DataError, match=r"'ingest' in schema 1, expected 'ingest' in schema 2"):
        publish(tmp_path / "volumes", "preprocess", {"ingest": cohort})


def test_the_same_stage_is_another_run_in_another_pipeline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def record(params: object, **arguments: Any) -> Iterator[Tracker]:
        runs.append(arguments)
        yield Tracker()

    monkeypatch.setattr("neurofoundry.runtime.tracking.run", record)
    cohort = tmp_path / "cohort"
    publish(cohort)
    publish(cohort)
    for group in ("one", "two", "two"):
        monkeypatch.setenv("NEUROFOUNDRY_RUN", group)
        publish(tmp_path / group, "pretrain", {"ingest": cohort}, method="simclr")
        shutil.rmtree(tmp_path / group)
    first, second, one, two, again = runs
    assert first["stage"] == second["stage"] == "ingest"
    assert first["group"] == second["group"] == first["config"]["pipeline_run"]
    assert first["key"] == second["key"]  # the same data: nothing of it is new
    assert first["config"]["data_version"] == "v1"
    assert (one["stage"], one["method"], one["place"]) == ("pretrain", "simclr", None)
    assert (one["group"], two["group"]) == ("one", "two")
    assert one["key"] != two["key"] == again["key"]


def test_the_last_stage_answers_for_the_pipeline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Any]] = []
    told: list[Tracker] = []

    @contextlib.contextmanager
    def record(params: object, **arguments: Any) -> Iterator[Tracker]:
        runs.append(arguments)
        yield Tracker()

    monkeypatch.setattr("neurofoundry.runtime.tracking.run", record)

    def body(work: stage.Workspace) -> None:
        work.answer = Answer({"pretrain": {"epochs": 3}}, told.append)

    cohort, out = tmp_path / "cohort", stage.Destination(tmp_path / "volumes")
    publish(cohort)
    stage.run("preprocess", body, to=out, params={}, inputs={"ingest": cohort})
    _, last, pipeline = runs
    assert pipeline["stage"] == "pipeline"
    assert pipeline["config"]["pretrain"] == {"epochs": 3}
    assert {"data_version", "git_commit", "image"} <= set(pipeline["config"])
    assert pipeline["group"] == last["group"]
    assert len(told) == 1


def test_an_output_is_the_same_bytes_whenever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = tmp_path / "cohort"
    publish(cohort)
    first = (cohort / "stage.json").read_bytes()
    monkeypatch.setenv("NEUROFOUNDRY_IMAGE", "other@sha256:1")
    monkeypatch.setenv("NEUROFOUNDRY_GIT_COMMIT", "f" * 40)
    publish(cohort)
    assert (cohort / "stage.json").read_bytes() == first
    noted = read_circumstances(cohort)
    assert (noted["image"], noted["git_commit"]) == ("other@sha256:1", "f" * 40)
    assert noted["key"] == json.loads(first)["key"]
    assert noted["started"] <= noted["ended"]


def test_an_output_says_with_which_versions_of_all_that_can_decide_it(tmp_path: Path) -> None:
    publish(tmp_path / "cohort")
    versions = json.loads((tmp_path / "cohort/stage.json").read_text())["libraries"]
    assert versions["torch"] == torch.__version__.partition("+")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w.-]", each)[0] for each in project["dependencies"]}
    assert versions.keys() == needed - {"rich", "typer", "wandb"} | {"python"}
