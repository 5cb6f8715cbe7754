"""The output folder of a stage: one writer at a time, and it appears whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neurofoundry.errors import UsageError
from neurofoundry.runtime.files import read_json, write_text
from neurofoundry.runtime.store import recorded_key, write_manifest


class Output:
    """A folder that a stage publishes under a key, the hash of what it is made from."""

    def __init__(self, folder: Path) -> None:
        # What a link leads to is replaced, and the link stays.
        self.folder = folder = folder.resolve() if _is_alias(folder) else folder
        self.partial = folder.with_name(f".{folder.name}.partial")
        """Where work happens until it is published. It survives a kill."""
        self._replaced = folder.with_name(f".{folder.name}.replaced")
        """Where the old output waits while the new one takes its place."""

    def find(self, key: str) -> Path | None:
        """Return the output with this key, be it an old one that is about to be put back."""
        places = (self.folder, self._replaced)
        return next((place for place in places if recorded_key(place) == key), None)

    def current(self, key: str) -> bool:
        """Return whether the output has this key; `recover` first."""
        self.recover()
        return recorded_key(self.folder) == key

    def recover(self) -> None:
        """Undo what a kill in `publish` has left: put the old output back, or remove it."""
        if self._replaced.exists() and not self.folder.exists():
            self._replaced.rename(self.folder)
        elif self._replaced.exists():
            _remove(self._replaced)

    def guard(self) -> None:
        """Raise UsageError where work on this output would destroy what is somebody's own.

        That is a folder with the name of one that the work needs, or a file in the output itself.
        """
        for place in (self.partial, self._replaced):
            if os.path.lexists(place) and not _is_ours(place):
                raise UsageError(
                    f"{place}: work on {self.folder} needs this name, and something else has it. "
                    "Move it elsewhere, then run the same command again."
                )
        if foreign := _foreign(self.folder):
            shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise UsageError(
                f"{self.folder}: it would be replaced, and holds what no run has written "
                f"({shown}). Move that elsewhere, then run the same command again."
            )

    @contextmanager
    def lock(self, key: str, *, keep: bool) -> Iterator[Path]:
        """Hold the partial folder for this process alone.

        What an earlier run has left in it stays if that run had the same key, or if ``keep``.
        Raises UsageError when another process is writing, or somebody removes the folder meanwhile.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        key_file = self.partial / ".key"
        begun = key_file.read_text() if key_file.exists() else None
        if not keep and key not in (begun, recorded_key(self.partial)):
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(exist_ok=True)
        descriptor = lock_folder(self.partial, self.folder)
        try:
            if recorded_key(self.partial) != key:
                (self.partial / "stage.json").unlink(missing_ok=True)
                write_text(key_file, key)
            yield self.partial
        except OSError as error:
            if self.partial.is_dir():
                raise
            raise UsageError(
                f"{self.partial}: the work was done there, and somebody has removed it. "
                f"{self.folder} is as it was: run the same command again."
            ) from error
        finally:
            os.close(descriptor)

    def publish(self, out: Path) -> None:
        """Put the whole partial folder at ``out``, in place of the output that was there.

        Raises UsageError where the file system refuses; the old output is then where it was.
        """
        target = Output(out)
        target.recover()
        target.guard()  # again: hours may have passed
        (self.partial / ".key").unlink(missing_ok=True)
        try:
            if target.folder.exists():
                target.folder.rename(target._replaced)
            self.partial.rename(target.folder)
        except OSError as error:
            with suppress(OSError):  # else the next run puts it back
                target.recover()
            raise UsageError(
                f"{out}: the new output is whole, but cannot be put in its place "
                f"({error.strerror}); nothing is lost. Allow folders to be renamed in "
                f"{target.folder.parent}, then run the same command again."
            ) from error
        _remove(target._replaced)


LEFT_BY_SYSTEMS = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|\.(nfs|fuse_hidden)[0-9a-f]+"
)
"""Names of files that systems and network disks leave in folders: nobody's own."""


def names_of(folder: Path) -> list[str]:
    """Return the files of a folder, below it too, but for those that systems leave."""
    return [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if (file.is_symlink() or not file.is_dir()) and not LEFT_BY_SYSTEMS.fullmatch(file.name)
    ]


HIDDEN = (".key", ".bidsignore")
"""The only hidden files of outputs, at their top; BIDS gives the second its name."""


def remove_temporaries(partial: Path) -> None:
    """Remove all that is hidden below a partial folder but ``HIDDEN``: kills have left it."""
    kept = {partial / name for name in HIDDEN}
    for path in sorted(partial.rglob(".*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path not in kept and not LEFT_BY_SYSTEMS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def hash_name(name: str) -> str:
    """Return what stage.json knows a file by: names are those of scans, and may be of people."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _foreign(folder: Path) -> list[str]:
    """Return the files of a finished output that its stage has not written."""
    try:
        known = str(read_json(folder / "stage.json")["files"]).split()
    except (OSError, ValueError, KeyError):
        return []
    ours = {*known, hash_name("stage.json"), hash_name(".key")}
    return [name for name in names_of(folder) if hash_name(name) not in ours]


def _is_ours(place: Path) -> bool:
    """Return whether a folder beside an output is left from work on it."""
    if place.is_symlink() or not place.is_dir():
        return False
    marks = (place / ".key", place / "stage.json")
    # A kill may have come before the key had its name.
    return any(mark.exists() for mark in marks) or set(names_of(place)) <= {"..tmp.key"}


def _remove(folder: Path) -> None:
    """Remove a finished output, stage.json last: what a kill leaves is known by it."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "stage.json":
                path.unlink()
        (folder / "stage.json").unlink(missing_ok=True)
        folder.rmdir()


def hand_over(folder: Path, out: Path) -> Path:
    """Leave a manifest at ``out`` when the output itself lies elsewhere, in a store."""
    if folder != out:
        write_manifest(out, folder, read_json(folder / "stage.json"))
    return folder


def _is_alias(folder: Path) -> bool:
    """Return whether the last part of a path is not the name of a folder."""
    return folder.is_symlink() or folder.name in ("", "..")


def lock_folder(partial: Path, out: Path) -> int:
    """Lock the partial folder of ``out`` and return the descriptor that holds the lock.

    The lock ends with the process, however it ends. Raises UsageError when another process has it.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise UsageError(
                f"{out}: another process is writing this output. Wait for it, or end it first."
            ) from None
        # Some network file systems cannot lock a folder; there, nothing guards against two writers.
    return descriptor
