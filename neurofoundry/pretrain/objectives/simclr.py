"""SimCLR: two views of a scan lie closer than views of other persons (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from neurofoundry.errors import UsageError
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.nn.selfcheck import check_compiler
from neurofoundry.params import Section
from neurofoundry.pretrain.anatomy import Anatomy
from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity
from neurofoundry.pretrain.norm import RankBatchNorm
from neurofoundry.pretrain.ntxent import nt_xent
from neurofoundry.pretrain.objective import Objective
from neurofoundry.stats.metrics import Values

COLLAPSED = 2.0
"""Effective rank of the embeddings below which they hardly tell one scan from another."""


class SimclrParams(Section):
    """Contrastive learning; `encoder/simclr`."""

    temperature: float = Field(default=0.2, ge=0.001, le=100)
    """Of NT-Xent: the lower, the more the hardest negatives count."""
    projection: int = Field(default=64, ge=2, le=65_536)
    """Dimensions of the space in which views are compared."""
    projector: Literal["norm", "plain"] = "norm"
    """The head before that space: two layers with batch norm between them, without which a small
    cohort collapses; or plain, without it and without biases, as in 3D-Neuro-SimCLR."""
    same_person: Literal["positive", "excluded"] = "excluded"
    """Other scans of a person: attracted like views of one scan, or neither attracted nor repelled.
    Positive also unlearns what changes between the visits of a person, such as atrophy."""
    anatomy: float = Field(default=0.0, ge=0, le=1000)
    """Weight of predicting each view's own anatomy: the sizes that simple morphometry measures in
    its volume, no label among them, times the zoom of the view. 0: not. Morphometry is then no
    independent baseline of what the encoder has learned."""
    compile: bool = False
    """Compile the encoder (torch.compile): needs a C++ compiler, and Triton on a GPU, and a minute
    or more at every start. Losses differ by rounding. Worth trying on a GPU; no gain on a CPU."""


class Simclr(Objective):
    """The encoder and a projection head."""

    name = "simclr"
    Params = SimclrParams
    views = 2

    def __init__(self, encoder: Encoder, params: SimclrParams, *, spacing_mm: float) -> None:
        super().__init__(encoder, params, spacing_mm=spacing_mm)
        self.params = params
        if params.compile:
            encoder.compile(dynamic=False)  # only the last chunk of a batch may be smaller
        # The head is part of `loss`, so that the statistics of its batch norm are always those of
        # the whole batch.
        plain = params.projector == "plain"
        self.projector = nn.Sequential(
            nn.Linear(encoder.features, encoder.features, bias=False),
            nn.Identity() if plain else nn.BatchNorm1d(encoder.features),
            nn.ReLU(),
            nn.Linear(encoder.features, params.projection, bias=not plain),
        )

        self.anatomy = Anatomy(encoder.features) if params.anatomy else None

    @property
    def learns_sizes(self) -> bool:
        return self.anatomy is not None

    def prepare(
        self,
        scans: Sequence[str],
        measure: Callable[[Sequence[str]], Values],
        params: AugmentParams,
        *,
        seed: int,
    ) -> None:
        if self.anatomy:
            self.anatomy.learn_of(scans, measure(scans), params, seed=seed, views=self.views)

    def expect(self, scans: Sequence[str], params: AugmentParams, *key: int) -> None:
        if self.anatomy:
            self.anatomy.expect(scans, params, *key, views=self.views)

    def check(self, device: torch.device) -> None:
        if not self.params.compile:
            return
        if any(isinstance(module, RankBatchNorm) for module in self.modules()):
            raise UsageError(
                "pretrain.simclr.compile: the batch norm that several processes share on a CPU "
                "cannot be compiled. Set it to false, or pretrain.encoder.norm to group."
            )
        check_compiler(device, setting="pretrain.simclr.compile")

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.encoder(inputs)
        return features

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        projected = F.normalize(self.projector(encoded.flatten(0, 1)), dim=1)
        embeddings = projected.view(*encoded.shape[:2], -1)
        loss = nt_xent(
            embeddings,
            persons,
            temperature=self.params.temperature,
            same_person=self.params.same_person,
        )
        embeddings = embeddings.detach()
        measures = {
            "alignment": alignment(embeddings),
            "uniformity": uniformity(embeddings),
            "effective_rank": effective_rank(embeddings),
        }
        if self.anatomy:
            error = self.anatomy.error(encoded)
            loss = loss + self.params.anatomy * error
            measures["anatomy_error"] = error.detach()
        return loss, measures

    def alarm(self, means: Mapping[str, float]) -> str | None:
        rank = means["effective_rank"]
        if rank >= COLLAPSED:
            return None
        return (
            f"the embeddings have collapsed (effective rank {rank:.1f} of "
            f"{self.params.projection}). Lower pretrain.learning_rate or "
            "pretrain.simclr.temperature, or raise batch_size."
        )
