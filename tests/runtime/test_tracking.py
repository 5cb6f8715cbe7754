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

from neurofoundry.errors import UsageError
from neurofoundry.runtime import tracking
from neurofoundry.runtime.experiment import Experiment, TrackingParams, data_reference, metric_name
from neurofoundry.runtime.tracking import Made
from tests.support import wandb_file, wandb_server

KEY = "0123456789abcdef"
PARAMS = TrackingParams()
GROUP = "pipeline-7"


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
    tmp_path: Path,
) -> None:
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
    with tracking.run(
        PARAMS, stage="pretrain", method="simclr", key=KEY, group=GROUP, config=config
    ) as tracker:
        tracker.pictures("qc", [picture, picture], step=0)
        tracker.table("metrics", pd.DataFrame({"auc": [0.5, np.nan], "n": [1, 2]}), step=0)
        tracker.figure("reliability", "<svg></svg>", step=0)
        tracker.log({"loss": 0.5}, step=1)
        tracker.log({"loss": 0.25}, step=2)
        tracker.axis(["val_loss/sex_0.5", "val_loss/age"], "epoch")
        tracker.log({"val_loss/sex_0.5": 0.1, "epoch": 1}, step=3)
        tracker.summary({"sex_auc_test_simclr-probe": 0.75})
        tracker.used(Made("encoder-mae", "encoder", tmp_path, tracking.ENCODER))
        tracker.used(Made("dataset", "dataset", reference="dvc:0a1b.dir?data_version=abc"))
        tracker.produced(
            Made(
                "encoder-simclr",
                "encoder",
                tmp_path,
                tracking.ENCODER,
                description="An encoder",
                metadata={"persons": 7, "template": "/data/anna"},
                aliases=["promoted"],
            )
        )
    assert tracker.name == f"neurofoundry/{KEY}"
    (records,) = offline_runs(tmp_path)
    (run,) = wandb_file.of_kind(records, "run")
    assert (run.run_id, run.run_group, run.job_type) == (KEY, GROUP, "pretrain-simclr")
    told = wandb_file.config(records)
    assert told["epochs"] == 2
    assert told["datasets"] == [{"name": "a", "path": "…"}]
    assert told["overrides"] == told["template"] == "…"
    rows = wandb_file.history(records)
    steps = [(row["_step"], row.get("loss")) for row in rows]
    assert steps == [(0, None), (1, 0.5), (2, 0.25), (3, None)]
    assert rows[-1]["val_loss/sex_0_5"] == 0.1
    axes = {each.name: each.step_metric for each in wandb_file.of_kind(records, "metric")}
    assert axes == {"val_loss/sex_0_5": "epoch", "val_loss/age": "epoch"}
    assert wandb_file.summary(records)["sex_auc_test_simclr_probe"] == 0.75
    media = tmp_path / "wandb/latest-run/files/media"
    (table,) = media.glob("table/metrics_*.json")
    assert json.loads(table.read_text())["data"] == [[0.5, 1], [None, 2]]
    assert [file.read_text() for file in media.glob("html/*")] == ["<svg></svg>"]
    artifacts = {each.name: each for each in wandb_file.of_kind(records, "artifact")}
    made, used = artifacts["encoder-simclr"], artifacts["encoder-mae"]
    assert [each.path for each in made.manifest.contents] == sorted(tracking.ENCODER)
    assert (made.use_after_commit, used.use_after_commit) == (False, True)
    assert made.digest == used.digest
    assert list(made.aliases) == ["latest", "data-abc", "promoted"]
    assert not used.aliases  # else a model that was used would become the latest
    assert made.description == "An encoder"
    assert json.loads(made.metadata) == {"persons": 7, "template": "…"}
    (data,) = artifacts["dataset"].manifest.contents
    assert data.ref == "dvc:0a1b.dir?data_version=abc"
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
        with tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}) as tracker:
            for step in steps:
                tracker.log({"loss": step}, step=step)
        time.sleep(1.1)  # W&B names folders by the second
    recorded = [[row["loss"] for row in wandb_file.history(run)] for run in offline_runs(tmp_path)]
    assert recorded == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({"NEUROFOUNDRY_RUN": "run-1", "DVC_EXP_NAME": "exp-1"}, "run-1"),
        ({"WANDB_RUN_GROUP": "mine", "DVC_EXP_NAME": "exp-1"}, "mine"),
        ({"DVC_EXP_NAME": "exp-1"}, "exp-1"),
    ],
    ids=["kubeflow", "wandb", "dvc"],
)
def test_a_pipeline_run_is_named_by_what_has_started_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], group: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Experiment(PARAMS, "settings").group("abcdef") == group


