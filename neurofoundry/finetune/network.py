"""An encoder with a linear head, and its outputs for scans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from neurofoundry.contracts.models import ModelPlan
from neurofoundry.contracts.volumes import SLOPE
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder
from neurofoundry.nn.segmenter import Segmenter
from neurofoundry.tasks import Segmentation, Task

BATCH = 8
"""Scans in a forward pass without gradients."""

Reader = Callable[[Sequence[str]], Tensor]
"""A function from scan ids to volumes (batch, channels, z, y, x), int16 steps of ``SLOPE``."""


class Mirrored(nn.Module):
    """The features of a scan and of its mirror image, left and right exchanged, averaged.

    What a linear head outputs for them is the average of its outputs for the two.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, volumes: Tensor) -> Tensor:
        """Return features (batch, features)."""
        features: Tensor = (self.encoder(volumes) + self.encoder(volumes.flip(-1))) / 2
        return features


class Network(nn.Module):
    """Maps z-scores (batch, channels, z, y, x) to logits (batch, classes) or values (batch, 1)."""

    def __init__(self, encoder: Encoder, task: Task, *, mirror: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        device = next(encoder.parameters()).device
        self.head = nn.Linear(encoder.features, len(task.output_columns), device=device)
        # From zeros, all models of a task start with the same predictions, whatever the encoder.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.mirror = mirror

    @property
    def extractor(self) -> nn.Module:
        """What gives the head the features of a scan that is predicted."""
        return Mirrored(self.encoder) if self.mirror else self.encoder

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the outputs of the head; it learns from scans as they are."""
        extractor = self.encoder if self.training else self.extractor
        output: Tensor = self.head(extractor(volumes))
        return output


def read_network(weights: Path, plan: ModelPlan) -> Network | Segmenter:
    """Read the network of a trained model. Raises DataError."""
    start, task = plan.encoder, plan.predicts
    encoder = encoders.build(start.encoder, seed=0, channels=len(start.contrasts))
    network: Network | Segmenter
    if isinstance(task, Segmentation):
        network = Segmenter(encoder, len(task.classes), patch=plan.patch)
    else:
        network = Network(encoder, task, mirror=plan.test_time_augmentation == "mirror")
    encoders.read_weights(weights, network)
    return network


@torch.no_grad()
def infer(module: nn.Module, scan_ids: Iterable[str], read: Reader, *, size: int = BATCH) -> Tensor:
    """Return the outputs of ``module`` in evaluation mode, (scans, outputs), on the CPU.

    All batches have the same ``size``, the last one filled up, so that the output for a scan does
    not depend on the other scans, not even in its last bit.
    """
    device = next(module.parameters()).device
    module.eval()
    scan_ids = list(scan_ids)
    outputs = []
    for start in range(0, len(scan_ids), size):
        batch = scan_ids[start : start + size]
        volumes = read(batch + batch[-1:] * (size - len(batch))).to(device).float() * SLOPE
        outputs.append(module(volumes)[: len(batch)].cpu())
    return torch.cat(outputs)
