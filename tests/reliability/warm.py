"""Runs commands in forks of one process that has imported everything: a start costs nothing.

`Warm` is used by the tests; the module itself is the process: SOCKET.
"""

from __future__ import annotations

import atexit
import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.reliability.calls import Watch, hold_calls

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command has ended: its exit code, or minus the signal, and what it has said."""

    code: int
    said: str


class Warm:
    """A process that runs commands of neurofoundry, one at a time."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()
        self.process.wait()

    def run(self, command: str | Sequence[str], folder: Path, watch: Watch | None = None) -> Done:
        """Run a command in a folder; ``watch`` sees its calls."""
        words = command.split() if isinstance(command, str) else list(command)
        log = folder.with_name(f"{folder.name}.log")
        asked = {"words": words, "folder": str(folder), "log": str(log), "held": watch is not None}
        self.socket.send(json.dumps(asked).encode())
        if watch is not None:
            _, descriptors, _, _ = socket.recv_fds(self.socket, 16, 1)
            watch.start(descriptors[0])
        code = int(self.socket.recv(64))
        return Done(code, log.read_text(errors="replace"))


def _serve(channel: socket.socket) -> None:
    """Run what is asked for until nobody asks any more."""
    while asked := channel.recv(1 << 16):
        child = os.fork()
        if not child:
            code = _run(channel, **json.loads(asked))
            atexit._run_exitfuncs()  # all of an end but taking the interpreter apart, a second
            os._exit(code)
        _, status = os.waitpid(child, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(channel: socket.socket, words: list[str], folder: str, log: str, held: bool) -> int:
    from neurofoundry.cli.main import main

    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if held:
        listener = hold_calls()
        socket.send_fds(channel, [b"held"], [listener])
        os.close(listener)
    channel.close()
    sys.argv = ["neurofoundry", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forget_locks() -> None:
    """Close what a worker has of its parent's locks by being its fork; other workers have none.

    Else a killed command leaves them locked for as long as its workers take to notice.
    """
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial"):
                os.close(int(descriptor))


def _import_all() -> None:
    """Import what the commands import where they use it, and build what they build again."""
    import importlib
    import pkgutil

    import neurofoundry
    from neurofoundry.cli import main  # noqa: F401

    for module in pkgutil.walk_packages(neurofoundry.__path__, "neurofoundry."):
        if not module.name.startswith(("neurofoundry.kubeflow", "neurofoundry.__main__")):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # else the first collection of each fork copies all of the memory
    os.register_at_fork(after_in_child=_forget_locks)
    forks = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forks  # type: ignore[assignment]
    _serve(socket.socket(fileno=int(sys.argv[1])))
