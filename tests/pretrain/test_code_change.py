"""A checkpoint of other code, with code that has really changed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretrain.conftest import last_step
from tests.support.package import Copy

PARAMS = Path(__file__).parents[2] / "params.yaml"
TINY = {
    "pretrain.encoder.width": "0.125",
    "pretrain.batch_size": "4",
    "pretrain.epochs": "6",
    "pretrain.checkpoint_minutes": "0",
    "pretrain.probe": "null",
    "tracking.mode": "disabled",
}
LAST = 36


class Job:
    """The command in a copy of the package."""

    def __init__(self, volumes: Path, folder: Path) -> None:
        self.copy = Copy(folder)
        self.out = folder / "out"
        self.checkpoints = folder / ".out.partial" / "checkpoint"
        self.command = [sys.executable, "-m", "neurofoundry", "pretrain", "--method", "simclr"]
        self.command += ["--volumes", str(volumes), "--out", str(self.out)]
        self.command += ["--params", str(PARAMS)]
        self.command += [
            part for name, value in TINY.items() for part in ("--set", f"{name}={value}")
        ]

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *options],
            cwd=self.copy.root.parent,
            env=self.copy.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop_after_a_step(self, *options: str) -> str:
        """Run until there is another checkpoint, then end with SIGTERM; what was logged."""
        before = last_step(self.checkpoints)
        with self.start(*options) as job:
            while last_step(self.checkpoints) <= before:
                assert job.poll() is None, job.stderr.read() if job.stderr else ""
                time.sleep(0.01)
            job.send_signal(signal.SIGTERM)
            _, log = job.communicate(timeout=120)
        assert job.returncode == 128 + signal.SIGTERM, log
        assert last_step(self.checkpoints) < LAST
        return log

    def end(self, *options: str, code: int = 0) -> str:
        """Run to the end; what was logged."""
        with self.start(*options) as job:
            _, log = job.communicate(timeout=300)
        assert job.returncode == code, log
        return log


@pytest.fixture
def job(volumes: Path, tmp_path: Path) -> Job:
    return Job(volumes, tmp_path)


def test_it_is_refused_by_name_and_continued_when_that_is_accepted(job: Job) -> None:
    job.stop_after_a_step()
    job.copy.append("pretrain/train.py", "# a comment")
    job.copy.append("runtime/checkpoint.py", "ONE_MORE = 1  # a service decides nothing")
    job.copy.append("pretrain/objectives/mae.py", "ONE_MORE = 1  # nor does another objective")
    job.stop_after_a_step()  # no flag is needed
    job.copy.replace("pretrain/batches.py", "READERS = 4", "READERS = 3")
    job.copy.replace("pretrain/objectives/simclr.py", "COLLAPSED = 2.0", "COLLAPSED = 2.5")
    left = sorted(job.checkpoints.iterdir())
    log = job.end("--processes", "2", code=2)
    changed = "pretrain.batches, pretrain.objectives.simclr changed"
    assert log.count(f"was written by other code: {changed}") == 1
    assert "--accept-code-change" in log
    assert sorted(job.checkpoints.iterdir()) == left
    job.stop_after_a_step("--processes", "2", "--accept-code-change")
    job.end()  # accepted once, it is this run's code
    record = json.loads((job.out / "stage.json").read_text())
    assert record["accepted_code_changes"] == ["pretrain.batches", "pretrain.objectives.simclr"]
    assert last_step(job.out / "checkpoint") == LAST
