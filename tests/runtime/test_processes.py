from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from neurofoundry.runtime.machine import SAFE_PATH
from neurofoundry.runtime.processes import end_with_parent, ended_with_block


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


def test_a_worker_imports_nothing_from_the_working_folder_and_its_programs_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line starts it; a worker begins by importing multiprocessing."""
    (tmp_path / "multiprocessing.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(*SAFE_PATH)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        assert pool.submit(os.getenv, SAFE_PATH[0]).result() is None
    assert [file.name for file in tmp_path.iterdir()] == ["multiprocessing.py"]


def test_other_errors_let_workers_finish(worker: BaseProcess) -> None:
    with pytest.raises(OSError, match="no space"), ended_with_block():
        raise OSError("no space left on the device")
    worker.join(0.2)
    assert worker.exitcode is None