def test_else_two_pipeline_runs_are_one_only_with_the_same_parameters_and_data() -> None:
    first = Experiment(PARAMS, "settings").group("data")
    assert re.fullmatch(r"run-[0-9a-f]{10}", first)
    assert first == Experiment(TrackingParams(project="other"), "settings").group("data")
    assert first != Experiment(PARAMS, "others").group("data")
    assert first != Experiment(PARAMS, "settings").group("others")


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("loss", "loss"),
        ("val_loss/age_simclr-probe_0.2", "val_loss/age_simclr_probe_0_2"),
        ("5_fold", "_5_fold"),
        ("age, test: roc", "age_test_roc"),
    ],
)
def test_names_are_such_that_wandb_sorts_and_filters_by_them(name: str, valid: str) -> None:
    assert metric_name(name) == valid


def test_raw_data_are_named_by_the_hash_that_dvc_has_of_them(tmp_path: Path) -> None:
    assert data_reference(tmp_path / "data", "v1") == "neurofoundry:data/v1"
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0a1b.dir\n  path: data\n")
    assert data_reference(tmp_path / "data", "v1") == "dvc:0a1b.dir?data_version=v1"
    (tmp_path / "data.dvc").write_text("outs: []\n")
    assert data_reference(tmp_path / "data", "v1") == "neurofoundry:data/v1"


@pytest.mark.parametrize(
    ("mode", "environment"),
    [
        ("disabled", {"WANDB_MODE": "online"}),
        ("auto", {"WANDB_MODE": "disabled"}),
        ("auto", {"WANDB_DISABLED": "true"}),
        ("auto", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}),
    ],
    ids=["params", "mode", "disabled", "both"],
)
def test_disabled_writes_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    params = TrackingParams(mode=mode)
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with tracking.run(params, stage="ingest", key=KEY, group=GROUP, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=1)
            tracker.pictures("qc", [tmp_path / "none.png"], step=1)
            tracker.produced(Made("encoder", "encoder", tmp_path, tracking.ENCODER))
            tracker.summary({"scans": 3})
        assert server.bodies == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["mode", "dryrun", "command"])
def test_offline_sends_nothing_in_spite_of_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "command":
        done = subprocess.run([sys.executable, "-m", "wandb", "offline"], capture_output=True)
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.setenv("WANDB_MODE", {"mode": "offline"}.get(how, how))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=0)
        assert server.bodies == []
    (records,) = offline_runs(tmp_path)
    assert [row["loss"] for row in wandb_file.history(records)] == [0.5]


@pytest.mark.parametrize("variable", ["WANDB_MODE", "WANDB_DISABLED"])
def test_a_switch_that_means_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "perhaps")
    with (
        pytest.raises(UsageError, match=f"{variable} is 'perhaps', expected "),
        tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_pipeline_run_waits_once_for_a_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.lost = "silent"
        asked = []
        for stage, group in (("pretrain", "one"), ("finetune", "one"), ("evaluate", "two")):
            caplog.clear()
            with tracking.run(PARAMS, stage=stage, key=stage * 2, group=group, config={}):
                pass
            asked.append("recorded offline" in caplog.text)
    assert asked == [True, False, True]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3


def test_the_run_of_a_sweep_is_that_which_its_agent_has_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "trial-3")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep-1")
    for stage in ("pretrain", tracking.PIPELINE):
        with tracking.run(PARAMS, stage=stage, key=KEY, group=GROUP, config={}):
            pass
    wandb.teardown()
    found = {}
    for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
        (run,) = wandb_file.of_kind(list(wandb_file.read(file)), "run")
        found[run.job_type] = (run.run_id, run.sweep_id, run.run_group)
    assert found == {"pretrain": (KEY, "", GROUP), "pipeline": ("trial-3", "sweep-1", GROUP)}


