"""The batches of a run: which scans, in which order, and their volumes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
import torch

from neurofoundry.contracts.volumes import VolumeFolder
from neurofoundry.errors import DataError
from neurofoundry.nn import seeds
from neurofoundry.nn.batches import read_batch
from neurofoundry.pretrain.ranks import Ranks

READERS = 4
"""Volumes that are read at once."""


@dataclass(frozen=True)
class Batches:
    """Every scan once an epoch, in an order that depends on (seed, epoch) alone.

    The scans that do not fill a batch wait for another epoch.
    """

    scans: pd.DataFrame
    """``scan_id`` and ``person``, one row a scan."""
    volumes: VolumeFolder
    size: int
    """Scans of a batch, over all ranks."""
    seed: int
    ranks: Ranks

    @property
    def per_epoch(self) -> int:
        """How many batches an epoch has."""
        return len(self.scans) // self.size

    def own(self, batch: pd.DataFrame) -> list[str]:
        """Return the scans of a batch that are this rank's."""
        return list(batch["scan_id"].iloc[self.ranks.share(len(batch))])

    def read(self, start: int, stop: int) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Yield the batches of the steps from ``start`` to ``stop``: rows of ``scans``, and the
        stored volumes of this rank's share (own, contrasts, z, y, x).

        The next batch is read while this one is used. Raises DataError.
        """
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._read, start, readers) if start < stop else None
            for step in range(start, stop):
                assert following is not None
                current, following = following.result(), None
                if step + 1 < stop:
                    following = reader.submit(self._read, step + 1, readers)
                yield current

    def _read(self, step: int, readers: Executor) -> tuple[pd.DataFrame, torch.Tensor]:
        epoch, position = divmod(step, self.per_epoch)
        order = seeds.generator(self.seed, "order", epoch).permutation(len(self.scans))
        batch = self.scans.iloc[order[position * self.size :][: self.size]]
        own, gpu = self.own(batch), self.ranks.device.type == "cuda"
        stored = read_batch(self.volumes, own, readers=readers, pinned=gpu)
        for scan_id, volume in zip(own, stored, strict=True):
            if not volume[0].any():
                name = self.volumes.path(scan_id).name
                raise DataError(
                    f"{name}: no voxel of brain. Exclude the scan, or run preprocess again."
                )
        return batch, stored
