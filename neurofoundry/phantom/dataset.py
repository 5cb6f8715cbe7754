"""The sample cohort on disk: `generate` writes it with several processes, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neurofoundry.errors import UsageError
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.bids import write_scan, write_tables
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import write_json

# Finer scans than this are drawn from the 1 mm maps of the brain.
_FINE_MM = 1.8


def generate(params: PhantomParams, out: Path, workers: int) -> None:
    """Write the datasets `phantom` and `phantom-external` into the folder `out`.

    Work happens in `.NAME.partial` beside `out`: a killed run with the same parameters goes on
    from there, and one rename publishes. The bytes do not depend on `workers`.
    Raises UsageError if `out` holds anything already.
    """
    if workers < 1:
        raise UsageError(f"--workers: found {workers}, expected 1 or more.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out}: expected a new or empty folder, found something in it. "
            "Give another folder, or remove this one first."
        )
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    tree, records, atlas = partial / "tree", partial / "records", partial / "atlas"
    key = {"code": code_hash("neurofoundry.phantom.dataset"), "params": params.model_dump()}
    if _read(partial / "key.json") != key:
        shutil.rmtree(partial, ignore_errors=True)
    for folder in (tree, records):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(partial / "key.json", key)

    subjects = [sample_subject(params, index) for index in range(params.subjects)]
    scans = [(subject, session) for subject in subjects for session, _ in subject.sessions]
    names = [f"{subject.participant}_ses-{session}" for subject, session in scans]
    waiting = [
        (record, scan)
        for name, scan in zip(names, scans, strict=True)
        if not (record := records / f"{name}.json").exists()
    ]
    if waiting:
        fine = params.spacing_mm is not None and params.spacing_mm < _FINE_MM
        build_atlas(1 if fine else 2).save(atlas)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(
            min(workers, max(1, len(waiting))),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_end_with_parent,
        ) as pool,
    ):
        bar = progress.add_task("heads", total=len(scans), completed=len(scans) - len(waiting))
        futures: dict[Future[dict[str, Any]], Path] = {
            pool.submit(write_scan, tree, subject, session, atlas, params.spacing_mm): record
            for record, (subject, session) in waiting
        }
        try:
            for future in as_completed(futures):
                # The record is written last: only scans that have one are whole.
                write_json(futures[future], future.result())
                progress.advance(bar)
        except BrokenProcessPool as error:
            raise UsageError(
                f"{out}: a worker process was ended from outside, as happens when memory runs "
                "out. Run the same command with fewer --workers; finished heads are kept."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_tables(tree, subjects, [_read(records / f"{name}.json") for name in names])
    tree.replace(out.absolute())
    shutil.rmtree(partial)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _end_with_parent() -> None:
    """Let a worker end when its parent was killed; it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
