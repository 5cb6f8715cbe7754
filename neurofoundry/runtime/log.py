"""Logging: one set-up, for people on a terminal and for the logs of a pod."""

from __future__ import annotations

import logging
import sys
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
