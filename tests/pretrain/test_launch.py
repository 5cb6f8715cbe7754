"""Several processes end as the one that is the cause, with one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAYS = "from neurofoundry.cli import _fail; _fail('sub-07: no brain [here].', {code})"
WAITS = "import time; time.sleep(300)"


def launch(folder: Path, *of_ranks: str) -> subprocess.CompletedProcess[str]:
    """Two processes, each with code of its own."""
    script = folder / "rank.py"
    script.write_text(f"import os\nexec({list(of_ranks)!r}[int(os.environ['RANK'])])\n")
    command = [sys.executable, "-m", "neurofoundry.pretrain.launch", "--standalone"]
    command += [f"--nproc-per-node={len(of_ranks)}", str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("code", [2, 3])
def test_what_a_person_has_to_mend_is_said_once_and_its_code_kept(
    tmp_path: Path, code: int
) -> None:
    says = SAYS.format(code=code)
    done = launch(tmp_path, says, says)
    assert done.stderr == "error: sub-07: no brain [here].\n"
    assert done.returncode == code


def test_one_of_two_stops_the_other(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, SAYS.format(code=3))
    assert done.stderr == "error: sub-07: no brain [here].\n"
    assert done.returncode == 3


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, "os.kill(os.getpid(), 9)")
    assert done.stderr.startswith("Process 1 was ended by SIGKILL (too little memory?)")
    assert "Traceback" not in done.stderr
    assert done.returncode == 137


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    done = launch(tmp_path, WAITS, "1 / 0")
    assert "ZeroDivisionError" in done.stderr
    assert "torch" not in done.stderr
    assert done.returncode == 1


def test_all_is_well(tmp_path: Path) -> None:
    assert launch(tmp_path, "", "").returncode == 0
