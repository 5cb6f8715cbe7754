from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neurofoundry.runtime import tracking
from tests.support import wandb_file, wandb_server

KEY = "0123456789abcdef"
PARAMS = tracking.TrackingParams()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the person's own account, and short waits."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("NEUROFOUNDRY_RUN", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 10)
    yield
    wandb.teardown()


def offline_runs(folder: Path) -> list[list[Any]]:
    """What was kept, the oldest first."""
    wandb.teardown()  # what the end of a process does: everything is on disk
    files = sorted((folder / "wandb").glob(f"offline-run-*-{KEY}/run-*.wandb"))
    return [list(wandb_file.read(file)) for file in files]


def test_without_an_account_a_run_is_kept_offline_and_names_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFOUNDRY_RUN", "pipeline-7")
    config = {
        "epochs": 2,
        "datasets": [{"name": "a", "path": "homes"}],
        "overrides": "surnames.tsv",
    }
    config |= {"template": "/data/anna/t1.nii", "data_version": "abc"}
    secret = PngInfo()
    secret.add_text("Comment", "sub-anna")
    picture = tmp_path / "sub-anna.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture, pnginfo=secret)
    for name in tracking.ENCODER:
        (tmp_path / name).write_text(name)
    with tracking.run(PARAMS, stage="pretrain", method="simclr", key=KEY, config=config) as tracker:
        tracker.pictures("qc", [picture, picture], step=0)
        tracker.table("metrics", pd.DataFrame({"auc": [0.5, np.nan], "n": [1, 2]}), step=0)
        tracker.figure("reliability", "<svg></svg>", step=0)
        tracker.log({"loss": 0.5}, step=1)
        tracker.log({"loss": 0.25}, step=2)
        tracker.summary({"sex/simclr/1.0/test/auc/value": 0.75})
        tracker.used("encoder-mae", "encoder", tmp_path, tracking.ENCODER)
        tracker.produced("encoder-simclr", "encoder", tmp_path, tracking.ENCODER)
    assert tracker.name == f"neurofoundry/{KEY}"
    (records,) = offline_runs(tmp_path)
    (run,) = wandb_file.of_kind(records, "run")
    assert (run.run_id, run.run_group, run.job_type) == (KEY, "pipeline-7", "pretrain-simclr")
    told = wandb_file.config(records)
    assert told["epochs"] == 2
    assert told["datasets"] == [{"name": "a", "path": "…"}]
    assert told["overrides"] == told["template"] == "…"
    rows = wandb_file.history(records)
    assert [(row["_step"], row.get("loss")) for row in rows] == [(0, None), (1, 0.5), (2, 0.25)]
    assert wandb_file.summary(records)["sex/simclr/1.0/test/auc/value"] == 0.75
    media = tmp_path / "wandb/latest-run/files/media"
    (table,) = media.glob("table/metrics_*.json")
    assert json.loads(table.read_text())["data"] == [[0.5, 1], [None, 2]]
    assert [file.read_text() for file in media.glob("html/*")] == ["<svg></svg>"]
    artifacts = {each.name: each for each in wandb_file.of_kind(records, "artifact")}
    made, used = artifacts["encoder-simclr"], artifacts["encoder-mae"]
    assert [each.path for each in made.manifest.contents] == sorted(tracking.ENCODER)
    assert (made.use_after_commit, used.use_after_commit) == (False, True)
    assert made.digest == used.digest
    content = b"".join(
        file.read_bytes() for file in [*media.rglob("*.*"), *tmp_path.rglob("*.wandb")]
    )
    for kept in (
        "anna",
        f'"{os.uname().nodename}"',
        str(Path.home()),
        str(tmp_path),
        "homes",
        "surnames",
    ):
        assert kept.encode() not in content
    assert f'"{getpass.getuser()}"'.encode() not in content


