"""The errors that a person can fix: one tree, one way to say them, and an exit code for each kind.

    2  UsageError        the command line, the parameters or a file that somebody wrote
    3  DataError         the input data
    4  RunFailedError    a run of the pipeline, of which a step failed
    5  RefusedError      a cluster that refuses a request
    6  UnreachableError  a cluster that does not answer
    130, 143             whoever interrupted it: the user, with Ctrl-C, or a machine, with SIGTERM

Everything else is a defect of ours: a traceback, and exit code 1.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class NeurofoundryError(Exception):
    """One readable message: what was found, what was expected, and how to fix it."""

    exit_code = 1


class UsageError(NeurofoundryError):
    """The command line, the parameters or a file that somebody wrote cannot be used."""

    exit_code = 2


class DataError(NeurofoundryError):
    """The input data cannot be used."""

    exit_code = 3


class RunFailedError(NeurofoundryError):
    """The pipeline ran, and a step failed."""

    exit_code = 4


class RefusedError(NeurofoundryError):
    """A cluster refused a request, with the HTTP ``status``."""

    exit_code = 5

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(NeurofoundryError):
    """A cluster does not answer."""

    exit_code = 6


FIXABLE = {
    "free some space": (errno.ENOSPC, errno.EDQUOT),
    "give write permission": (errno.EACCES, errno.EPERM, errno.EROFS),
    "let files be larger (`ulimit -f unlimited`, or another file system)": (errno.EFBIG,),
    "give a shorter path (255 bytes a name, 4,095 in all)": (errno.ENAMETOOLONG,),
    "let more files be open (`ulimit -n 4096`)": (errno.EMFILE, errno.ENFILE),
    "let more processes run (`ulimit -u`), or free memory": (errno.EAGAIN, errno.ENOMEM),
    "bring the disk or network folder back (`mount` shows it)": (
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV),
        *(errno.EHOSTUNREACH, errno.ENXIO, errno.ENOLCK),
    ),
}
"""What an operating system refuses until a person does what the key says."""

OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
"""Those of ``FIXABLE`` that may hold for one file and for no other."""


def is_of_machine(error: Exception) -> bool:
    """Return whether an error says nothing of the file at which it came: any other would do."""
    codes = {code for each in FIXABLE.values() for code in each}
    return isinstance(error, OSError) and error.errno in codes.difference(OF_ONE_FILE)


INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C has ended, as of a shell."""


INTERRUPTION = (
    "interrupted. Nothing is lost: run the same command again, and it goes on from there."
)


def complain(message: str) -> None:
    """Say on stderr what a person has to fix."""
    from rich.console import Console
    from rich.markup import escape

    text = f"[bold red]error:[/] {escape(message)}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def run_app(app: Callable[[], object], tell: Callable[[str], object] = complain) -> None:
    """Run a command line: what a person can fix is told once, and the exit code says what it is."""
    with _termination_interrupts() as received:
        try:
            app()
        except NeurofoundryError as error:
            tell(str(error))
            sys.exit(error.exit_code)
        except MemoryError:
            tell(
                "memory ran out. Nothing is lost: free some, or let this process have more "
                "(`ulimit -v`), then run the same command again; it resumes."
            )
            sys.exit(UsageError.exit_code)
        except OSError as error:
            remedy = next((fix for fix, codes in FIXABLE.items() if error.errno in codes), None)
            if remedy is None:
                raise
            tell(
                f"{error.filename or 'output'}: {error.strerror}. Nothing is lost: {remedy}, then "
                "run the same command again; it resumes."
            )
            sys.exit(UsageError.exit_code)
        except (KeyboardInterrupt, SystemExit) as end:
            # typer has made an exit of the interrupt, unless that came while it imported a module.
            if isinstance(end, SystemExit) and end.code != INTERRUPTED:
                raise
            tell(INTERRUPTION)
            sys.exit(128 + max(received, default=signal.SIGINT))


@contextmanager
def _termination_interrupts() -> Iterator[list[int]]:
    """Let SIGTERM do what Ctrl-C does: it is how clusters, batch systems and services end a job.

    Yield the signals that have come.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def counted(number: int, noun: str) -> str:
    """Return '1 subject', '2 subjects'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
