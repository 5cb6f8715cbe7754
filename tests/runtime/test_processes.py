from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess

import pytest

from neurofoundry.runtime.processes import ended_with_block


@pytest.fixture
def worker() -> Iterator[BaseProcess]:
    """A process that no pool knows, as one is that begins while its pool breaks."""
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    process.start()
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("end", [KeyboardInterrupt, BrokenProcessPool])
def test_no_worker_outlives_a_block_that_is_cut_off(
    worker: BaseProcess, end: type[BaseException]
) -> None:
    with pytest.raises(end), ended_with_block():
        raise end
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def test_other_errors_let_workers_finish(worker: BaseProcess) -> None:
    with pytest.raises(OSError, match="no space"), ended_with_block():
        raise OSError("no space left on the device")
    worker.join(0.2)
    assert worker.exitcode is None
