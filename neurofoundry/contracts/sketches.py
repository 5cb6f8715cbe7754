"""Sketches of brains: 256 numbers by which a copy of an image is known under another hash.

A volume is averaged in cells of 6 mm, which every standard grid divides into; what varies slowly
over 18 mm, as all brains do alike, is subtracted; what is left (25,600 cells, of norm 1) is
multiplied by 256 rows of fixed random signs (Achlioptas, J Comput Syst Sci 2003, 66:671). The
cosine of two sketches estimates the correlation of two brains with a standard error of
(1 - r²) / 16.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIMILAR = "similar.tsv"
"""In volumes/: pairs of scans of different persons that may show one brain."""

CELL_MM = 6
LENGTH = 256
COPY = 0.94
"""Least correlation of an image and its copy: re-exported, rescaled or noisy copies of real heads
have 0.954 to 0.993; another scan of the same person at most 0.80, but 0.95 on the same scanner,
and of a phantom."""
SAME_PERSON = 0.65
"""Least correlation that two scans of one person are likely to have: real rescans have 0.71 to
0.77 and defaced copies 0.90; other persons at most 0.37, and phantoms 0.60."""
REMEDY = (
    "look at both; if they are one person, exclude one of them in qc_overrides.tsv, or give both "
    "scans one subject (ingest.shared_subjects where datasets share labels) and ingest again"
)
"""What to do about two names of one person, who may be learned from and tested."""
_SLOW_CELLS = 3
_STEPS = 32
"""Steps of int8 for the standard deviation of a sketch's numbers, which is 1."""


def detail(volume: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the detail of a volume, in any order of its axes, as a vector of norm 1.

    Only what is not 0 is brain. A volume without any gives zeros.
    """
    from scipy import ndimage

    edge = round(max(volume.shape) * CELL_MM / 192)
    cells = [size // edge for size in volume.shape]
    blocks = volume.reshape(cells[0], edge, cells[1], edge, cells[2], edge)
    filled = np.count_nonzero(blocks, axis=(1, 3, 5)) / edge**3
    means = blocks.sum(axis=(1, 3, 5), dtype=np.int64) / edge**3 / np.maximum(filled, 1e-6)
    slow = ndimage.uniform_filter(means * filled, _SLOW_CELLS)
    slow /= np.maximum(ndimage.uniform_filter(filled, _SLOW_CELLS), 1e-6)
    brain = filled > 0.5
    fast = np.where(brain, means - slow, 0)
    fast[brain] -= fast[brain].mean() if brain.any() else 0
    norm = np.linalg.norm(fast)
    return np.asarray(fast / norm if norm else fast, np.float32).ravel()


def sketch(volume: NDArray[np.int16]) -> str:
    """Return the sketch of a volume with axes (z, y, x), 256 int8 in base64."""
    fast = detail(volume)
    steps = np.clip(np.rint(_signs(fast.size) @ fast * _STEPS), -127, 127).astype(np.int8)
    return base64.b64encode(steps.tobytes()).decode()


def unit_rows(sketches: Sequence[str]) -> NDArray[np.float32]:
    """Return sketches as rows of norm 1, (n, 256), whose products are cosines.

    Raises ValueError for what is no sketch.
    """
    packed = b"".join(base64.b64decode(one, validate=True) for one in sketches)
    rows = np.frombuffer(packed, np.int8).reshape(len(sketches), LENGTH).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return np.asarray(rows / lengths, np.float32)


def nearest(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest cosine of each of the ``rows`` with any of the ``others``; -1 without."""
    if not len(others):
        return np.full(len(rows), -1, np.float32)
    blocks = [(block @ others.T).max(axis=1) for block in _blocks(rows)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def pairs(rows: NDArray[np.float32], least: float) -> list[tuple[int, int]]:
    """Return the pairs of rows, the lower first, whose cosine is at least ``least``."""
    found = []
    begin = 0
    for block in _blocks(rows):
        near = np.argwhere(block @ rows[begin:].T >= least) + begin
        found += [(int(one), int(other)) for one, other in near if one < other]
        begin += len(block)
    return found


def _blocks(rows: NDArray[np.float32], size: int = 1024) -> list[NDArray[np.float32]]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


@lru_cache(maxsize=1)
def _signs(cells: int) -> NDArray[np.float32]:
    """Return the random signs, (256, cells): the same everywhere, as RandomState is frozen."""
    drawn = np.random.RandomState(20240229).randint(0, 2, (LENGTH, cells), dtype=np.int8)
    return (2 * drawn - 1).astype(np.float32)
