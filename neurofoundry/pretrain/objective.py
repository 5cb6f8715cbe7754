"""What an objective of pretraining is: how an encoder learns without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from neurofoundry.nn import augment, seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.params import Section
from neurofoundry.stats.metrics import Values


class Objective(nn.Module, ABC):
    """An encoder and what it is asked to do. To add one, see docs/pretraining.md.

    `encode` treats every row alone, so that it can run in chunks and on several machines; `loss`
    sees the rows of the whole batch at once, wherever they were encoded (gradients.py). So its
    value and gradient are the same for any number of chunks and machines, but for batch norm in
    `encode`, whose statistics are those of a chunk.

    All weights and buffers are in checkpoints; those without ``requires_grad`` are not trained.
    """

    name: ClassVar[str] = ""
    """Of the objective: its module, its section of params.yaml, and the encoders that it makes."""
    Params: ClassVar[type[Section]] = Section
    """The section `pretrain.NAME`; every field has a default."""
    views: ClassVar[int] = 2
    """Rows of a scan in a step."""

    def __init__(self, encoder: Encoder, params: Section, *, spacing_mm: float) -> None:
        """Take ``encoder`` and ``params``, which are `Params`; voxels are of ``spacing_mm``."""
        super().__init__()
        self.encoder = encoder

    @property
    def learns_sizes(self) -> bool:
        """Whether the sizes of morphometry are among the targets."""
        return False

    def prepare(
        self,
        scans: Sequence[str],
        measure: Callable[[Sequence[str]], Values],
        params: AugmentParams,
        *,
        seed: int,
    ) -> None:
        """Learn of all ``scans``, before the first step, what `loss` needs beside the views.

        ``measure`` returns their sizes (scans, morphometry.SIZES), which need no labels.
        """

    def expect(self, scans: Sequence[str], params: AugmentParams, *key: int) -> None:
        """Take note that the next `loss` is of these scans, those of all ranks, in this order.

        ``key`` is (seed, epoch), with which their views are drawn.
        """

    def check(self, device: torch.device) -> None:
        """Raise UsageError where ``device``, or several ranks, cannot do what is asked."""

    def inputs(
        self, zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int
    ) -> torch.Tensor:
        """Return what is shown of ``scans``, whose volumes are z-scores (batch, channels, z, y, x).

        ``key`` is (seed, epoch). Returns (views, batch, channels, z, y, x): the views, and beside
        them what else the objective needs.
        """
        return draw_views(zscores, scans, params, *key, views=self.views)

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn rows of `inputs`, (rows, channels, z, y, x), into what `loss` needs: (rows, d)."""

    @abstractmethod
    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch, and measures that tell whether the encoder learns.

        ``encoded`` is (views, batch, d); ``persons`` (batch,) numbers who was scanned.
        """

    def after_step(self, step: int, steps: int) -> None:
        """Follow the weights after update number ``step`` of ``steps``, on every rank.

        Without autograd, for what gradients do not learn: a teacher that is a moving average (EMA).
        """

    def alarm(self, means: Mapping[str, float]) -> str | None:
        """Say what is wrong with the mean measures of an epoch after the warm-up, and the fix."""
        return None


def draw_views(
    zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int, views: int
) -> torch.Tensor:
    """Return random views (views, batch, channels, z, y, x) of z-scores (batch, channels, z, y, x).

    ``key`` is (seed, epoch). Of several channels a view may lack all but the first.
    """
    seed, epoch = key
    _, _, z, y, x = zscores.shape
    drawn = [
        augment.draw(params, seed=seed, epoch=epoch, scans=scans, view=view, shape=(z, y, x))
        for view in range(views)
    ]
    shown = augment.apply(zscores, augment.Draws.joined(drawn)).view(views, *zscores.shape)
    if zscores.shape[1] > 1:
        shown = shown * _there(scans, params, *key, shape=shown.shape[:3]).to(shown)
    return shown


def _there(
    scans: Sequence[str], params: AugmentParams, *key: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Draw which channels views show, (views, batch, channels, 1, 1, 1), 0 or 1."""
    views, _, channels = shape
    shown = [
        [
            [True, *(seeds.generator(*key, scan, view, "lacking").random(channels - 1) >= lacking)]
            for scan in scans
        ]
        for view in range(views)
        for lacking in [params.lacking]
    ]
    return torch.tensor(np.array(shown))[..., None, None, None]
