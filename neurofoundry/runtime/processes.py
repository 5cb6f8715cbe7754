"""Worker processes: none outlives its parent, and the user speaks to the parent alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
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
def ended_with_block() -> Iterator[None]:
    """End all workers where Ctrl-C, or the death of one of them, ends the block.

    A pool would wait for what they have begun. It ends them itself when one is killed, but only
    those that it knows, and waits for ever for one that began at that moment.
    """
    try:
        yield
    except (KeyboardInterrupt, BrokenProcessPool):
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
