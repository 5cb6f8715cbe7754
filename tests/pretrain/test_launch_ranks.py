"""Several processes end as the one that is the cause, with one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofoundry.errors import INTERRUPTION
from neurofoundry.runtime.processes import children
from tests.pretrain.conftest import last_step
from tests.support.processes import ended

PARAMS = Path(__file__).parents[2] / "params.yaml"
TINY = {
    "pretrain.encoder.width": "0.125",
    "pretrain.batch_size": "4",
    "pretrain.epochs": "3",
    "pretrain.checkpoint_minutes": "0",
    "pretrain.probe": "null",
    "tracking.mode": "disabled",
}

FAILS = """
from neurofoundry.cli import main as cli
from neurofoundry.errors import DataError, UsageError

def fail():
    raise {error}("sub-07: no brain [here].")

cli.app = fail
cli.main()
"""
WAITS = "import time; time.sleep(300)"


def launch(folder: Path, *of_ranks: str) -> subprocess.CompletedProcess[str]:
    """Two processes, each with code of its own."""
    script = folder / "rank.py"
    script.write_text(f"import os\nexec({list(of_ranks)!r}[int(os.environ['RANK'])])\n")
    command = [sys.executable, "-m", "neurofoundry.pretrain.launch_ranks", "--standalone"]
    command += [f"--nproc-per-node={len(of_ranks)}", str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("error", "code"), [("UsageError", 2), ("DataError", 3)])
def test_an_error_of_all_ranks_is_reported_once_with_its_exit_code(
    tmp_path: Path, error: str, code: int
) -> None:
    fails = FAILS.format(error=error)
    done = launch(tmp_path, fails, fails)
    assert done.stderr == "error: sub-07: no brain [here].\n"
    assert done.returncode == code


def test_one_of_two_stops_the_other(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, FAILS.format(error="DataError"))
    assert done.stderr == "error: sub-07: no brain [here].\n"
    assert done.returncode == 3


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, "os.kill(os.getpid(), 9)")
    assert done.stderr.startswith("Process 1 was killed by SIGKILL (too little memory?)")
    assert "Traceback" not in done.stderr
    assert done.returncode == 137


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, "1 / 0")
    assert "ZeroDivisionError" in done.stderr
    assert "torch" not in done.stderr
    assert done.returncode == 1


def test_all_is_well(tmp_path: Path) -> None:
    assert launch(tmp_path, "", "").returncode == 0


def rank_of(launcher: int, number: int) -> int:
    """The id of a process that ``launcher`` has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (process,) = (
        int(child)
        for child in children
        if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )
    return process


def test_ranks_of_the_real_stage_end_together_and_the_same_command_goes_on(
    volumes: Path, tmp_path: Path
) -> None:
    """One is killed, then a cluster ends the job, then the user; in between each takes steps."""
    command = [sys.executable, "-m", "neurofoundry", "pretrain", "--processes", "2"]
    command += ["--method", "simclr", "--volumes", str(volumes), "--params", str(PARAMS)]
    command += [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    out, partial = tmp_path / "out", tmp_path / ".out.partial"

    def end(at_step: int, send: Callable[[int], None], code: int) -> str:
        with subprocess.Popen(
            [*command, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as job:
            while last_step(partial / "checkpoint") < at_step:
                assert job.poll() is None
                time.sleep(0.01)
            ranks = children(job.pid)
            send(job.pid)
            _, said = job.communicate(timeout=600)
        assert job.returncode == code, said
        assert all(ended(rank) for rank in ranks)
        assert "Traceback" not in said
        assert not out.exists()
        return said

    said = end(2, lambda job: os.kill(rank_of(job, 1), signal.SIGKILL), 137)
    assert "Process 1 was killed by SIGKILL (too little memory?)" in said
    assert said.count("continues from the last checkpoint") == 1
    begun = (partial / "views.png").stat().st_mtime_ns  # of step 0
    said = end(5, lambda job: os.kill(job, signal.SIGTERM), 143)
    assert said.count("the same command continues") == 1
    said = end(8, lambda job: os.killpg(job, signal.SIGINT), 130)
    assert said.count(INTERRUPTION) == 1
    subprocess.run([*command, "--out", str(out)], check=True)
    assert last_step(out / "checkpoint") == 18
    assert (out / "views.png").stat().st_mtime_ns == begun
