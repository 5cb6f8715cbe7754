"""Volumes of the standard grid as batches that a network reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import T1W
from neurofoundry.contracts.volumes import VolumeFolder, open_volume


def read_batch(
    volumes: VolumeFolder,
    scan_ids: Sequence[str],
    *,
    contrasts: Sequence[str] | None = None,
    readers: Executor | None = None,
    pinned: bool = False,
) -> torch.Tensor:
    """Read volumes as int16 steps of ``SLOPE``, (batch, contrasts, z, y, x). Raises DataError.

    A channel is a contrast, all that the volumes have unless they are named; it is 0 where a scan
    lacks it.
    ``readers`` read several at once, which a network file system rewards. A GPU copies from
    ``pinned`` memory while it computes.
    """
    channels = volumes.contrasts if contrasts is None else contrasts
    shape = (len(scan_ids), len(channels), *volumes.grid.shape[::-1])
    batch = torch.empty(shape, dtype=torch.int16, pin_memory=pinned)

    def read(scan: torch.Tensor, scan_id: str) -> None:
        for channel, contrast in zip(scan, channels, strict=True):
            np.copyto(channel.numpy(), _open(volumes, scan_id, contrast))

    deque((readers.map if readers else map)(read, batch, scan_ids), maxlen=0)
    return batch


def _open(volumes: VolumeFolder, scan_id: str, contrast: str) -> NDArray[np.int16] | int:
    """Return a volume (z, y, x), or 0 where a scan lacks a further contrast."""
    if contrast == T1W:
        return volumes.open(scan_id)
    path = volumes.find(scan_id, contrast)
    return 0 if path is None else open_volume(path, volumes.grid)
