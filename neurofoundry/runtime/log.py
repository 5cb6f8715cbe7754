"""Logging: one set-up, for people on a terminal and for the logs of a pod."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TextIO

LOGGER = logging.getLogger("neurofoundry")
"""The logger of the whole package."""


def configure(stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr) with time and level: in colour on a terminal, else in plain lines.

    Only the command line calls this; a program that uses the package sets up its own logging.
    """
    stream = stream or sys.stderr
    handler: logging.Handler
    if stream.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(file=stream), show_path=False, log_time_format="%X")
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        )
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log_defect(what: str, error: BaseException) -> None:
    """Log where an unforeseen error arose in ``what``.

    Its message is left out: it may quote a name of a file, or what stands in one.
    """
    lines: list[str] = []
    chain: BaseException | None = error
    while chain is not None:
        lines += [*traceback.format_tb(chain.__traceback__), f"{type(chain).__name__}\n"]
        chain = chain.__cause__ or chain.__context__
    LOGGER.error("a defect of %s:\n%s", what, "".join(lines).rstrip())
