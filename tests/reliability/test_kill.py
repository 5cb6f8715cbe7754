"""kill -9 at system calls that write: the same command then gives what a run without one gives.

Here at some of each kind and file; `python -m tests.reliability.kills` kills at every one.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofoundry.errors import INTERRUPTION
from tests.reliability import calls
from tests.reliability.calls import Watch, hold_calls
from tests.reliability.kills import COMMANDS, Bench, prepare, sample
from tests.reliability.warm import Warm
from tests.support.processes import ended

pytestmark = pytest.mark.skipif(not calls.works(), reason="this kernel cannot hold system calls")

MOST = {"ingest": 4, "compare": 5} | dict.fromkeys(
    ("embed", "finetune one", "phantom", "predict", "preprocess"), 1
)
"""Kills of a command that is quick, or slow."""
USUAL = 3
SAMPLED = tuple(name for name in COMMANDS if name not in ("finetune", "run"))
"""What CI has the time for. `run` is the stages, one after the other; of finetune, one model."""
INTERRUPTED = ("ingest", "pretrain", "evaluate", "export", "import", "embed")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    project = tmp_path_factory.mktemp("project")
    with Warm() as warm:
        prepare(project, warm)
        yield Bench(project, tmp_path_factory.mktemp("place"), warm)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_killed_command_run_again_gives_what_one_without_a_kill_gives(
    name: str, bench: Bench
) -> None:
    seen, whole = bench.undisturbed(name)
    # A process that reads a mapped file which somebody cuts short ends without a word (SIGBUS).
    mapped = {path for call in seen if call.kind == "mmap" for path in call.paths}
    assert {path for path in mapped if ".partial/atlas/" not in path} == set()
    written = {path for call in seen for path in call.paths}
    assert {path for path in whole if path.startswith("new/")} <= written | _published(written)
    reached = 0
    for number in sample(seen, MOST.get(name, USUAL)):
        reached += bench.kill(name, number, everyone=number % 2 == 0) is not None
        assert bench.made(name) == whole, (number, seen[number - 1])
    assert reached, "no call was reached: nothing was tested"


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_command_says_that_it_goes_on_and_does(name: str, bench: Bench) -> None:
    seen, whole = bench.undisturbed(name)
    number = len(seen) // 3
    done = bench.interrupt(name, number)
    assert done.code == 130, done.said
    assert done.said.rstrip().endswith(f"error: {INTERRUPTION}"), done.said
    assert "Traceback" not in done.said
    assert bench.run(name).code == 0
    assert bench.made(name) == whole


@pytest.mark.parametrize("name", ["ingest", "export", "import"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_is_told_and_the_same_command_goes_on(
    name: str, error: int, bench: Bench
) -> None:
    seen, whole = bench.undisturbed(name)
    number = len(seen) // 2 if error == errno.ENOSPC else 1
    done = bench.fail(name, number, error)
    assert done.code == 2, done.said
    assert os.strerror(error) in done.said
    assert "Traceback" not in done.said
    assert bench.run(name).code == 0
    assert bench.made(name) == whole


PROGRAM = """
import os, subprocess, time
helper = subprocess.Popen(["sleep", "600"])
with open("started", "w") as file:
    print(os.getpid(), helper.pid, file=file)
os.kill(os.getsid(0), {number})
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_mask_command_ends_with_what_runs_it(
    number: signal.Signals, code: int, bench: Bench
) -> None:
    folder = bench.begin("preprocess")
    (folder / "program.py").write_text(PROGRAM.format(number=int(number)))
    mask = {"command": f"{sys.executable} program.py {{input}} {{output}}"}
    words = [*COMMANDS["preprocess"].words.split(), "--workers", "1"]
    done = bench.warm.run([*words, "--set", f"preprocess.mask={json.dumps(mask)}"], folder)
    assert done.code == code, done.said
    assert done.said.endswith(f"error: {INTERRUPTION}\n") or number == signal.SIGKILL
    assert all(ended(int(process)) for process in (folder / "started").read_text().split())


def _published(written: set[str]) -> set[str]:
    """Return the names that files get by the renaming of a folder above them."""
    return {
        path.replace(f".{folder}.partial/", f"{folder}/").replace("/tree/", "/")
        for path in written
        for folder in {part[1:-8] for part in path.split("/") if part.endswith(".partial")}
    }


@pytest.mark.parametrize(
    ("kill_at", "expected"), [(0, {"a": "1\n", "c": "2\n"}), (3, {"a": "1\n"})]
)
def test_calls_of_any_program_are_seen_and_one_does_not_happen(
    tmp_path: Path, kill_at: int, expected: dict[str, str]
) -> None:
    """A shell and its child, of which each call is known."""
    ours, theirs = socket.socketpair()
    watch = Watch(tmp_path, kill_at=kill_at)
    process = subprocess.Popen(
        ["sh", "-c", "echo 1 > a; cat a; echo 2 > b; mv b c"],
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: socket.send_fds(theirs, [b"held"], [hold_calls()]),
    )
    _, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
    watch.serve(descriptors[0])
    assert process.wait() == (-signal.SIGKILL if kill_at else 0)
    names = [(call.kind[:5], *call.paths) for call in watch.calls]
    every = [("opena", "a"), ("write", "a"), ("opena", "b"), ("write", "b"), ("renam", "b", "c")]
    assert names == every[: kill_at or len(every)]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == expected
