"""Files of named arrays (.npz) that carry the key of what they are made from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofoundry.runtime.files import atomic

KEY = "made_of"


def write_arrays(path: Path, *, key: str, compress: bool = False, **arrays: NDArray[Any]) -> None:
    """Write arrays and the ``key``, as a whole or not at all."""
    save: Callable[..., None] = np.savez_compressed if compress else np.savez
    with atomic(path) as temporary:
        save(temporary, **arrays, **{KEY: np.array(key)})


def key_of_arrays(path: Path) -> str | None:
    """Return the key that `write_arrays` was given; None where there is no such file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return str(content[KEY])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
