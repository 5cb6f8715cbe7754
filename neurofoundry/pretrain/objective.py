"""What every method of pretraining shares: how an encoder is taught without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from neurofoundry.nn import augment
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder


class Objective(nn.Module, ABC):
    """An encoder and what it is asked to do; a method is one such class in a file of its own.

    `encode` treats every row alone, so that it can run in chunks and on several machines; `loss`
    sees the rows of the whole batch at once, wherever they were encoded (gradients.py). So its
    value and gradient are the same for any number of chunks and machines, but for batch norm in
    the encoder, whose statistics are of a chunk.
    """

    encoder: Encoder

    @abstractmethod
    def inputs(
        self, zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int
    ) -> torch.Tensor:
        """What is shown of ``scans``, whose volumes are z-scores (batch, 1, z, y, x).

        ``key`` is (seed, epoch). Returns (views, batch, channels, z, y, x), channel 0 the view.
        """

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Rows of `inputs`, (rows, channels, z, y, x), to what `loss` needs of each: (rows, d)."""

    @abstractmethod
    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch, and measures that tell whether it learns.

        ``encoded`` is (views, batch, d); ``persons`` (batch,) numbers who was scanned.
        """

    def alarm(self, means: Mapping[str, float]) -> str | None:
        """What is wrong with the means of an epoch after the warm-up, and what to change."""
        return None


def draw_views(
    zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int, views: int
) -> torch.Tensor:
    """Random views (views, batch, 1, z, y, x) of z-scores (batch, 1, z, y, x)."""
    seed, epoch = key
    _, _, z, y, x = zscores.shape
    drawn = [
        augment.draw(params, seed=seed, epoch=epoch, scans=scans, view=view, shape=(z, y, x))
        for view in range(views)
    ]
    return torch.stack([augment.apply(zscores, draws) for draws in drawn])
