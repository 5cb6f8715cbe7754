"""Where the command line begins."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

import neurofoundry
from neurofoundry.cli import cluster, stages, weights  # noqa: F401  their commands join the app
from neurofoundry.cli.options import app
from neurofoundry.errors import NeurofoundryError, complain
from neurofoundry.runtime import log


def _version(show: bool) -> None:
    if show:
        print(neurofoundry.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Global options."""


def main() -> None:
    """Run the command line; errors that a person can mend end in one message and its exit code."""
    # A thread of torch that waits shall soon sleep. libgomp's own 300,000 looks for work keep a
    # core busy: beside one busy process training took 1.6 times as long; alone, 2 % less.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    log.configure()
    try:
        app()
    except NeurofoundryError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _fail(
            f"{error.filename or 'output'}: {error.strerror}. Nothing is lost: free some space or "
            "give write permission, then run the same command again; it resumes.",
            2,
        )


def _fail(message: str, code: int) -> None:
    from neurofoundry.pretrain.launch_ranks import report

    if not report(message):
        complain(message)
    sys.exit(code)
