from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
import wandb

from neurofoundry import tracking


def test_without_an_account_a_run_is_kept_offline_and_names_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NEUROFOUNDRY_RUN", "pipeline-7")
    with tracking.run(
        tracking.TrackingParams(),
        stage="pretrain",
        key="0123456789abcdef" * 4,
        config={"epochs": 2},
    ) as tracker:
        tracker.log({"loss": 0.5}, step=1)
        tracker.log({"loss": 0.25}, step=2)
        tracker.summary({"final_loss": 0.25})
    wandb.teardown()  # what the end of a process does: everything is on disk
    assert tracker.name == "neurofoundry/0123456789abcdef"
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*-0123456789abcdef/run-*.wandb")
    content = recorded.read_bytes()
    for written in (b"loss", b"final_loss", b"pretrain", b"pipeline-7", b"epochs"):
        assert written in content
    for secret in (os.uname().nodename, str(Path.home()), str(tmp_path), f'"{getpass.getuser()}"'):
        assert secret.encode() not in content


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = tracking.TrackingParams(mode="disabled")
    with tracking.run(params, stage="ingest", key="a" * 64, config={}) as tracker:
        tracker.log({"loss": 0.5}, step=1)
        tracker.summary({"scans": 3})
    assert not list(tmp_path.iterdir())
