from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import stage
from neurofoundry.runtime.files import hash_file, link, write_json


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
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
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


def test_who_does_not_lead_runs_beside_and_leaves_nothing(tmp_path: Path) -> None:
    cohort, encoder = tmp_path / "cohort", tmp_path / "encoder"
    publish(cohort)
    (ran,) = publish(encoder, "pretrain", {"ingest": cohort}, leads=False, epochs=1)
    assert not ran.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "volumes"]


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


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": 1}


def test_a_link_is_the_file_under_another_name_and_a_copy_where_there_are_no_links(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("content")
    (tmp_path / "symbolic").symlink_to("file")
    (tmp_path / "linked").write_text("older")
    link(tmp_path / "symbolic", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "file")
    assert not (tmp_path / "linked").is_symlink()

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link(tmp_path / "file", tmp_path / "copied")
    assert (tmp_path / "copied").read_text() == "content"
    assert not (tmp_path / "copied").samefile(tmp_path / "file")
    assert not list(tmp_path.glob(".*"))
