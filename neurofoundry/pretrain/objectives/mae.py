"""Masked autoencoding: predict the hidden patches of a brain from the visible ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from neurofoundry.nn import seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder, ResNetEncoder
from neurofoundry.params import Section
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.sparse import visible_maps

CELL = 4
"""Voxels along each axis of a cell, which the decoder predicts at once."""


class MaeParams(Section):
    """Masked autoencoding; `encoder/mae`."""

    mask: float = Field(default=0.6, gt=0, lt=1)
    """Share of the patches that is hidden."""
    patch_mm: float = Field(default=16.0, ge=2, le=96)
    """Edge of a patch, rounded to voxels."""


class Mae(Objective):
    """The encoder, convolving over what is visible, and a U-shaped decoder with skips.

    He et al. 2022; sparse and hierarchical as SparK (Tian et al. 2023) and S3D (Wald et al. 2024).
    The decoder is discarded afterwards. The encoder is the same network as everywhere: only its
    inputs have gaps.
    """

    name = "mae"
    Params = MaeParams
    views = 1

    def __init__(self, encoder: Encoder, params: MaeParams, *, spacing_mm: float) -> None:
        super().__init__(encoder, params, spacing_mm=spacing_mm)
        self.params = params
        self.patch = max(1, round(params.patch_mm / spacing_mm))
        self.decoder = Decoder(encoder)

    def inputs(
        self, zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int
    ) -> torch.Tensor:
        """Return one view of each scan; the last channel is 1 where it is visible, in all contrasts
        alike."""
        views = super().inputs(zscores, scans, params, *key)
        visible = torch.stack([self.draw_visible(views.shape[3:], *key, scan) for scan in scans])
        return torch.cat([views, visible[None, :, None].to(views)], 2)

    def draw_visible(self, shape: Sequence[int], *key: object) -> torch.Tensor:
        """Draw which voxels of a volume (z, y, x) are visible; ``key`` alone decides."""
        counts = [math.ceil(n / self.patch) for n in shape]
        order = seeds.generator(*key, "patches").permutation(math.prod(counts))
        hidden = round(self.params.mask * len(order))
        visible = torch.from_numpy(order >= hidden).view(*counts)
        return _spread(visible, self.patch, shape)

    def predict(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Predict `targets` of volumes (batch, contrasts, z, y, x) from their voxels that are
        ``visible`` (batch, 1, z, y, x: 1, else 0)."""
        cells: torch.Tensor = self.decoder(visible_maps(self.encoder, volumes, visible))
        (batch, contrasts), counts = volumes.shape[:2], cells.shape[2:]
        cells = cells.view(batch, contrasts, CELL, CELL, CELL, *counts)
        cells = cells.permute(0, 1, 5, 2, 6, 3, 7, 4)
        whole = cells.reshape(batch, contrasts, *(CELL * count for count in counts))
        z, y, x = volumes.shape[2:]
        return whole[..., :z, :y, :x]

    def targets(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return volumes (batch, contrasts, z, y, x) whose brain has mean 0 and variance 1 in each
        patch.

        What a patch looks like matters then, not how bright it is (He et al. 2022, section 4).
        """
        brain = (volumes != 0).to(volumes.dtype)
        count = self._sum(brain).clamp(min=1)
        mean = self._sum(volumes) / count
        variance = self._sum((volumes - mean).square() * brain) / count
        return (volumes - mean) / (variance + 1e-6).sqrt() * brain

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return at each voxel of (batch, contrasts, z, y, x) the sum over its patch."""
        sums = F.avg_pool3d(values, self.patch, ceil_mode=True, divisor_override=1)
        return _spread(sums, self.patch, values.shape[2:])

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error and the mean square of the hidden voxels of each brain, in
        the contrasts that are there."""
        volumes, visible = inputs[:, :-1], inputs[:, -1:]
        hidden = (volumes != 0) & (visible == 0)
        count = hidden.sum((1, 2, 3, 4)).clamp(min=1)
        targets = self.targets(volumes)
        errors = (self.predict(volumes, visible).to(volumes.dtype) - targets).square()
        return torch.stack(
            [(each * hidden).sum((1, 2, 3, 4)) / count for each in (errors, targets.square())], 1
        )

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean over the scans, and the share of hidden variance that is explained."""
        error, power = encoded[0].mean(0)
        return error, {"explained": 1 - error.detach() / power.detach()}

    def alarm(self, means: Mapping[str, float]) -> str | None:
        if means["explained"] > 0:
            return None
        return (
            "the hidden voxels are predicted no better than by their mean. Lower "
            "pretrain.learning_rate or pretrain.mae.mask."
        )


class Decoder(nn.Module):
    """From the maps of every level down to a stride of ``CELL``, to the voxels of each cell in each
    contrast.

    What is hidden is a learned token at each level; a level adds its maps to what comes from the
    one above it.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        assert isinstance(encoder, ResNetEncoder)  # params.py refuses others
        levels = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
        # A stem of stride 2 gives layer1 a stride of 4, one of stride 1 layer2.
        self.skipped = 2 - encoder.conv1.stride[0]
        channels = [_channels(level) for level in levels[self.skipped :]]
        widths = [max(8, count // 2) for count in channels]
        self.tokens = nn.ParameterList(torch.zeros(1, count, 1, 1, 1) for count in channels)
        self.lateral = nn.ModuleList(map(partial(nn.Conv3d, kernel_size=1), channels, widths))
        self.merge = nn.ModuleList(map(_merge, widths[1:], widths[:-1]))
        self.head = nn.Conv3d(widths[0], encoder.channels * CELL**3, 1)

    def forward(self, levels: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return (batch, contrasts × CELL³, z', y', x') from the result of `visible_maps`."""
        filled = [
            lateral(torch.where(seen != 0, maps, token))
            for (maps, seen), token, lateral in zip(
                levels[self.skipped :], self.tokens, self.lateral, strict=True
            )
        ]
        maps: torch.Tensor = filled[-1]
        for skip, merge in zip(filled[-2::-1], reversed(self.merge), strict=True):
            maps = skip + merge(F.interpolate(maps, size=skip.shape[2:]))
        cells: torch.Tensor = self.head(maps)
        return cells


def _merge(inside: int, outside: int) -> nn.Sequential:
    # Group norm, as the rows of a batch are encoded in chunks.
    return nn.Sequential(
        nn.Conv3d(inside, outside, 3, padding=1),
        nn.GroupNorm(math.gcd(8, outside), outside),
        nn.ReLU(inplace=True),
        nn.Conv3d(outside, outside, 3, padding=1),
    )


def _channels(level: nn.Sequential) -> int:
    """Return how many channels the maps of a level have."""
    convolutions = [each for each in level[-1].children() if isinstance(each, nn.Conv3d)]
    return convolutions[-1].out_channels


def _spread(patches: torch.Tensor, edge: int, shape: Sequence[int]) -> torch.Tensor:
    """Return a volume (…, z, y, x) that has in each patch the value of (…, z', y', x')."""
    for axis, n in enumerate(shape, patches.ndim - 3):
        patches = patches.repeat_interleave(edge, axis).narrow(axis, 0, n)
    return patches
