"""Worker processes: none outlives its parent, and the user speaks to the parent alone.

Nor does a program that a worker runs, such as a mask command, and what that has started itself.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

from neurofoundry.errors import UsageError
from neurofoundry.runtime.machine import SAFE_PATH

SHARED, NEEDED = Path("/dev/shm"), 2**20
"""Where Linux has what processes share, and how many bytes of it locks and queues take at most."""


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def check_shared_memory() -> None:
    """Raise UsageError where worker processes cannot speak with each other, for want of what their
    locks and queues lie in."""
    try:
        multiprocessing.get_context("fork").Lock()
        if SHARED.is_dir() and _free(SHARED) < NEEDED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise UsageError(
            f"{SHARED}: {error.strerror}. Worker processes need this shared memory, 64 MB of it: "
            "mount a tmpfs there that this user can write to, as `docker run --shm-size 64m` does, "
            "then run the same command again."
        ) from error


@contextmanager
def deaf_children() -> Iterator[None]:
    """Start workers in this block that Ctrl-C does not end, which reaches all of a terminal.

    It is for their parent to answer, in one sentence.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ended_with_block() -> Iterator[None]:
    """End all workers where Ctrl-C, or the death of one of them, ends the block.

    A pool would wait for what they have begun. It ends them itself when one is killed, but only
    those that it knows, and waits for ever for one that began at that moment.
    """
    try:
        yield
    except (KeyboardInterrupt, BrokenProcessPool):
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            end_family(worker.pid)
        raise


def end_with_parent() -> None:
    """End this worker when its parent is killed; it would wait for work forever.

    Ctrl-C is for the parent to answer. Programs that the worker starts are not ours.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, value = SAFE_PATH
    if os.environ.get(name) == value:
        del os.environ[name]  # a mask command may be a script with modules beside it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        for child in children(os.getpid()):
            end_family(child)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_family(process: int) -> None:
    """Kill a process, what it has started, and what that has."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)  # so that it starts nothing meanwhile
        for child in children(process):
            end_family(child)
        os.kill(process, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Return the processes that a process has started and that are there still."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # PID (NAME) STATE PARENT …; the name may hold anything.
            if int(status.read_text(errors="replace").rpartition(")")[2].split()[1]) == process:
                found.append(int(status.parent.name))
    return found
