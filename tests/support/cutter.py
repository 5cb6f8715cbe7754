"""Cuts a file short at the very moment when somebody opens it: PATH.

A lease (`fcntl(2)`) has the kernel hold the opening until this process lets it pass.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cut_when_opened(path: Path) -> Iterator[None]:
    """Take the second half of a file away when it is first opened inside the block."""
    words = [sys.executable, "-m", __name__, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


def main(path: str) -> None:
    """Run the command line."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    file = os.open(path, os.O_RDWR)
    hold(file)
    print("held", flush=True)
    signal.sigwait([signal.SIGIO])  # somebody opens it, and waits
    os.ftruncate(file, os.fstat(file).st_size // 2)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def hold(file: int) -> None:
    """Take the lease once nobody else has the file open."""
    while True:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            time.sleep(0.0002)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1])
