"""Volumes of the standard grid as batches that a network reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch

from neurofoundry.contracts.volumes import VolumeFolder


def read_batch(
    volumes: VolumeFolder,
    scan_ids: Sequence[str],
    *,
    readers: Executor | None = None,
    pinned: bool = False,
) -> torch.Tensor:
    """Read volumes as int16 steps of ``SLOPE``, shape (batch, 1, z, y, x). Raises DataError.

    ``readers`` read several at once, which a network file system rewards. A GPU copies from
    ``pinned`` memory while it computes.
    """
    shape = (len(scan_ids), 1, *volumes.grid.shape[::-1])
    batch = torch.empty(shape, dtype=torch.int16, pin_memory=pinned)

    def read(volume: torch.Tensor, scan_id: str) -> None:
        np.copyto(volume[0].numpy(), volumes.open(scan_id))

    deque((readers.map if readers else map)(read, batch, scan_ids), maxlen=0)
    return batch
