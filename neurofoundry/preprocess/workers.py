"""Worker processes, each of one thread and with the template in its memory."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from threadpoolctl import threadpool_limits

from neurofoundry.errors import UsageError
from neurofoundry.preprocess import mask_command
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.scan import (
    Job,
    Result,
    brain_histogram,
    change_since_ingest,
    preprocess_scans,
)
from neurofoundry.preprocess.template import Template
from neurofoundry.runtime import log
from neurofoundry.runtime.files import stamp
from neurofoundry.runtime.log import LOGGER, log_defect
from neurofoundry.runtime.processes import check_shared_memory, end_with_parent, ended_with_block
from neurofoundry.runtime.progress import Progress

LARGE = 2**26
"""Voxels, as of 400³. A scan takes up to 16 bytes of memory for each; most have 5 to 20 million."""
TOO_LARGE = "too large: there is not enough memory for its voxels"


class WorkerKilledError(UsageError):
    """A worker process was killed, most likely for lack of memory."""


@dataclass(frozen=True)
class Worker:
    """What a worker needs for every scan, and what it can do."""

    params: PreprocessParams
    template: Template
    standard: Sequence[float] = ()
    """The standard landmarks of nyul."""

    def preprocess(self, jobs: Sequence[Job], out: Path) -> tuple[list[Result], float]:
        """Return the results of scans that are done together, and the seconds that each took.

        Raises OSError and UsageError for what is the machine's fault.
        """
        started = time.perf_counter()
        results = self._preprocess(jobs, out)
        return results, round((time.perf_counter() - started) / len(jobs), 2)

    def histogram(self, job: Job) -> tuple[list[float], float, float] | None:
        """Return `brain_histogram` of a scan, unless it has changed since ingest."""
        # What is wrong with a scan is for preprocess_scans to say.
        try:
            seen = stamp(job.path)
            found = None if change_since_ingest(job) else brain_histogram(job.path, self.params)
            return found if stamp(job.path) == seen else None
        except (OSError, UsageError):
            raise
        except Exception:
            return None

    def _preprocess(self, jobs: Sequence[Job], out: Path) -> list[Result]:
        try:
            return preprocess_scans(
                jobs,
                out=out,
                params=self.params,
                template=self.template,
                standard=self.standard,
            )
        except OSError as error:
            # The machine's fault, not the scan's. An open file knows no name of its own.
            raise OSError(error.errno, error.strerror, error.filename or str(out)) from error
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"The GPU has no memory left for {len(jobs)} scans of each worker. Run the same "
                f"command with a smaller preprocess.batch (now {self.params.batch}) or fewer "
                "--workers; finished scans are kept."
            ) from error
        except torch.AcceleratorError as error:
            raise UsageError(
                f"The GPU failed: {str(error).splitlines()[0]}. Fix it, or set preprocess.device "
                "to cpu; finished scans are kept."
            ) from error
        except UsageError:
            raise
        except Exception as error:
            if len(jobs) > 1:  # one of them is odd: find out which
                return [result for job in jobs for result in self._preprocess([job], out)]
            # What one odd scan brings to light must not cost the cohort. It is logged, and its
            # result is not kept: the next run tries again.
            log_defect(f"preprocess in scan {jobs[0].scan_id}", error)
            if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
                return [Result(jobs[0].key, f"{TOO_LARGE}. Use fewer --workers, or downsample it")]
            reason = f"defect of preprocess: {type(error).__name__}. The log says where"
            return [Result(jobs[0].key, f"{reason}; please report it")]


def check(params: PreprocessParams) -> None:
    """Raise UsageError where this machine lacks what the parameters name."""
    if params.mask is not None:
        mask_command.check(params.mask)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "preprocess.device is cuda, and torch finds no GPU here. Set it to cpu, or run on a "
            "machine with an NVIDIA GPU, its driver and a torch that is built for it."
        )


def preprocess_jobs(
    jobs: Sequence[Job],
    *,
    out: Path,
    params: PreprocessParams,
    template: Path | None,
    standard: Sequence[float] = (),
    workers: int,
    before: Sequence[Result] = (),
) -> Iterator[tuple[Job, Result, float]]:
    """Preprocess scans in worker processes; yield results and seconds a scan as they come.

    ``template`` is the folder of one that is not nilearn's; ``before`` are results of earlier
    runs, which count as progress. Large scans are done one by one after the others: so memory is
    bounded, and one that has a worker process killed is itself unusable. Raises UsageError where
    one is killed otherwise.
    """
    if not jobs:
        return
    template_files = templates.build(params.registration_spacing, template)
    worker = Worker(params, template_files, standard)
    large = [job for job in jobs if _voxels(job.path) > LARGE]
    ordinary = in_batches([job for job in jobs if job not in large], params)
    alone: list[Sequence[Sequence[Job]]] = [[[job]] for job in large]
    total = len(jobs) + len(before)
    with Progress("preprocess", total, unit="scans", done=len(before)) as progress:
        progress.advance(0, failed=_count_unusable(before, params))
        for batches in (ordinary, *alone):
            for batch, results, seconds in _in_pool(batches, out, worker, workers):
                progress.advance(len(results), failed=_count_unusable(results, params))
                for job, result in zip(batch, results, strict=True):
                    yield job, result, seconds


def _in_pool(
    batches: Sequence[Sequence[Job]], out: Path, worker: Worker, workers: int
) -> Iterator[tuple[Sequence[Job], list[Result], float]]:
    """Preprocess batches in worker processes; yield each with results and seconds a scan."""
    if not batches:
        return
    try:
        with pool(min(workers, len(batches)), worker) as executor:
            futures = {executor.submit(preprocess_batch, batch, out): batch for batch in batches}
            for future in as_completed(futures):
                yield futures[future], *future.result()
    except WorkerKilledError:
        jobs = [job for batch in batches for job in batch]
        if len(jobs) > 1 or _voxels(jobs[0].path) <= LARGE:
            raise
        yield jobs, [Result(jobs[0].key, f"{TOO_LARGE}. Downsample it")], 0.0


def _voxels(path: Path) -> int:
    try:
        image: Any = nib.load(path)
        return math.prod(image.shape)
    except Exception:  # what is wrong with it is for preprocess_scans to say
        return 0


def in_batches(jobs: Sequence[Job], params: PreprocessParams) -> list[Sequence[Job]]:
    """Return what a worker takes at once."""
    return [jobs[n : n + params.batch] for n in range(0, len(jobs), params.batch)]


@contextmanager
def pool(workers: int, worker: Worker) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes, for `preprocess_batch` and `histogram`.

    Raises WorkerKilledError where one is killed, UsageError where this machine lacks what the
    parameters name.
    """
    check(worker.params)
    check_shared_memory()
    context = multiprocessing.get_context("forkserver")
    # Workers that fork from a process that has imported everything share its memory.
    context.set_forkserver_preload([__name__])
    executor = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start,
        initargs=(worker, bool(LOGGER.handlers)),
    )
    try:
        with ended_with_block():
            yield executor
    except BrokenProcessPool as error:
        raise WorkerKilledError(
            "A worker process was killed, as happens when memory runs out. Run the same command "
            f"with fewer --workers (now {workers}); finished scans are kept."
        ) from error
    finally:
        # After an error, such as a full disk, only the scans that workers have, and at most one
        # more than there are workers, are still done. The pool's own exit would wait for them all.
        executor.shutdown(cancel_futures=True)


def preprocess_batch(jobs: Sequence[Job], out: Path) -> tuple[list[Result], float]:
    """`Worker.preprocess`, in a process of a pool."""
    return _worker.preprocess(jobs, out)


def histogram(job: Job) -> tuple[list[float], float, float] | None:
    """`Worker.histogram`, in a process of a pool."""
    return _worker.histogram(job)


_worker: Worker
"""Of a process of a pool."""


def _start(worker: Worker, logs: bool) -> None:
    global _worker
    _worker = worker
    if logs:
        log.configure()
    torch.set_num_threads(1)
    threadpool_limits(1)
    end_with_parent()


def _count_unusable(results: Sequence[Result], params: PreprocessParams) -> int:
    return sum(bool(r.reason or judge(r.measures, params.quality)) for r in results)
