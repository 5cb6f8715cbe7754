"""Preprocess: every scan of the cohort, in parallel, each done once.

A scan's files are kept under a key: the hash of its image, of the parameters and of the code.
After a kill, and when scans come or go, only those whose key is new are done again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from neurofoundry.contracts.cohort import SCANS, scan_path
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, VolumesRecord, write_record
from neurofoundry.errors import DataError, UsageError
from neurofoundry.preprocess import extractor, intensity, report, template
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import MEASURES, judge
from neurofoundry.preprocess.scan import (
    OUTPUTS,
    Job,
    Result,
    brain_histogram,
    not_as_ingested,
    outputs,
    preprocess_scans,
)
from neurofoundry.preprocess.verdict import decide, find_overrides, read_overrides
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import link, write_json
from neurofoundry.runtime.stage import Workspace

LANDMARKS = "landmarks.json"
TABLES = ("scans.tsv", "grid.json", "qc.html", "timings.tsv", LANDMARKS)
TRAINING = ("pretrain", "train")
"""Splits that anything may be fitted on."""
FEWEST_SCANS = 2


def preprocess(
    work: Workspace, *, data: Path, cohort: Path, params: PreprocessParams, workers: int
) -> None:
    """Write a volume, its transform and its picture for every scan, and scans.tsv about them.

    A scan that cannot be used stays in the table, with the reason. Raises DataError when fewer
    than two can be used, and UsageError when a worker process is killed.
    """
    everyone = read_table(cohort / "scans.tsv", SCANS)
    decided = find_overrides(params, data)
    overrides = read_overrides(decided, everyone) if decided else {}
    used = template.fingerprint(template.find(params, data))
    scans = everyone.iloc[work.shard.items]
    settings = json.dumps(params.of_one_scan() | used, sort_keys=True) + source_hash()
    standard: list[float] = []
    if params.normalization == "nyul":
        standard = _standard_scale(
            work, everyone, settings, data=data, cohort=cohort, params=params, workers=workers
        )
    else:
        (work.dir / LANDMARKS).unlink(missing_ok=True)
    keys = {
        scan["scan_id"]: _hash(scan["sha256"], settings, str(standard))
        for scan in scans.to_dict("records")
    }
    files = outputs(params.registration)
    results = {
        scan_id: result
        for scan_id, key in keys.items()
        if (result := _reuse(work, scan_id, key, files)) is not None
    }
    reused, seconds = len(results), {}
    waiting = [scan for scan in scans.to_dict("records") if scan["scan_id"] not in results]
    for scan_id, result, taken in process(
        waiting,
        keys,
        results,
        data=data,
        cohort=cohort,
        out=work.dir,
        params=params,
        standard=standard,
        workers=workers,
    ):
        results[scan_id], seconds[scan_id] = result, taken
    _remove_strays(work.dir, results, files)

    table = decide(_table(scans, results), params, overrides, whole=work.shard.whole)
    write_table(table, work.dir / "scans.tsv", VOLUMES)
    fitted = f" at {' '.join(f'{value:g}' for value in standard)}" if standard else ""
    record = VolumesRecord(
        grid=params.grid.describe(),
        normalization=params.normalization + fitted,
        params=params.model_dump(mode="json"),
        **used,
    )
    write_record(work.dir, record)
    page = report.render(table, work.dir, params, overrides)
    (work.dir / "qc.html").write_text(page, encoding="utf-8")
    work.tracker.pictures("qc", _examples(table, work.dir), step=0)
    timings = pd.DataFrame({"scan_id": list(seconds), "seconds": list(seconds.values())})
    write_table(timings.sort_values("scan_id"), work.dir / "timings.tsv")

    faults = Counter(reason.partition(":")[0] for reason in table["reason"].dropna())
    counts = ", ".join(f"{count} × {fault}" for fault, count in sorted(faults.items()))
    usable = int(table["usable"].sum())
    if usable < FEWEST_SCANS and work.shard.whole:
        raise DataError(
            f"{usable} of {len(table)} scans can be used, at least {FEWEST_SCANS} are needed. "
            f"Not usable: {counts or 'none'}. Pictures and measures: {work.dir / 'qc.html'}. Mend "
            "the scans, or widen the bounds of preprocess.quality."
        )
    work.summary |= {"scans": len(table), "usable": usable, "reused": reused, "faults": faults}


def _examples(table: pd.DataFrame, folder: Path, count: int = 6) -> list[Path]:
    """Pictures of some scans, up to a third of them of scans that cannot be used."""
    there = [(folder / f"{scan_id}.png").exists() for scan_id in table["scan_id"]]
    drawn = table[pd.Series(there, table.index, dtype=bool)]  # an empty list chooses columns
    failed = drawn["scan_id"][~drawn["usable"]].head(count // 3)
    shown = drawn["scan_id"][drawn["usable"]].head(count - len(failed))
    return [folder / f"{scan_id}.png" for scan_id in [*shown, *failed]]


def _reuse(work: Workspace, scan_id: str, key: str, files: Sequence[str]) -> Result | None:
    """The result of an earlier run with the same key, its files brought into the work folder."""
    for folder in (work.dir, *work.earlier):
        try:
            result = Result(**json.loads((folder / OUTPUTS[-1].format(scan_id)).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            continue
        if result.key != key:
            continue
        names = [
            name.format(scan_id) for name in files if result.volume_sha256 or name == files[-1]
        ]
        if not all((folder / name).exists() for name in names):
            continue
        if folder != work.dir:
            for name in names:
                link(folder / name, work.dir / name)
        return result
    return None


def _standard_scale(
    work: Workspace,
    scans: pd.DataFrame,
    settings: str,
    *,
    data: Path,
    cohort: Path,
    params: PreprocessParams,
    workers: int,
) -> list[float]:
    """Nyúl's standard landmarks, from scans that nothing will be tested on.

    Every part of the scans makes them for itself from the same scans of the whole cohort. Kept in
    landmarks.json under a key, as scans are.
    """
    training = scans[scans["split"].isin(TRAINING)].sort_values(["sha256", "scan_id"])
    chosen = training.head(intensity.FIT_SCANS)
    key = _hash(settings, *chosen["sha256"])
    for folder in (work.dir, *work.earlier):
        try:
            kept = json.loads((folder / LANDMARKS).read_text())
            if kept["key"] == key:
                write_json(work.dir / LANDMARKS, kept)
                return [float(value) for value in kept["standard"]]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            continue
    with _pool(min(workers, len(chosen) or 1), params, data=data) as pool:
        rows: list[dict[Any, str]] = chosen.to_dict("records")
        found = list(pool.map(_histogram, to_jobs(rows, {}, data=data, cohort=cohort)))
    brains = [brain for brain in found if brain is not None]
    if not brains:
        raise DataError(
            f"preprocess.normalization is nyul, and none of the {len(chosen)} scans of the splits "
            f"{' and '.join(TRAINING)} shows a brain to fit it on. Choose zscore, or add scans."
        )
    standard = intensity.standard_scale(brains)
    content = {"percentiles": intensity.PERCENTILES, "standard": standard, "scans": len(brains)}
    write_json(work.dir / LANDMARKS, {"key": key, **content})
    return standard


def source_hash() -> str:
    """Hash of the code that a scan's files depend on."""
    return code_hash("neurofoundry.preprocess.scan")


