"""Scans that are done: each kept under a key, and used again as long as the key is the same.

The key of a scan is the hash of its image, of the parameters and of the code. After a kill, and
when scans come or go, only those whose key is new are done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import Job, Result, read_result
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import hash_file, link
from neurofoundry.runtime.progress import Progress


def source_hash() -> str:
    """Return the hash of the code that a scan's files depend on."""
    return code_hash("neurofoundry.preprocess.scan")


def scan_settings(params: PreprocessParams, template: Mapping[str, str]) -> str:
    """Return what every scan's files depend on beside the image, as part of a key.

    ``template`` is its `fingerprint`.
    """
    return json.dumps({**params.of_one_scan(), **template}, sort_keys=True) + source_hash()


def make_key(*parts: str) -> str:
    """Return the SHA-256 of all that something depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class ScanCache:
    """The files of finished scans in ``folder``, and in the outputs of ``earlier`` runs."""

    def __init__(self, folder: Path, earlier: Sequence[Path], layout: Layout) -> None:
        self.folder = folder
        self._places = (folder, *earlier)
        self.layout = layout

    def finished(self, jobs: Sequence[Job]) -> dict[str, Result]:
        """Return the results of jobs that are done, by ``scan_id``; their files are linked into
        ``folder``."""
        results: dict[str, Result] = {}
        with Progress("look for finished scans", len(jobs), unit="scans") as progress:
            for job in jobs:
                if (result := self._find(job)) is not None:
                    results[job.scan_id] = result
                progress.advance()
        return results

    def passing(self, jobs: Sequence[Job]) -> int:
        """Count the jobs with results that are not kept: the next run may find otherwise, as where
        an image that is gone has been brought back."""
        records = (_read(self.folder / self.layout.result.format(job.stem)) for job in jobs)
        return sum(
            record is None or record.key != job.key
            for job, record in zip(jobs, records, strict=True)
        )

    def remove_others(
        self, jobs: Sequence[Job], results: Mapping[str, Result], keep: Collection[str]
    ) -> None:
        """Remove all files but those of ``results`` and those to ``keep``: scans that left the
        cohort, and what killed runs have left."""
        kept = {self.folder / name for name in keep}
        for job in jobs:
            kept.update(self.folder / name for name in self._names(job, results[job.scan_id]))
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before it
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in kept:
                path.unlink()

    def _find(self, job: Job) -> Result | None:
        for place in self._places:
            result = _read(place / self.layout.result.format(job.stem))
            if result is None or result.key != job.key:
                continue
            names = self._names(job, result)
            if not all((place / name).exists() for name in names):
                continue
            volume = place / self.layout.volume.format(job.stem)
            if result.volume_sha256 and result.volume_sha256 != hash_file(volume):
                continue
            if any(
                each.volume_sha256 != hash_file(place / self._volume_of(job, contrast))
                for contrast, each in result.further.items()
                if each.volume_sha256
            ):
                continue
            if place != self.folder:
                (self.folder / job.stem).parent.mkdir(parents=True, exist_ok=True)
                for name in names:
                    link(place / name, self.folder / name)
            return result
        return None

    def _names(self, job: Job, result: Result) -> list[str]:
        """Return the files that a scan with this result has."""
        files = self.layout.files if result.volume_sha256 else (self.layout.result,)
        others = [
            name
            for contrast, each in result.further.items()
            if each.volume_sha256
            for name in self.layout.of_contrast(contrast)
        ]
        return [name.format(job.stem) for name in (*others, *files)]

    def _volume_of(self, job: Job, contrast: str) -> str:
        return self.layout.of_contrast(contrast)[0].format(job.stem)


def _read(path: Path) -> Result | None:
    try:
        return read_result(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
