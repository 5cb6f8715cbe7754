"""The sample cohort on disk: `generate` writes it with several processes, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofoundry.errors import UsageError
from neurofoundry.phantom.anatomy import Subject, sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.bids import write_scan, write_tables
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.guard import guard_mount, guard_output, guard_place
from neurofoundry.runtime.processes import (
    check_shared_memory,
    deaf_children,
    end_with_parent,
    ended_with_block,
)
from neurofoundry.runtime.progress import Progress

_FINE_MM = 1.8
"""Scans with smaller voxels than this are drawn from the 1 mm maps of the brain."""


def generate(params: PhantomParams, out: Path, workers: int) -> None:
    """Write the datasets `phantom` and `phantom-external` into the folder ``out``.

    The work happens in `.NAME.partial` beside ``out``: a run that was killed resumes there when
    its parameters are the same, and one rename publishes. The bytes do not depend on ``workers``.
    Raises UsageError if ``out`` already holds anything.
    """
    place = guard_place(out)
    partial = _Partial(place.with_name(f".{place.name}.partial"), params)
    if place.is_dir() and any(place.iterdir()) and partial.is_published():
        # A run was killed while it tidied up.
        partial.remove()
        return
    _check(out, workers)
    subjects = [sample_subject(params, index) for index in range(params.subjects)]
    sessions = [
        _Session(subject, session) for subject in subjects for session, _ in subject.sessions
    ]
    partial.open()
    waiting = [session for session in sessions if not partial.record(session).exists()]
    with Progress(
        "generating heads", len(sessions), unit="heads", done=len(sessions) - len(waiting)
    ) as progress:
        try:
            _scan(waiting, partial, params, workers, progress)
        except BrokenProcessPool as error:
            raise UsageError(
                f"{out}: a worker process was killed, as happens when memory runs out. Run the "
                "same command with fewer --workers; finished heads are kept."
            ) from error
    truth = [_read(partial.record(session)) for session in sessions]
    write_tables(partial.tree, subjects, truth, params.contrasts)
    partial.tree.replace(place)
    partial.remove()


@dataclass(frozen=True)
class _Session:
    """One session of one subject."""

    subject: Subject
    name: str


@dataclass(frozen=True)
class _Partial:
    """The folder in which a cohort comes into being."""

    folder: Path
    params: PhantomParams

    @property
    def tree(self) -> Path:
        """What will be published."""
        return self.folder / "tree"

    @property
    def atlas(self) -> Path:
        return self.folder / "atlas"

    def record(self, session: _Session) -> Path:
        """Return the file of a row of truth.tsv, written last: a scan that has one is whole."""
        name = f"{session.subject.participant}_ses-{session.name}"
        return self.folder / "records" / f"{name}.json"

    @property
    def _key_file(self) -> Path:
        return self.folder / "key.json"

    @property
    def _key(self) -> dict[str, Any]:
        code = code_hash("neurofoundry.phantom.dataset")
        return {"code": code, "params": self.params.model_dump(mode="json")}

    @property
    def _done_file(self) -> Path:
        """Beside the folder: it goes with one call, after all that is in the folder."""
        return self.folder.with_name(f"{self.folder.name}.done")

    def is_published(self) -> bool:
        """Return whether the tree of these parameters has left the folder."""
        left = _read(self._key_file) == self._key and not self.tree.exists()
        return left or _read(self._done_file) == self._key

    def open(self) -> None:
        """Make the folder, without what other code or other parameters have left in it."""
        if _read(self._key_file) != self._key:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.tree, self.folder / "records"):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(self._key_file, self._key)

    def remove(self) -> None:
        """Remove the folder after its tree has been published, also where that was begun."""
        if self._key_file.exists():
            self._key_file.replace(self._done_file)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._done_file.unlink()


def _check(out: Path, workers: int) -> None:
    if workers < 1:
        raise UsageError(f"--workers: found {workers}, expected 1 or more.")
    guard_output(out, makes="phantom", marks=())
    guard_mount(out)


def _scan(
    sessions: Sequence[_Session],
    partial: _Partial,
    params: PhantomParams,
    workers: int,
    progress: Progress,
) -> None:
    """Write the scans of ``sessions`` and their records."""
    if not sessions:
        return
    check_shared_memory()
    fine = params.spacing_mm is not None and params.spacing_mm < _FINE_MM
    build_atlas(1 if fine else 2).save(partial.atlas)
    with ProcessPoolExecutor(
        min(workers, len(sessions)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    ) as pool:
        with deaf_children():
            records: Mapping[Future[dict[str, Any]], Path] = {
                pool.submit(
                    write_scan,
                    partial.tree,
                    session.subject,
                    session.name,
                    partial.atlas,
                    params.spacing_mm,
                    params.contrasts,
                ): partial.record(session)
                for session in sessions
            }
        try:
            with ended_with_block():
                for future in as_completed(records):
                    write_json(records[future], future.result())
                    progress.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