def check(params: PreprocessParams) -> None:
    """Raise UsageError where this machine lacks what the parameters name."""
    if params.mask is not None:
        extractor.check(params.mask)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "preprocess.device is cuda, and torch finds no GPU here. Set it to cpu, or run on a "
            "machine with an NVIDIA GPU, its driver and a torch that is built for it."
        )


@contextmanager
def _pool(
    workers: int,
    params: PreprocessParams,
    standard: Sequence[float] = (),
    *,
    data: Path = Path(),
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes of one thread each, with the template in their memory."""
    check(params)
    prepared = template.build(params.registration_spacing, template.find(params, data))
    context = multiprocessing.get_context("forkserver")
    # Workers that fork from a process that has imported everything share its memory.
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(params, prepared, standard),
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UsageError(
            f"A worker process was ended from outside, as happens when memory runs out. Run "
            f"the same command with fewer --workers (now {workers}); finished scans are kept."
        ) from error
    finally:
        # After an error, such as a full disk, only the scans that workers have, and at most one
        # more than there are workers, are still done. The pool's own exit would wait for them all.
        pool.shutdown(cancel_futures=True)


def process(
    waiting: Sequence[Mapping[Any, str]],
    keys: Mapping[str, str],
    done: Mapping[str, Result],
    *,
    data: Path,
    cohort: Path,
    out: Path,
    params: PreprocessParams,
    standard: Sequence[float],
    workers: int,
) -> Iterator[tuple[str, Result, float]]:
    """Preprocess scans in worker processes; results as they come."""
    if not waiting:
        return
    batches = in_batches(to_jobs(waiting, keys, data=data, cohort=cohort), params)
    failures = sum(_failed(result, params) for result in done.values())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    failed = TextColumn("{task.fields[failures]} not usable")
    with (
        Progress(*columns, TimeRemainingColumn(), failed, console=Console(stderr=True)) as progress,
        _pool(min(workers, len(batches)), params, standard, data=data) as pool,
    ):
        bar = progress.add_task(
            "preprocess", total=len(waiting) + len(done), completed=len(done), failures=failures
        )
        futures = {pool.submit(_work, batch, out): batch for batch in batches}
        for future in as_completed(futures):
            results, seconds = future.result()
            failures += sum(_failed(result, params) for result in results)
            progress.update(bar, advance=len(results), failures=failures)
            for job, result in zip(futures[future], results, strict=True):
                yield job.scan_id, result, seconds


def to_jobs(
    scans: Sequence[Mapping[Any, str]], keys: Mapping[str, str], *, data: Path, cohort: Path
) -> list[Job]:
    """What is to be done of rows of the cohort, by the key of each."""
    return [
        Job(
            scan_path(scan, data=data, cohort=cohort),
            scan["scan_id"],
            scan["sha256"],
            keys.get(scan["scan_id"], ""),
        )
        for scan in scans
    ]


def in_batches(jobs: Sequence[Job], params: PreprocessParams) -> list[Sequence[Job]]:
    """What a worker takes at once."""
    return [jobs[n : n + params.batch] for n in range(0, len(jobs), params.batch)]


def _failed(result: Result, params: PreprocessParams) -> bool:
    return bool(result.reason or judge(result.measures, params.quality))


_params: PreprocessParams
_template: template.Template
_standard: Sequence[float]


def _start_worker(
    params: PreprocessParams, prepared: template.Template, standard: Sequence[float]
) -> None:
    global _params, _template, _standard
    _params, _template, _standard = params, prepared, standard
    torch.set_num_threads(1)
    threadpool_limits(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        # A worker whose parent was killed would wait for work forever.
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(jobs: Sequence[Job], out: Path) -> tuple[list[Result], float]:
    """The results of scans that are done together, and the seconds that each of them took."""
    started = time.perf_counter()
    results = _do(jobs, out)
    return results, round((time.perf_counter() - started) / len(jobs), 2)


def _do(jobs: Sequence[Job], out: Path) -> list[Result]:
    try:
        return preprocess_scans(
            jobs, out=out, params=_params, template=_template, standard=_standard
        )
    except OSError as error:
        # The machine's fault, not the scan's. An open file knows no name of its own.
        raise OSError(error.errno, error.strerror, error.filename or str(out)) from error
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"The GPU has no memory left for {len(jobs)} scans of each worker. Run the same "
            f"command with a smaller preprocess.batch (now {_params.batch}) or fewer --workers; "
            "finished scans are kept."
        ) from error
    except torch.AcceleratorError as error:
        raise UsageError(
            f"The GPU failed: {str(error).splitlines()[0]}. Mend it, or set preprocess.device to "
            "cpu; finished scans are kept."
        ) from error
    except (MemoryError, UsageError):
        raise
    except Exception as error:
        if len(jobs) > 1:  # whichever it was: each alone
            return [result for job in jobs for result in _do([job], out)]
        # A defect that one odd scan brings to light must not cost the cohort. It is shown, and
        # not kept: the next run tries again.
        print(f"{jobs[0].scan_id}: {traceback.format_exc()}", file=sys.stderr)
        return [Result(jobs[0].key, f"defect of preprocess: {type(error).__name__}: {error}")]


def _histogram(job: Job) -> tuple[list[float], float, float] | None:
    # What is wrong with a scan is for preprocess_scans to say.
    return None if not_as_ingested(job) else brain_histogram(job.path, _params)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _remove_strays(folder: Path, results: Mapping[str, Result], files: Sequence[str]) -> None:
    """Remove files of scans that left the cohort, and what killed runs have left."""
    kept = {".key", *TABLES}
    for scan_id, result in results.items():
        kept |= {name.format(scan_id) for name in (files if result.volume_sha256 else files[-1:])}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()


def _table(scans: pd.DataFrame, results: Mapping[str, Result]) -> pd.DataFrame:
    """The cohort with the results beside it, in the order of the cohort."""
    ordered = [results[scan_id] for scan_id in scans["scan_id"]]
    return scans.assign(
        reason=pd.Series([result.reason for result in ordered], index=scans.index, dtype=object),
        volume_sha256=pd.Series(
            [result.volume_sha256 for result in ordered], index=scans.index, dtype=object
        ),
        **{
            name: pd.Series(
                [result.measures.get(name) for result in ordered], index=scans.index, dtype=float
            )
            for name in MEASURES
        },
    )
