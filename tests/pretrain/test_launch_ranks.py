"""Several processes end as the one that is the cause, with one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretrain.conftest import last_step

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


def test_a_rank_of_the_real_stage_is_killed_and_the_same_command_goes_on(
    volumes: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "neurofoundry", "pretrain", "--processes", "2"]
    command += ["--method", "simclr", "--volumes", str(volumes), "--out", str(tmp_path / "out")]
    command += ["--params", str(PARAMS)]
    command += [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    partial = tmp_path / ".out.partial"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        while last_step(partial / "checkpoint") < 2:
            assert job.poll() is None
            time.sleep(0.01)
        os.kill(rank_of(job.pid, 1), signal.SIGKILL)
        killed = time.monotonic()
        assert job.stderr is not None
        said = job.stderr.read()
        assert job.wait(60) == 137
        assert time.monotonic() - killed < 60
    assert "Process 1 was killed by SIGKILL (too little memory?)" in said
    assert said.count("continues from the last checkpoint") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    begun = (partial / "views.png").stat().st_mtime_ns  # of step 0
    subprocess.run(command, check=True, timeout=120)
    assert last_step(tmp_path / "out" / "checkpoint") == 18
    assert (tmp_path / "out" / "views.png").stat().st_mtime_ns == begun
