"""A scan on its way into the cohort, and the findings that are recorded along the way."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from neurofoundry.contracts.cohort import T1W
from neurofoundry.errors import NeurofoundryError, is_of_machine
from neurofoundry.ingest.columns import Cells
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.links import CONTENT_STORE
from neurofoundry.runtime.log import log_defect
from neurofoundry.runtime.progress import Progress


class UnusableError(Exception):
    """Why a file cannot be used: 'CATEGORY: what was found, what was expected'."""


class NotFetchedError(UnusableError):
    """A file is a link or a pointer to content that is elsewhere."""


def check_fetched(start: bytes, what: str) -> None:
    """Raise NotFetchedError where a file, which begins so, stands for ``what`` Git has not
    fetched."""
    if start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start[:200]:
        raise NotFetchedError(
            f"a pointer: the {what} itself was not fetched (`git lfs pull`, `datalad get`)"
        )


@dataclass(frozen=True, eq=False)
class Scan:
    """A file that a dataset offers as a scan."""

    dataset: str
    subject: str
    """'sub-LABEL', within the dataset."""
    session: str
    """'ses-LABEL'; 'ses-1' where a subject has no sessions."""
    source: str
    """The kind of dataset: bids, dicom or table."""
    path: str
    """Relative to the data root; to the cohort folder for dicom."""
    file: Path
    """Where to read the image."""
    origin: str
    """What people know it by: its path, or the pseudonym of a DICOM series."""
    rank: tuple[object, ...]
    """Orders the scans of one session: the lowest is preferred."""
    rows: tuple[Cells, ...]
    """What the dataset's tables say about it, column to cell; the most specific row first."""
    header: Mapping[str, str | float] = field(default_factory=dict)
    """Columns known from the image's own header or sidecar."""
    contrast: str = T1W
    further: tuple[Scan, ...] = ()
    """Of the same session, in other contrasts."""
    others: tuple[Scan, ...] = ()
    """Of the same session and contrast, the best first: they may stand in for it."""
    person: str = ""
    published: str | None = None
    """The split that the data came with."""
    sha256: str = ""
    content: str = ""
    """Hash of the voxel values: equal for copies of an image, however they are compressed."""

    @property
    def images(self) -> tuple[Scan, ...]:
        """All images of the session that are used, or may be."""
        return (self, *self.others, *self.further)

    @property
    def scan_id(self) -> str:
        """The name of the scan in every table of the pipeline."""
        return "_".join(map(slug, (self.dataset, self.subject, self.session)))


@dataclass
class Findings:
    """What reading the data has brought to light: scans, what is excluded, what is worth noting."""

    data: Path
    """The data root."""
    scans: list[Scan] = field(default_factory=list)
    excluded: list[tuple[str, str, str]] = field(default_factory=list)
    """Dataset, path, reason."""
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    """Dataset, path, note: about scans that are used, though not quite as they are on disk."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Tables and sidecars that were read: path to SHA-256."""

    def exclude(self, dataset: str, path: Path | str, reason: object) -> None:
        """Record that a file is not used, and why."""
        self.excluded.append((dataset, self.name(path), _one_line(reason)))

    def note(self, dataset: str, path: Path | str, note: str) -> None:
        """Record what is worth knowing about a file that is used."""
        self.notes.append((dataset, self.name(path), _one_line(note)))

    def name(self, path: Path | str) -> str:
        """Return a path as tables show it: relative to the data root, printable."""
        return printable(path.relative_to(self.data).as_posix() if isinstance(path, Path) else path)

    def remember(self, path: Path) -> None:
        """Make a table or sidecar part of the data version."""
        name = self.name(path)
        if name not in self.hashes:
            self.hashes[name] = hash_file(path)


def natural_key(label: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that puts ses-2 before ses-10."""
    pieces = re.split(r"(\d+)", label)
    return tuple((int(piece), piece) if piece.isdecimal() else (-1, piece) for piece in pieces)


def printable(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) == "Cc" else letter
        for letter in text
    )


def check_location(file: Path, root: Path, *, any_name: bool = False) -> None:
    """Raise UnusableError unless ``file`` exists and lies in the dataset folder ``root``.

    ``any_name`` takes names that cannot be written in a table, too.
    """
    name = str(file.relative_to(root))
    if not any_name and printable(name) != name:
        raise UnusableError("odd name: it has control characters or is not UTF-8. Rename it")
    try:
        broken = file.is_symlink() and not file.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        if isinstance(error, PermissionError):
            raise
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it holds a NUL"
        raise UnusableError(f"no path that can be used: {why}. Correct or rename it") from None
    if broken:
        raise UnusableError(
            "broken link: its target does not exist. Fetch the content (`datalad get`, "
            "`dvc pull`) or copy the file"
        )
    real = os.path.realpath(file)
    if not (Path(real).is_relative_to(os.path.realpath(root)) or CONTENT_STORE.search(real)):
        raise UnusableError(
            "leads outside the dataset: expected a file within its folder. Copy the file there"
        )
    if not os.path.lexists(real):
        raise UnusableError("no such file: expected it where the table says")


Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def as_reason(what: str) -> Iterator[None]:
    """Raise UnusableError, ``what`` and why, where a file cannot be read.

    An OSError that says nothing of the file, as of a full disk, stays what it is.
    """
    try:
        yield
    except PermissionError as error:
        raise UnusableError(
            "no permission: the file or folder cannot be opened. Change its access rights"
        ) from error
    except OSError as error:
        if is_of_machine(error):
            raise
        raise UnusableError(f"{what}: {os.strerror(error.errno or 0)}") from error


def attempt(function: Callable[[Item], Result], item: Item) -> Result | UnusableError:
    """Return ``function(item)``, or why the item cannot be used: whatever goes wrong with one scan
    is its reason, and never the end of the run.

    Raises what is no scan's fault: UsageError, and OSError of a full disk.
    """
    try:
        with as_reason("unreadable"):
            return function(item)
    except UnusableError as reason:
        return reason
    except (NeurofoundryError, OSError):
        raise
    except Exception as error:
        log_defect("ingest", error)
        return UnusableError(
            f"defect of ingest: {type(error).__name__}. The log says where; please report it"
        )


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    what: str,
    unit: str,
    workers: int,
) -> Iterator[tuple[Item, Result | UnusableError]]:
    """`attempt` every item, yield it with the result in the order of the items, show progress.

    ``what`` is done, and ``unit`` are the items, in the words of a log: 'reading x: 3/9 files'. A
    result that is an UnusableError counts as failed.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        with Progress(what, len(items), unit=unit) as progress:
            for item, result in zip(
                items, pool.map(partial(attempt, function), items), strict=True
            ):
                progress.advance(failed=isinstance(result, UnusableError))
                yield item, result
    finally:
        pool.shutdown(cancel_futures=True)


def _one_line(text: object) -> str:
    return " ".join(printable(str(text).replace("\n", " ")).split())


def slug(label: str) -> str:
    """Return a label as part of a file name; a hash keeps apart labels that would look the same."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", label)
    if plain == label:
        return label
    return f"{plain.strip('-')}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
