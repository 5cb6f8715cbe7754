"""Worker processes: none outlives its parent, and the user speaks to the parent alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
def ended_by_interrupt() -> Iterator[None]:
    """End all workers where Ctrl-C ends the block; a pool would wait for what they have begun."""
    try:
        yield
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.kill()
        raise


def end_with_parent() -> None:
    """End this worker when its parent is killed; it would wait for work forever.

    Ctrl-C is for the parent to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
