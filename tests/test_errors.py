from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from neurofoundry.errors import (
    INTERRUPTION,
    DataError,
    NeurofoundryError,
    RefusedError,
    RunFailedError,
    UnreachableError,
    UsageError,
    run_app,
)

CODES = {UsageError: 2, DataError: 3, RunFailedError: 4, RefusedError: 5, UnreachableError: 6}


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NeurofoundryError("[red] is no colour"), 1),
        (UsageError("[red] is no colour"), 2),
        (DataError("[red] is no colour"), 3),
        (RunFailedError("[red] is no colour"), 4),
        (RefusedError("[red] is no colour", 403), 5),
        (UnreachableError("[red] is no colour"), 6),
    ],
)
def test_each_kind_is_one_message_and_its_exit_code(
    error: NeurofoundryError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_app(lambda: raising(error))
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "error: [red] is no colour\n")


def test_every_direct_kind_has_an_exit_code_of_its_own() -> None:
    assert {kind: kind.exit_code for kind in CODES} == CODES
    assert set(CODES) <= set(NeurofoundryError.__subclasses__())


def test_a_full_disk_is_for_a_person_to_fix_and_a_defect_is_not() -> None:
    told: list[str] = []
    full = OSError(errno.ENOSPC, "No space left on device", "/store/a")
    with pytest.raises(SystemExit) as ended:
        run_app(lambda: raising(full), told.append)
    assert ended.value.code == 2
    assert told[0].startswith("/store/a: No space left on device. Nothing is lost")
    with pytest.raises(SystemExit) as ended:
        run_app(lambda: raising(MemoryError()), told.append)
    assert ended.value.code == 2
    assert told.pop().startswith("memory ran out. Nothing is lost")
    for defect in (OSError(errno.ENOENT, "No such file or directory"), KeyError("stage")):
        with pytest.raises(type(defect)):
            run_app(lambda defect=defect: raising(defect), told.append)  # type: ignore[misc]
    assert len(told) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_told_and_the_exit_code_is_a_shells(
    number: signal.Signals, code: int
) -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    def app() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        run_app(app, told.append)
    assert ended.value.code == code
    assert told == [INTERRUPTION]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_app_that_ends_well_is_left_alone() -> None:
    run_app(lambda: None)
