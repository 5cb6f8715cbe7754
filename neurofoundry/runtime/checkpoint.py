"""Exact resume: what a training loop needs to go on as if it had never been stopped.

A file's name holds the hash of its content, so that a file torn by a crash is known for what it
is. The newest two are kept.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neurofoundry.errors import UsageError
from neurofoundry.runtime.files import hash_file

KEPT = 2


def save(folder: Path, state: dict[str, Any], *, step: int, made_of: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, as a whole or not at all.

    ``made_of`` names what the state comes from, such as parameters and data, in plain values.
    """
    folder.mkdir(exist_ok=True)
    temporary = folder / ".checkpoint.tmp"
    content = io.BytesIO()  # torch itself would report a full disk as a defect of its own
    torch.save({**state, "made_of": dict(made_of)}, content)
    with temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / f"step-{step:09d}-{hash_file(temporary)[:16]}.pt")
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(folder: Path, *, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None when there is none.

    Raises UsageError when it is made of something else, and names the difference.
    """
    for path in _newest_first(folder):
        if hash_file(path).startswith(path.stem.rpartition("-")[2]):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            _check(path, state["made_of"], made_of)
            return state
        print(f"{path.name}: torn; going on from the checkpoint before it", file=sys.stderr)
    return None


def _check(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    one, other = _flat(found), _flat(expected)
    differing = [
        f"{name} was {one.get(name, 'not there')}, is {other.get(name, 'not there')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    if differing:
        raise UsageError(
            f"{path.parent.name}/{path.name} belongs to another run: {'; '.join(differing)}. Go "
            f"back to what it was, or remove {path.parent} to start anew."
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
    """An event that SIGTERM sets, so that a loop can write a last checkpoint before it ends."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
