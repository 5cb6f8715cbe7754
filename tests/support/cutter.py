"""Changes a file at the very moment when somebody opens it: PATH OPENING CHANGE.

A lease (`fcntl(2)`) has the kernel hold each opening until this process lets it pass.
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
def changed_when_opened(path: Path, *, change: str, opening: int = 1) -> Iterator[None]:
    """Change a file when it is opened for the so-manieth time, from 1, inside the block.

    To ``cut`` it takes the second half away; to ``blank`` it makes zeros of it, as where a program
    that copies it has reserved its place.
    """
    words = [sys.executable, "-m", __name__, str(path), str(opening), change]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


def main(path: str, opening: int, change: str) -> None:
    """Run the command line."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    file = os.open(path, os.O_RDWR)
    half, size = os.fstat(file).st_size // 2, os.fstat(file).st_size
    for number in range(1, opening + 1):
        hold(file)
        if number == 1:
            print("held", flush=True)
        signal.sigwait([signal.SIGIO])  # somebody opens it, and waits
        if number == opening and change == "cut":
            os.ftruncate(file, half)
        elif number == opening:
            os.pwrite(file, bytes(size - half), half)
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
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
