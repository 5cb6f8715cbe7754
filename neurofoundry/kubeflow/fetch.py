"""Raw data onto the store, in the DVC version that a run asks for.

The `dvc` command does it, from any of its remotes, without git. A version lies in STORE/data/MD5,
named as the .dvc file names it, and appears whole or not at all. Its files are hard links into a
cache beside it: what was downloaded before a kill, or for another version, is not downloaded again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from neurofoundry.errors import DataError, UsageError
from neurofoundry.kubeflow.schemas import DvcFile, DvcOutput
from neurofoundry.params import load
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.output import lock_folder
from neurofoundry.runtime.progress import LINE_EVERY_S

DATA = "data"
"""What the repository calls its raw data: `dvc add data` made data.dvc."""

CACHE = """\
[core]
    no_scm = true
    analytics = false
[cache]
    dir = {}
    type = "hardlink,copy"
"""


def fetch(store: Path, *, version: str, repository: str, revision: str) -> Path:
    """Return the folder of the raw data; download it unless it is there.

    ``version`` is the md5 of the .dvc file, or '' for whatever the ``revision`` of the
    ``repository`` has. Raises UsageError and DataError.
    """
    versions = store / DATA
    if version and (versions / version).is_dir():
        return versions / version
    if not repository:
        raise DataError(
            f"{versions / version}: no raw data there, and no repository to fetch it from. Put the "
            "data there, or give data_repository and data_revision (docs/kubeflow.md)."
        )
    if Path(repository).is_dir():
        repository = str(Path(repository).resolve())
    versions.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{repository}\0{revision}".encode()).hexdigest()[:16]
    work = versions / f".{name}.partial"
    (work / ".dvc").mkdir(parents=True, exist_ok=True)
    lock = lock_folder(work, versions)
    try:
        return _download(work, versions, version, repository, revision)
    finally:
        shutil.rmtree(work)  # what was downloaded is in the cache
        os.close(lock)


def _download(work: Path, versions: Path, version: str, repository: str, revision: str) -> Path:
    """Bring what the revision names into ``versions``, by way of the folder ``work``."""
    get = ("get", repository, "--force", *(["--rev", revision] if revision else []))
    _dvc(work, *get, f"{DATA}.dvc", "--out", "asked")
    origin = f"{repository} at {revision or 'its default branch'}"
    data = _data_of(work / "asked", origin)
    if version not in ("", data.md5):
        raise UsageError(
            f"{origin}: found data {data.md5}, expected {version}. Give the revision that "
            "has it, or leave data_version empty."
        )
    folder = versions / data.md5
    if not folder.is_dir():
        LOGGER.info("%s: %d files, %.1f GB", folder, data.nfiles, data.size / 1e9)
        _dvc(work, *get, ".dvc/config", "--out", ".dvc/config")  # the remotes
        (work / ".dvc/config.local").write_text(CACHE.format(versions.resolve() / ".cache"))
        (work / "asked").replace(work / f"{DATA}.dvc")
        _dvc(work, "pull", "--force", f"{DATA}.dvc")
        (work / DATA).rename(folder)
    return folder


def _data_of(path: Path, origin: str) -> DvcOutput:
    """Read the folder of raw data that a .dvc file stands for. Raises DataError."""
    with suppress(UsageError):
        (folder,) = load(path, DvcFile).outs
        if folder.md5.endswith(".dir") and folder.path == DATA:
            return folder
    raise DataError(f"{origin}: {DATA}.dvc is not what `dvc add {DATA}` writes for a folder.")


def _dvc(work: Path, *words: str) -> None:
    """Run dvc in ``work``. Raises UsageError with what it says first."""
    command = f"dvc {' '.join(words)}"
    code, said = _run([sys.executable, "-m", "dvc", *words], work, command)
    if code:
        _, _, error = said.partition("ERROR: ")
        first = (error or said).strip().partition("\n")[0]
        raise UsageError(
            f"`{command}`: {first[:400]}. Check the repository, the revision, the "
            "remote and its keys (docs/kubeflow.md), then run again: it resumes."
        )


def _run(words: Sequence[str], folder: Path, name: str) -> tuple[int, str]:
    """Run a process, logging a line a minute; return its exit code and what it wrote to stderr."""
    started = time.monotonic()
    with subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,  # nobody answers a question for a password
        stdout=sys.stderr,  # what is asked for is ours to say
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while True:
                try:
                    _, said = process.communicate(timeout=LINE_EVERY_S)
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    LOGGER.info("%s: %.0f min", name, (time.monotonic() - started) / 60)
        except BaseException:
            process.kill()
            raise
