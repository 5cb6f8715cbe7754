"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what differs once a file has been replaced, cut or written to; None if it is gone.

    Who hashes a file and then reads it compares this before and after: it is the same file then.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, with the same suffixes (.nii.gz), that becomes ``path``.

    So ``path`` holds the old content or the new, never half of it.
    """
    stem, dot, suffixes = path.name.partition(".")
    temporary = path.with_name(f".{stem}.tmp{dot}{suffixes}")
    temporary.unlink(missing_ok=True)  # of a kill; or a link, and what it leads to is not ours
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, as a whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, as a whole or not at all; NaN and infinity are refused (ValueError)."""
    text = json.dumps(content, indent=2, default=to_plain, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises OSError, and ValueError for whatever else a file may hold."""
    refuse_pipe(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found a {type(content).__name__}")
    return content


def refuse_pipe(path: Path) -> None:
    """Raise ValueError where a path names a pipe or a device: reading it might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("a pipe or device, expected a file")


def spelled(folder: Path, name: str | Path) -> Path:
    """Return the path of ``name`` in a folder in the Unicode form in which the disk has it.

    A Mac writes é as two letters, others as one, and nobody sees the difference.
    """
    if str(name).isascii():
        return folder / name
    for part in Path(name).parts:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        there = (form for form in forms if os.path.lexists(folder / form))
        folder = folder / next(there, part)
    return folder


def link(source: Path | str, target: Path | str) -> None:
    """Give a file a second name, ``target``, which may exist.

    Where the file system has no hard links, the file is copied, as a whole or not at all.
    """
    target = Path(target)
    target.unlink(missing_ok=True)
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)


def short(sha256: str) -> str:
    """Return the beginning of a hash, by which people tell it from others."""
    return sha256[:10]


def hash_json(content: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_plain(value: Any) -> Any:
    """Convert a pydantic model or a numpy number to what JSON knows, for `json.dumps`."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
