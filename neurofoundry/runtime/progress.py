"""Progress of long work: a bar on a terminal, elsewhere a line in the log every minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from neurofoundry.runtime.log import LOGGER

LINE_EVERY_S = 60.0
"""Seconds between two lines in a log; a terminal shows a bar instead."""


class Progress:
    """How far some work is: items done of a total, their rate, the time left, and failures.

    Used as a context manager. ``done`` items were finished before, by an earlier run. ``total`` is
    None where nobody can know it before the end.
    """

    def __init__(
        self, what: str, total: int | None, *, unit: str, done: int = 0, shown: bool = True
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.failures, self.note = done, 0, ""
        self._before = done
        self._shown = shown
        quiet = not LOGGER.isEnabledFor(logging.INFO)
        self._terminal = shown and sys.stderr.isatty() and not quiet
        self._ended = Event()
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Bar(*columns, *left, console=Console(stderr=True))
        self._task = self._bar.add_task(what, total=total, completed=done, note="")
        self._lines = Thread(target=self._write_lines, daemon=True)

    def __enter__(self) -> Self:
        if self._terminal:
            self._bar.start()
        elif self._shown:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._terminal:
            if error is None:  # also where nobody could know the total before
                self._bar.update(self._task, total=self.done, completed=self.done)
            self._bar.stop()
        elif self._shown:
            self._lines.join()
            if error is None and self.done > self._before:
                LOGGER.info("%s", self.line())

    def advance(self, count: int = 1, *, failed: int = 0, note: str = "") -> None:
        """Count ``count`` more items as done, ``failed`` of them without a result.

        ``note`` says what the work is at; an empty one leaves the last.
        """
        self.done += count
        self.failures += failed
        self.note = note or self.note
        if self._terminal:
            self._bar.update(self._task, completed=self.done, note=self._remarks())

    def say(self, message: str, *, level: int = logging.INFO) -> None:
        """Log a message without breaking the bar."""
        if self._terminal and LOGGER.isEnabledFor(level):
            self._bar.console.print(message, soft_wrap=True, markup=False)
        elif self._shown:
            LOGGER.log(level, "%s", message)

    def line(self) -> str:
        """Return one line: what is done of the total, the rate, the time left and the failures."""
        seconds = time.monotonic() - self._began
        made = self.done - self._before
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        parts = [f"{self.what}: {count} {self.unit}"]
        if made:
            rate = made / seconds
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
            if self.total is not None and self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self._remarks()])])

    def _remarks(self) -> str:
        failures = f"{self.failures} failed" if self.failures else ""
        return ", ".join(filter(None, [failures, self.note]))

    def _write_lines(self) -> None:
        while not self._ended.wait(LINE_EVERY_S):
            LOGGER.info("%s", self.line())


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Log the begin of work that has no items to count, and at its end how long it took."""
    LOGGER.info("%s …", what)
    began = time.monotonic()
    yield
    LOGGER.info("%s: done in %s", what, _duration(time.monotonic() - began))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
