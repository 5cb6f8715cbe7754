"""SimCLR: two views of a scan lie closer than views of other persons (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity
from neurofoundry.pretrain.ntxent import nt_xent
from neurofoundry.pretrain.objective import Objective, draw_views
from neurofoundry.pretrain.params import SimclrParams

COLLAPSED = 2.0
"""Effective rank of the embeddings below which they hardly tell one scan from another."""


class Simclr(Objective):
    """The encoder and a projection head."""

    def __init__(self, encoder: Encoder, params: SimclrParams) -> None:
        super().__init__()
        self.encoder = encoder
        self.params = params
        if params.compile:
            encoder.compile(dynamic=False)  # batches differ in size at most in the last chunk
        # Batch norm, as in the authors' code: without it a small cohort collapses. The head is
        # part of `loss`, so that its statistics are always of the whole batch.
        self.projector = nn.Sequential(
            nn.Linear(encoder.features, encoder.features, bias=False),
            nn.BatchNorm1d(encoder.features),
            nn.ReLU(),
            nn.Linear(encoder.features, params.projection),
        )

    def inputs(
        self, zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int
    ) -> torch.Tensor:
        return draw_views(zscores, scans, params, *key, views=2)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.encoder(inputs)
        return features

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        embeddings = F.normalize(self.projector(encoded.flatten(0, 1)), dim=1)
        embeddings = embeddings.unflatten(0, encoded.shape[:2])
        loss = nt_xent(
            embeddings,
            persons,
            temperature=self.params.temperature,
            same_person=self.params.same_person,
        )
        found = embeddings.detach()
        return loss, {
            "alignment": alignment(found),
            "uniformity": uniformity(found),
            "effective_rank": effective_rank(found),
        }

    def alarm(self, means: Mapping[str, float]) -> str | None:
        rank = means["effective_rank"]
        if rank >= COLLAPSED:
            return None
        return (
            f"the embeddings have collapsed (effective rank {rank:.1f} of "
            f"{self.params.projection}). Lower pretrain.learning_rate or "
            "pretrain.simclr.temperature, or raise batch_size."
        )
