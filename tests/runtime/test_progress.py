from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from neurofoundry.runtime import progress
from neurofoundry.runtime.progress import Progress


def test_a_log_gets_a_line_a_minute_even_while_nothing_advances(
    logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    with Progress("preprocess", 10, unit="scans", done=2) as bar:
        bar.advance(2, failed=1)
        time.sleep(0.2)  # one slow scan
    written = logged.getvalue().splitlines()
    assert len(written) >= 3
    pattern = r"\d{4}-\d\d-\d\dT[\d:]{8}\S* INFO "
    pattern += r"preprocess: 4/10 scans, [\d.]+/(s|min), \d+ s left, 1 failed"
    assert re.fullmatch(pattern, written[0])


def test_the_end_is_told_and_nothing_by_who_is_not_shown(logged: io.StringIO) -> None:
    with Progress("pretrain", 2, unit="steps") as bar:
        bar.advance(2, note="loss 3.1")
    with Progress("pretrain", 2, unit="steps", shown=False) as bar:
        bar.advance(2)
        bar.say("nobody hears this")
    (line,) = logged.getvalue().splitlines()
    assert re.search(r"INFO pretrain: 2/2 steps, [\d.]+/s, loss 3\.1$", line)


def test_without_a_total_neither_it_nor_the_time_left_is_told(logged: io.StringIO) -> None:
    with Progress("listing", None, unit="files") as bar:
        bar.advance(3)
    (line,) = logged.getvalue().splitlines()
    assert re.search(r"INFO listing: 3 files, [\d.]+/s$", line)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01 min"), (3660, "1:01 h")]
)
def test_durations_are_written_as_people_do(
    seconds: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bar = Progress("x", 2, unit="items")
    bar.advance(1)
    assert f"{text} left" in bar.line()


def test_a_terminal_shows_a_bar_and_no_lines() -> None:
    code = (
        "from neurofoundry.runtime import log; from neurofoundry.runtime.progress import Progress\n"
        "log.configure()\n"
        "with Progress('preprocess', 3, unit='scans') as bar:\n"
        "    bar.advance(3, note='all of them')\n"
    )
    command = f'{sys.executable} -c "{code}"'
    said = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True
    )
    assert "3/3" in said.stdout
    assert "all of them" in said.stdout
    assert "INFO" not in said.stdout
