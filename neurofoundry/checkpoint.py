"""Exact resume: what a training loop needs to go on as if it had never been stopped.

A file's name holds the hash of its content, so that a file torn by a crash is known for what it
is. The newest two are kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neurofoundry.stage import hash_file

KEPT = 2


def save(folder: Path, state: dict[str, Any], *, step: int) -> None:
    """Write tensors, numbers, strings and containers of them, as a whole or not at all."""
    folder.mkdir(exist_ok=True)
    temporary = folder / ".checkpoint.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / f"step-{step:09d}-{hash_file(temporary)[:16]}.pt")
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None when there is none."""
    for path in _newest_first(folder):
        if hash_file(path).startswith(path.stem.rpartition("-")[2]):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        print(f"{path.name}: torn; going on from the checkpoint before it", file=sys.stderr)
    return None


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
