"""Scans that are done: each kept under a key, and used again as long as the key is the same.

The key of a scan is the hash of its image, of the parameters and of the code. After a kill, and
when scans come or go, only those whose key is new are done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import RESULT, VOLUME, Job, Result, output_files
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

    def __init__(self, folder: Path, earlier: Sequence[Path], registration: str) -> None:
        self.folder = folder
        self._places = (folder, *earlier)
        self._files = output_files(registration)

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

    def remove_others(self, results: Mapping[str, Result], keep: Collection[str]) -> None:
        """Remove all files but those of ``results`` and those to ``keep``: scans that left the
        cohort, and what killed runs have left."""
        kept = set(keep)
        for scan_id, result in results.items():
            kept.update(self._names(scan_id, result))
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()

    def _find(self, job: Job) -> Result | None:
        for place in self._places:
            result = _read(place / RESULT.format(job.scan_id))
            if result is None or result.key != job.key:
                continue
            names = self._names(job.scan_id, result)
            if not all((place / name).exists() for name in names):
                continue
            if result.volume_sha256 and result.volume_sha256 != hash_file(
                place / VOLUME.format(job.scan_id)
            ):
                continue
            if place != self.folder:
                for name in names:
                    link(place / name, self.folder / name)
            return result
        return None

    def _names(self, scan_id: str, result: Result) -> list[str]:
        """Return the files that a scan with this result has."""
        files = self._files if result.volume_sha256 else (RESULT,)
        return [name.format(scan_id) for name in files]


def _read(path: Path) -> Result | None:
    try:
        return Result(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
