"""What an output may replace: nothing that the same command has not made itself.

Every command that writes asks here before it does anything.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from neurofoundry.errors import UsageError
from neurofoundry.runtime.files import read_json

MOUNTS = Path("/proc/self/mountinfo")
"""What is mounted, and where: the fifth word of each line (proc(5))."""

Identity = tuple[int, int] | Path
"""Device and inode of what exists, which all its names share; else its resolved path."""


def guard_output(
    out: Path,
    *,
    makes: str,
    inputs: Collection[Path] = (),
    option: str = "--out",
    marks: Collection[str] = ("stage.json",),
    only: Collection[str] = (),
) -> None:
    """Raise UsageError unless the folder ``out`` can be written, or replaced, without loss.

    It must be new, empty, or an earlier output of the same kind: one that holds any of the paths
    ``marks``, nothing beside ``only`` if that is given, and a stage.json that names ``makes`` if
    that is a mark. It must be no file, no input nor above or within one, and neither ``/``, a home
    or the working folder nor above these.
    """
    place = guard_place(out, inputs=inputs, option=option)
    if not place.exists():
        return
    if not place.is_dir():
        raise _refusal(out, option, "a file, and a folder is written")
    content = sorted(path.name for path in place.iterdir())
    if not content:
        return
    foreign = [name for name in content if only and name not in only]
    if foreign or not any(os.path.lexists(place / mark) for mark in marks):
        held = foreign or content
        shown = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        raise _refusal(out, option, f"a folder that holds something else ({shown})")
    if "stage.json" in marks and (stage := stage_of(place)) != makes:
        whose = f"the output of '{stage}'" if stage else "a folder whose stage.json names no stage"
        raise _refusal(out, option, f"{whose}, not of '{makes}'")


def guard_mount(out: Path, *, option: str = "--out") -> None:
    """Raise UsageError where ``out`` itself is mounted, as a volume of a container may be.

    Nothing can be renamed to it, and that would be found when all the work is done.
    """
    place = re.sub(r"[\\ \t\n]", lambda each: f"\\{ord(each[0]):03o}", str(out.resolve()))
    with suppress(OSError):
        if place in [line.split()[4] for line in MOUNTS.read_text().splitlines()]:
            fix = f"Give a folder in it, such as {out / 'NAME'}"
            raise _refusal(out, option, "a mounted volume, whose place no folder can take", fix)


def guard_table(out: Path, *, columns: Sequence[str], inputs: Collection[Path] = ()) -> None:
    """Raise UsageError unless the table ``out`` can be written, or replaced, without loss.

    A table that is there already must begin with ``columns``, as those of this command do.
    """
    place = guard_place(out, inputs=inputs, fix="Give a new file")
    if place.is_dir():
        raise _refusal(out, "--out", "a folder, and a table is written", "Give a new file")
    if place.exists() and not _begins_with(place, columns):
        raise _refusal(out, "--out", "a file that this command has not written", "Give a new file")


def guard_file(
    out: Path, *, option: str = "--out", begins: bytes = b"", makes: bytes | None = None
) -> None:
    """Raise UsageError unless the file ``out`` can be written, or replaced, without loss.

    One that is there must be empty, or begin as those of this command do, or be what it ``makes``.
    """
    place = guard_place(out, option=option, fix="Give a new file")
    if place.is_dir():
        raise _refusal(out, option, "a folder, and a file is written", "Give a new file")
    if not place.exists() or not place.stat().st_size:
        return
    content = place.read_bytes() if place.is_file() else b""
    if content != makes and not (begins and content.startswith(begins)):
        raise _refusal(out, option, "a file that this command has not written", "Give a new file")


def guard_manifest(out: Path, *, makes: str) -> None:
    """Raise UsageError unless ``out`` is new, or a manifest of an output of ``makes``."""
    place = guard_place(out, fix="Give a new file")
    if place.is_dir():
        why = "a folder, and with --store a manifest is written, which is a file"
        raise _refusal(out, "--out", why, "Give a new file")
    if place.exists() and (manifest := _read_json(place)).get("stage") != makes:
        what = "a manifest of another stage" if "stage" in manifest else "a file but no manifest"
        raise _refusal(out, "--out", what, "Give a new file")


def guard_place(
    out: Path,
    *,
    inputs: Collection[Path] = (),
    option: str = "--out",
    fix: str = "Give a new or empty folder",
) -> Path:
    """Return where ``out`` lies, links followed; raise UsageError where nothing may be written."""
    if out.parts and out.parts[0].startswith("~"):  # libraries would look for a home in it
        raise _refusal(out, option, "a path with '~', which no shell has replaced", fix)
    try:
        place = out.resolve()
        # The longest name that work on it needs, seen at the end of all the work otherwise.
        Path(place.parent, f"..tmp.{place.name}.run.json").exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise _refusal(out, option, f"no path that can be used ({error})", fix) from error
    if out.is_symlink() and not place.exists():
        raise _refusal(out, option, "a link that leads nowhere", fix)
    if (file := next((path for path in place.parents if path.is_file()), None)) is not None:
        raise _refusal(out, option, f"below {file}, which is a file", fix)
    for known, what in (
        (Path.cwd(), "the working folder"),
        *((home, "a home") for home in _homes()),
    ):
        if _identity(place) in _identities(known):
            same = _identity(place) == _identity(known)
            raise _refusal(out, option, what if same else f"above {what}", fix)
    for given in inputs:
        if _identity(place) == _identity(given):
            raise _refusal(out, option, "an input", fix)
        if _identity(place) in _identities(given):
            raise _refusal(out, option, f"above the input {given}", fix)
        if _identity(given) in _identities(place):
            raise _refusal(out, option, f"within the input {given}", fix)
    return place


def stage_of(folder: Path) -> str | None:
    """Return the stage that stage.json in a folder names; None where there is none."""
    stage = _read_json(folder / "stage.json").get("stage")
    return str(stage) if stage else None


def _refusal(
    out: Path, option: str, what: str, fix: str = "Give a new or empty folder"
) -> UsageError:
    return UsageError(f"{option} {out}: this is {what}. {fix}.")


def _identity(path: Path) -> Identity:
    try:
        status = path.stat()
    except OSError:
        return path.resolve()
    return status.st_dev, status.st_ino


def _identities(path: Path) -> set[Identity]:
    """Return the identities of a path and of all folders that it lies in."""
    place = path.resolve()
    return {_identity(each) for each in (place, *place.parents)}


def _homes() -> list[Path]:
    """Return the homes of this user: that of the environment and that of the system."""
    homes = [os.environ.get("HOME", "")]
    with suppress(KeyError):  # a container may run as a user that no one knows
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return [Path(home) for home in homes if os.path.isabs(home)]


def _begins_with(table: Path, columns: Sequence[str]) -> bool:
    with table.open("rb") as file:
        first = file.readline(1 << 20).rstrip(b"\r\n")
        if table.suffix != ".parquet":
            return (first + b"\t").startswith("".join(f"{name}\t" for name in columns).encode())
        # The names of the columns are in the footer; its length precedes the last four bytes.
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read()
        file.seek(max(0, size - 8 - int.from_bytes(tail[:4], "little")))
        footer = file.read()
    return tail[4:] == b"PAR1" and all(name.encode() in footer for name in columns)


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
