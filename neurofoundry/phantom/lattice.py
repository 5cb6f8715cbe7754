"""Maps on regular lattices in millimetres, and interpolation in them."""

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
"""Points per chunk: what fits the processor's cache is interpolated several times faster."""
_CORNERS = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], np.int32)


@dataclass(frozen=True)
class LatticeMap:
    """Values (nx, ny, nz, channels) at the nodes of a lattice with an origin and a spacing, mm."""

    values: Array
    origin: Triple
    spacing: float

    def sample(self, points: Array) -> Array:
        """Interpolate trilinearly at ``points`` (n, 3), mm; return (n, channels).

        Outside the lattice the values at its border extend outwards.
        """
        nodes = self.values.reshape(-1, self.values.shape[3])
        sampled = np.empty((len(points), nodes.shape[1]), np.float32)
        for start in range(0, len(points), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            # One sparse product reads the eight corners of all points.
            sampled[chunk] = self._interpolation(points[chunk]) @ nodes
        return sampled

    def nearest(self, points: Array, channel: int) -> Array:
        """Return the values (n,) of one channel at the nodes closest to ``points`` (n, 3), mm."""
        node = np.zeros(len(points), np.int32)
        for axis, size in enumerate(self.values.shape[:3]):
            position = (points[:, axis] - np.float32(self.origin[axis])) / np.float32(self.spacing)
            node = node * np.int32(size) + np.clip(position + 0.5, 0, size - 1).astype(np.int32)
        return np.asarray(self.values.reshape(-1, self.values.shape[3])[node, channel])

    def _interpolation(self, points: Array) -> sparse.csr_array:
        """Return the weights of all nodes at each point: (n, nodes), with eight entries per row."""
        shape = self.values.shape[:3]
        strides = np.array([shape[1] * shape[2], shape[2], 1], np.int32)
        offsets = (_CORNERS * strides).sum(axis=1, dtype=np.int32)
        position = points.T - np.asarray(self.origin, np.float32)[:, None]
        position /= np.float32(self.spacing)
        node = np.zeros(position.shape[1], np.int32)
        for axis in range(3):
            along = np.clip(position[axis], 0, shape[axis] - 1)
            low = np.minimum(along.astype(np.int32), np.int32(shape[axis] - 2))
            node += low * strides[axis]
            position[axis] = along - low.astype(np.float32)
        return sparse.csr_array(
            (
                _corner_weights(*position).T.ravel(),
                (node[:, None] + offsets).ravel(),
                np.arange(0, 8 * len(node) + 1, 8, dtype=np.int32),
            ),
            shape=(len(node), int(np.prod(shape))),
        )


def _corner_weights(x: Array, y: Array, z: Array) -> Array:
    """Return trilinear weights (8, n) of a cell's corners, in the order of ``_CORNERS``.

    ``x``, ``y`` and ``z`` (n,) are positions within the cell, 0 to 1.
    """
    weight = np.empty((8, len(x)), np.float32)
    weight[7] = y * z
    weight[6] = y - weight[7]
    weight[5] = z - weight[7]
    weight[4] = 1 - y - weight[5]
    weight[:4] = weight[4:] * (1 - x)
    weight[4:] *= x
    return weight


def lattice_shape(low: Triple, high: Triple, spacing: float) -> tuple[int, ...]:
    """Return the size of the lattice that starts at ``low`` and reaches at least ``high``, mm."""
    return tuple(int(np.ceil((b - a) / spacing)) + 1 for a, b in zip(low, high, strict=True))


def lattice_axes(low: Triple, shape: tuple[int, ...], spacing: float) -> list[Array]:
    """Return the coordinates (mm) of the nodes along each axis, ready to broadcast."""
    axes = [
        np.float32(a) + np.float32(spacing) * np.arange(n, dtype=np.float32)
        for a, n in zip(low, shape, strict=True)
    ]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def lattice_points(low: Triple, shape: tuple[int, ...], spacing: float) -> Array:
    """Return all nodes of a lattice as points (n, 3), mm."""
    axes = np.broadcast_arrays(*lattice_axes(low, shape, spacing))
    return np.stack(axes, axis=-1).reshape(-1, 3)
