"""Maps on regular lattices in millimetres, and looking them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[Any]
"""float32, unless a docstring says otherwise."""
Triple = tuple[float, float, float]

_CHUNK = 16384


@dataclass(frozen=True)
class Grid:
    """A map and its place: values (nx, ny, nz, channels), origin (mm) and spacing (mm)."""

    values: Array
    origin: tuple[float, float, float]
    spacing: float

    def sample(self, points: Array) -> Array:
        """Trilinear values at `points` (n, 3) in mm, as (n, channels); edges extend outwards."""
        *shape, channels = self.values.shape
        table = self.values.reshape(-1, channels)
        steps = np.array([shape[1] * shape[2], shape[2], 1], np.int32)
        corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], np.int32)
        offsets = (corners * steps).sum(axis=1, dtype=np.int32)
        out = np.empty((len(points), channels), np.float32)
        # Chunks that fit the processor's cache are several times faster.
        for start in range(0, len(points), _CHUNK):
            position = (
                points[start : start + _CHUNK].T - np.asarray(self.origin, np.float32)[:, None]
            )
            position /= np.float32(self.spacing)
            row = np.zeros(position.shape[1], np.int32)
            weight = np.empty((8, len(row)), np.float32)
            for axis in range(3):
                along = np.clip(position[axis], 0, shape[axis] - 1)
                low = np.minimum(along.astype(np.int32), np.int32(shape[axis] - 2))
                row += low * steps[axis]
                position[axis] = along - low.astype(np.float32)
            x, y, z = position
            weight[7] = y * z
            weight[6] = y - weight[7]
            weight[5] = z - weight[7]
            weight[4] = 1 - y - weight[5]
            weight[:4] = weight[4:] * (1 - x)
            weight[4:] *= x
            # One sparse product reads the eight corners of all points.
            matrix = sparse.csr_array(
                (
                    weight.T.ravel(),
                    (row[:, None] + offsets).ravel(),
                    np.arange(0, 8 * len(row) + 1, 8, dtype=np.int32),
                ),
                shape=(len(row), len(table)),
            )
            out[start : start + _CHUNK] = matrix @ table
        return out

    def nearest(self, points: Array, channel: int) -> Array:
        """Values (n,) of one channel at the nodes closest to `points` (n, 3), mm."""
        row = np.zeros(len(points), np.int32)
        for axis, size in enumerate(self.values.shape[:3]):
            position = (points[:, axis] - np.float32(self.origin[axis])) / np.float32(self.spacing)
            row = row * np.int32(size) + np.clip(position + 0.5, 0, size - 1).astype(np.int32)
        return self.values.reshape(-1, self.values.shape[3])[row, channel]


def lattice_shape(low: Triple, high: Triple, spacing: float) -> tuple[int, ...]:
    """Size of the lattice that starts at `low` and reaches `high` (mm) at least."""
    return tuple(int(np.ceil((b - a) / spacing)) + 1 for a, b in zip(low, high, strict=True))


def lattice_axes(low: Triple, shape: tuple[int, ...], spacing: float) -> list[Array]:
    """Coordinates (mm) of a lattice's nodes along each axis, ready to broadcast."""
    axes = [
        np.float32(a) + np.float32(spacing) * np.arange(n, dtype=np.float32)
        for a, n in zip(low, shape, strict=True)
    ]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def lattice_points(low: Triple, shape: tuple[int, ...], spacing: float) -> Array:
    """All nodes of a lattice as points (n, 3), mm."""
    axes = np.broadcast_arrays(*lattice_axes(low, shape, spacing))
    return np.stack(axes, axis=-1).reshape(-1, 3)
