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
from contextlib import suppress
from pathlib import Path

from neurofoundry.errors import DataError, UsageError
from neurofoundry.kubeflow.schemas import DvcFile, DvcOutput
from neurofoundry.params import load
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.output import lock_folder

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
    """The folder of the raw data; downloaded unless it is there.

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
    origin = f"{repository} at {revision or 'its default branch'}"
    versions.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{repository}\0{revision}".encode()).hexdigest()[:16]
    work = versions / f".{name}.partial"
    (work / ".dvc").mkdir(parents=True, exist_ok=True)
    lock = lock_folder(work, versions)
    try:
        at = ["--rev", revision] if revision else []
        get = ("get", repository, "--force", *at)
        _dvc(work, *get, f"{DATA}.dvc", "--out", "asked")
        asked = _data_of(work / "asked", origin)
        if version not in ("", asked.md5):
            raise UsageError(
                f"{origin}: found data {asked.md5}, expected {version}. Give the revision that "
                "has it, or leave data_version empty."
            )
        folder = versions / asked.md5
        if not folder.is_dir():
            LOGGER.info("%s: %d files, %.1f GB", folder, asked.nfiles, asked.size / 1e9)
            _dvc(work, *get, ".dvc/config", "--out", ".dvc/config")  # the remotes
            (work / ".dvc/config.local").write_text(CACHE.format(versions.resolve() / ".cache"))
            (work / "asked").replace(work / f"{DATA}.dvc")
            _dvc(work, "pull", "--force", f"{DATA}.dvc")
            (work / DATA).rename(folder)
    finally:
        shutil.rmtree(work)  # what was downloaded is in the cache
        os.close(lock)
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
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=work,
        stdin=subprocess.DEVNULL,  # nobody answers a question for a password
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        _, _, said = done.stderr.partition("ERROR: ")
        first = (said or done.stderr).strip().partition("\n")[0]
        raise UsageError(
            f"`dvc {' '.join(words)}`: {first[:400]}. Check the repository, the revision, the "
            "remote and its keys (docs/kubeflow.md), then run again: it resumes."
        )
