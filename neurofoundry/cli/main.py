"""Where the command line begins."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

import neurofoundry
from neurofoundry.cli.options import app
from neurofoundry.errors import complain, run_app
from neurofoundry.kubeflow import journal
from neurofoundry.runtime import log, machine

# isort: off
from neurofoundry.cli import stages, weights, verify, cluster  # noqa: F401  in the order of the help
# isort: on


def _version(show: bool) -> None:
    if show:
        print(neurofoundry.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Log warnings and errors only; no progress.")
    ] = False,
) -> None:
    """Global options."""
    if quiet:
        log.LOGGER.setLevel(logging.WARNING)


def main() -> None:
    """Run the command line."""
    machine.open_streams()
    machine.name_user()
    # Workers and ranks are started as Python starts a program: with the working folder first, and
    # a random.py that somebody has left there would be run as theirs.
    os.environ.setdefault(*machine.SAFE_PATH)
    # Threads of torch that wait should soon sleep. libgomp's default of 300,000 spins keeps a core
    # busy: beside one busy process training took 1.6 times as long; alone, 2 % less.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # All cores of the node are not this pod's, and torch would use them.
    if machine.cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(machine.cores()))
    log.configure()
    with journal.kept():
        run_app(app, _tell)


def _tell(message: str) -> None:
    """Say an error once, however many processes of one training meet it."""
    from neurofoundry.pretrain.launch_ranks import report

    if not report(message):
        complain(message)
