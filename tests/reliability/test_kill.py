"""kill -9 at system calls that write: the same command then gives what a run without one gives.

Here at some of each kind and file; `python -m tests.reliability.kills` kills at every one.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofoundry.errors import INTERRUPTION
from tests.reliability import calls
from tests.reliability.calls import Watch, hold_calls
from tests.reliability.kills import Bench, prepare, sample
from tests.reliability.warm import Warm

pytestmark = pytest.mark.skipif(not calls.works(), reason="this kernel cannot hold system calls")

MOST = {"ingest": 6}
"""Kills of a command that is quick, or slow."""
USUAL = 3
SAMPLED = ("ingest", "ingest again", "pretrain", "evaluate", "export", "import", "embed")
"""What CI has the time for."""


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
    seen = bench.calls(name)
    whole = bench.made(name)
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


@pytest.mark.parametrize("name", [name for name in SAMPLED if "again" not in name])
def test_an_interrupted_command_says_that_it_goes_on_and_does(name: str, bench: Bench) -> None:
    number = len(bench.calls(name)) // 3
    whole = bench.made(name)
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
    number = len(bench.calls(name)) // 2 if error == errno.ENOSPC else 1
    whole = bench.made(name)
    done = bench.fail(name, number, error)
    assert done.code == 2, done.said
    assert os.strerror(error) in done.said
    assert "Traceback" not in done.said
    assert bench.run(name).code == 0
    assert bench.made(name) == whole


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