@pytest.mark.parametrize("server", ["unreachable", "broken"])
def test_without_a_server_the_stage_goes_on_and_is_kept_offline(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken, wandb_server.serve(broken=True) as broken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening: connections are refused
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", broken.url if server == "broken" else refused)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}) as tracker:
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
        with tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}) as tracker:
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
        with tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}) as tracker:
            tracker.log({"loss": 0.5}, step=0)
            service = wandb.setup().ensure_service()._proc
            assert service is not None
            service._process.send_signal(signal.SIGSTOP)  # SIGTERM waits until it goes on
        assert service._process.wait(10) == -signal.SIGKILL
    assert "the network is lost" in caplog.text


def test_an_error_of_the_stage_is_raised_and_not_recorded(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="sub-anna"),
        tracking.run(PARAMS, stage="pretrain", key=KEY, group=GROUP, config={}),
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
            with tracking.run(
                PARAMS, stage="pretrain", key=KEY, group=GROUP, config=config
            ) as tracker:
                for step in steps:
                    tracker.log({"loss": step}, step=step)
                tracker.produced(Made("encoder-simclr", "encoder", tmp_path, tracking.ENCODER))
    assert server.unknown == []
    assert [row["loss"] for row in server.history] == [0, 1, 2, 3, 4]
    (first, *_) = [given for name, given in server.operations if name == "UpsertBucket"]
    assert (first["name"], first["groupName"]) == (KEY, GROUP)
    assert (first["jobType"], first["host"], first["commit"]) == ("pretrain", "neurofoundry", None)
    assert server.uploads["artifact/plan.json"] == b"content of plan.json"
    assert b"encoder.safetensors" in server.uploads["manifest"]
    sent = b"".join(server.bodies)
    for secret in (str(tmp_path), f'"{os.uname().nodename}"', str(Path.home())):
        assert secret.encode() not in sent


def test_a_promoted_model_is_linked_to_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 30)
    (tmp_path / "model.safetensors").write_text("weights")
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with tracking.run(PARAMS, stage="evaluate", key=KEY, group=GROUP, config={}) as tracker:
            assert tracker.registry == "model"
            tracker.produced(
                Made(
                    "model-age-simclr",
                    "model",
                    tmp_path,
                    ["model.safetensors"],
                    aliases=["promoted"],
                    registry="model/age",
                )
            )
    assert server.unknown == []
    assert "W&B: " not in caplog.text
    (made,) = [given["input"] for name, given in server.operations if name == "CreateArtifact"]
    assert {each["alias"] for each in made["aliases"]} == {"latest", "promoted"}
    (link,) = [given["input"] for name, given in server.operations if name == "LinkArtifact"]
    assert (link["entityName"], link["projectName"]) == ("lab-org", "wandb-registry-model")
    assert (link["artifactPortfolioName"], link["artifactID"]) == ("age", "A")


def test_the_workspace_of_the_docs_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="the docs say how to get it")
    docs = Path(__file__).resolve().parents[2] / "docs/experiments.md"
    found = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    (code,) = (each for each in found if "wandb_workspaces" in each)
    (tmp_path / "workspace.py").write_text(code)
    (tmp_path / "evaluation").mkdir()
    summary = {"age_mae_test_simclr": 1.0, "age_mae_test_simclr_low": 0.5, "promoted": False}
    record = json.dumps({"summary": summary})
    (tmp_path / "evaluation/stage.json").write_text(record)
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
    assert chart["config"]["metrics"] == ["age_mae_test_simclr"]
    assert [panel["config"]["metrics"] for panel in sections[1]["panels"]] == [
        ["loss"],
        ["scans_per_second"],
    ]
