from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofoundry.runtime.log import LOGGER, configure
from neurofoundry.runtime.machine import SAFE_PATH

# One thread a test process, as two of them fill two cores. Before torch is loaded: a process that
# is forked from one whose threads have worked waits for them forever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs tests in the background has them ignore Ctrl-C, and so what they start: no test
# of an interruption could pass.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as tests also wait: for containers, and for what they kill."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_runtest_setup() -> None:
    """A command that a test has run in this process has set it, and `python -m tests…` of the
    tests to come would find no tests."""
    os.environ.pop(SAFE_PATH[0], None)


@pytest.fixture(scope="session", autouse=True)
def nobody_is_logged_in() -> Iterator[None]:
    """Whoever runs the tests may have an account with W&B; nothing is sent there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        yield


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the package logs where there is no terminal."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    stream = io.StringIO()
    configure(stream)
    yield stream
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before


@pytest.fixture(scope="session")
def real_mri() -> Path:
    """Real T1-weighted heads beside the checkout; tests that want them pass without."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real-mri"
    if not folder.is_dir():
        pytest.skip("no real scans beside this checkout")
    return folder


@pytest.fixture
def real_heads() -> Path:
    """More real heads, with references that others made."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real-heads"
    if not folder.is_dir():
        pytest.skip("no real heads beside this checkout")
    return folder
