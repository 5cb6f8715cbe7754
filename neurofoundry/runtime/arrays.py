"""Files of named arrays (.npz) that carry the key of what they are made from."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofoundry.runtime import machine
from neurofoundry.runtime.files import atomic

KEY = "made_of"

_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, LookupError, TypeError, OverflowError),
    *(MemoryError, RuntimeError),  # it claims a huge array; it is encrypted, or packed strangely
)


def write_arrays(path: Path, *, key: str, compress: bool = False, **arrays: NDArray[Any]) -> None:
    """Write arrays and the ``key``, as a whole or not at all."""
    save: Callable[..., None] = np.savez_compressed if compress else np.savez
    with atomic(path) as temporary:
        save(temporary, **arrays, **{KEY: np.array(key)})


@contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Yield the arrays of a file by name; each is read when it is asked for, and runs no code.

    Raises OSError, and ValueError for whatever else a file may hold, whoever wrote it: arrays
    that are not there, not whole, or do not fit into memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max((member.file_size for member in archive.infolist()), default=0)
        if largest > (free := machine.memory()):
            raise ValueError(f"an array of {largest / 1e9:.0f} GB, and {free / 1e9:.0f} GB free")
        with np.load(path, allow_pickle=False) as content:
            yield content
    except _DAMAGED as error:
        raise ValueError(f"not whole, or not these arrays: {error}") from error


def key_of_arrays(path: Path) -> str | None:
    """Return the key that `write_arrays` was given; None where there is no such file."""
    try:
        with open_arrays(path) as content:
            return str(content[KEY])
    except (OSError, ValueError):
        return None