def test_a_resumed_run_kept_offline_repeats_no_step(tmp_path: Path) -> None:
    for steps in (range(4), range(2, 6)):  # the last checkpoint is older than the last step
        with tracking.run(PARAMS, stage="pretrain", key=KEY, config={}) as tracker:
            for step in steps:
                tracker.log({"loss": step}, step=step)
        time.sleep(1.1)  # W&B names folders by the second
    recorded = [[row["loss"] for row in wandb_file.history(run)] for run in offline_runs(tmp_path)]
    assert recorded == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({"NEUROFOUNDRY_RUN": "run-1", "DVC_EXP_NAME": "exp-1"}, "run-1"),
        ({"DVC_EXP_NAME": "exp-1"}, "exp-1"),
        ({}, "data-abcdefabcdef"),
    ],
    ids=["kubeflow", "dvc", "neither"],
)
def test_runs_are_grouped_by_pipeline_run_experiment_or_data(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], group: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking.pipeline_run("abcdef" * 10) == group


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    params = tracking.TrackingParams(mode="disabled")
    with tracking.run(params, stage="ingest", key=KEY, config={}) as tracker:
        tracker.log({"loss": 0.5}, step=1)
        tracker.pictures("qc", [tmp_path / "none.png"], step=1)
        tracker.produced("encoder", "encoder", tmp_path, tracking.ENCODER)
        tracker.summary({"scans": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("server", ["unreachable", "broken"])
def test_without_a_server_the_stage_goes_on_and_is_kept_offline(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken, wandb_server.serve(broken=True) as broken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening: connections are refused
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", broken.url if server == "broken" else refused)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with tracking.run(PARAMS, stage="pretrain", key=KEY, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=0)
    assert "recorded offline, `wandb sync` sends it" in caplog.text
    (records,) = offline_runs(tmp_path)
    assert [row["loss"] for row in wandb_file.history(records)] == [0.5]


@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example"])
def test_a_login_is_enough_where_it_is_for_this_server(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "INIT_SECONDS", 30)
    with wandb_server.serve() as server:
        port = server.url.rpartition(":")[2]
        netrc = tmp_path / "netrc"  # as `wandb login --host` writes it
        netrc.write_text(f"machine {host}:{port}\n  login user\n  password {'a' * 40}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with tracking.run(PARAMS, stage="pretrain", key=KEY, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=0)
    assert [row["loss"] for row in server.history] == [0.5] * (host == "127.0.0.1")
    assert len(offline_runs(tmp_path)) == (host != "127.0.0.1")


def test_a_process_of_wandb_that_hears_nothing_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "INIT_SECONDS", 30)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0)
    monkeypatch.setattr(tracking, "STOP_SECONDS", 1)
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with tracking.run(PARAMS, stage="pretrain", key=KEY, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=0)
            service = wandb.setup().ensure_service()._proc
            assert service is not None
            service._process.send_signal(signal.SIGSTOP)  # SIGTERM waits until it goes on
        assert service._process.wait(10) == -signal.SIGKILL
    assert "the network is lost" in caplog.text


def test_an_error_of_the_stage_is_raised_and_not_recorded(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="sub-anna"),
        tracking.run(PARAMS, stage="pretrain", key=KEY, config={}),
    ):
        raise ValueError("sub-anna")
    (records,) = offline_runs(tmp_path)
    assert wandb_file.of_kind(records, "exit")[0].exit_code == 1
    assert "anna" not in str(records)


def test_online_the_server_gets_each_step_once_and_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 30)
    for name in tracking.ENCODER:
        (tmp_path / name).write_text(f"content of {name}")
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for steps in (range(3), range(1, 5)):
            config = {"overrides": str(tmp_path), "data_version": "abcdef" * 3}
            with tracking.run(PARAMS, stage="pretrain", key=KEY, config=config) as tracker:
                for step in steps:
                    tracker.log({"loss": step}, step=step)
                tracker.produced("encoder-simclr", "encoder", tmp_path, tracking.ENCODER)
    assert server.unknown == []
    assert [row["loss"] for row in server.history] == [0, 1, 2, 3, 4]
    (first, *_) = [given for name, given in server.operations if name == "UpsertBucket"]
    assert (first["name"], first["groupName"]) == (KEY, "data-abcdefabcdef")
    assert (first["jobType"], first["host"], first["commit"]) == ("pretrain", "neurofoundry", None)
    assert server.uploads["artifact/plan.json"] == b"content of plan.json"
    assert b"encoder.safetensors" in server.uploads["manifest"]
    sent = b"".join(server.bodies)
    for secret in (str(tmp_path), f'"{os.uname().nodename}"', str(Path.home())):
        assert secret.encode() not in sent


def test_the_workspace_of_the_docs_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="the docs say how to get it")
    docs = Path(__file__).resolve().parents[2] / "docs/experiments.md"
    (code,) = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    (tmp_path / "workspace.py").write_text(code)
    (tmp_path / "evaluation").mkdir()
    found = {"subjects": 9, "mae": {"value": 1.0}, "rmse": {"value": 1.0}}
    metrics = {"age": {name: {"1.0": {"test": found}} for name in ("simclr", "scratch")}}
    (tmp_path / "evaluation/metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        command = [sys.executable, "workspace.py", "lab", "neurofoundry"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert server.unknown == []
    (given,) = [given for name, given in server.operations if name == "UpsertView2"]
    assert (given["entityName"], given["projectName"]) == ("lab", "neurofoundry")
    sections = json.loads(given["spec"])["section"]["panelBankConfig"]["sections"]
    (chart,) = sections[0]["panels"]
    names = ["age/simclr/1.0/test/mae/value", "age/scratch/1.0/test/mae/value"]
    assert chart["config"]["metrics"] == names
    assert [panel["config"]["metrics"] for panel in sections[1]["panels"]] == [
        ["loss"],
        ["scans_per_second"],
    ]
