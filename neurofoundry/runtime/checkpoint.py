"""Exact resume: what a training loop needs to continue as if it had never been stopped.

A file's name holds the hash of its content, so that a file that a crash cut short is recognized.
The newest two are kept.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neurofoundry.errors import UsageError
from neurofoundry.runtime.code import differing
from neurofoundry.runtime.files import atomic, hash_file
from neurofoundry.runtime.log import LOGGER

KEPT = 2


def save(
    folder: Path,
    state: Mapping[str, Any],
    *,
    step: int,
    made_of: Mapping[str, Any],
    code: Mapping[str, str],
) -> None:
    """Write tensors, numbers, strings and containers of them, as a whole or not at all.

    ``made_of`` names what the state comes from, such as parameters and data, in plain values;
    ``code`` is the result of `deciding_code`.
    """
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()  # torch itself would report a full disk as a defect of its own
    torch.save({**state, "made_of": dict(made_of), "code": dict(code)}, buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"step-{step:09d}-{digest[:16]}.pt"
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # The second: what a kill while writing left.
    for old in (*_newest_first(folder)[KEPT:], *folder.glob(".step-*")):
        old.unlink()


def load(
    folder: Path,
    *,
    made_of: Mapping[str, Any],
    code: Mapping[str, str],
    accept_code_change: bool = False,
) -> dict[str, Any] | None:
    """Read the newest whole checkpoint, on the CPU; None when there is none.

    Raises UsageError, which names the difference, where it is made of something else, or was
    written by other code and ``accept_code_change`` is not set. ``code_changes`` of the state then
    names the modules whose change was accepted, now or before.
    """
    for path in _newest_first(folder):
        if hash_file(path).startswith(path.stem.rpartition("-")[2]):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            _check_origin(path, state["made_of"], made_of)
            changed = differing(state["code"], code)
            if changed and not accept_code_change:
                raise UsageError(_refusal(path, changed))
            accepted = state.get("code_changes", ())
            return {**state, "code_changes": sorted({*accepted, *changed})}
        LOGGER.warning("%s: cut short; trying the checkpoint before it", path.name)
    return None


def _check_origin(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    one, other = _flat(then), _flat(now)
    changed = [
        f"{name} was {one.get(name, 'not there')}, is {other.get(name, 'not there')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    if changed:
        raise UsageError(
            f"{path.parent.name}/{path.name} belongs to another run: {'; '.join(changed)}. Go back "
            f"to what it was, or remove {path.parent} to start anew."
        )


def _refusal(path: Path, changed: list[str]) -> str:
    return (
        f"{path.parent.name}/{path.name} was written by other code: {', '.join(changed)} changed "
        "since. Run the code that wrote it; or give --accept-code-change to continue all the same, "
        f"which stage.json will record; or remove {path.parent} to start anew."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by names such as simclr.temperature."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


@contextmanager
def termination() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, so that a loop can write a last checkpoint and end."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
