"""Masked autoencoding: tell the hidden patches of a brain from the visible ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from neurofoundry.nn import seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.pretrain.objective import Objective, draw_views
from neurofoundry.pretrain.params import MaeParams
from neurofoundry.pretrain.sparse import visible_maps

CELL = 4
"""The decoder predicts cells of so many voxels along each axis at once."""


class Mae(Objective):
    """The encoder, convolving over what is visible (He et al. 2022; sparse as SparK, S3D).

    A light decoder reads the encoder's last maps alone, without skip connections, so that what is
    worth knowing must be in the features that later stages use. It is thrown away afterwards.
    The encoder is the same network as everywhere: only its inputs have gaps.
    """

    def __init__(self, encoder: Encoder, params: MaeParams, *, spacing_mm: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.params = params
        self.patch = max(1, round(params.patch_mm / spacing_mm))
        stride = 16 * encoder.conv1.stride[0]
        steps: list[nn.Module] = []
        channels = encoder.features
        for _ in range(int(math.log2(stride / CELL))):
            wider, channels = channels, channels // 2
            steps += [nn.ConvTranspose3d(wider, channels, 2, 2), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*steps, nn.Conv3d(channels, CELL**3, 1))

    def inputs(
        self, zscores: torch.Tensor, scans: Sequence[str], params: AugmentParams, *key: int
    ) -> torch.Tensor:
        """One view of each scan; channel 1 is 1 where it is visible."""
        views = draw_views(zscores, scans, params, *key, views=1)
        visible = torch.stack([self.draw_visible(views.shape[3:], *key, scan) for scan in scans])
        return torch.cat([views, visible[None, :, None].to(views)], 2)

    def draw_visible(self, shape: Sequence[int], *key: object) -> torch.Tensor:
        """Of a volume (z, y, x), which voxels are visible: patches drawn from ``key`` alone."""
        counts = [math.ceil(n / self.patch) for n in shape]
        order = seeds.generator(*key, "patches").permutation(math.prod(counts))
        hidden = round(self.params.mask * len(order))
        visible = torch.from_numpy(order >= hidden).view(*counts)
        for axis, n in enumerate(shape):
            visible = visible.repeat_interleave(self.patch, axis).narrow(axis, 0, n)
        return visible

    def predict(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Every voxel of ``volumes`` (batch, 1, z, y, x) from those where ``visible`` is 1."""
        cells = self.decoder(visible_maps(self.encoder, volumes, visible))
        batch, _, *counts = cells.shape
        cells = cells.view(batch, CELL, CELL, CELL, *counts).permute(0, 4, 1, 5, 2, 6, 3)
        whole = cells.reshape(batch, 1, *(CELL * count for count in counts))
        z, y, x = volumes.shape[2:]
        return whole[..., :z, :y, :x]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the hidden voxels of each brain, and what there was to tell."""
        volumes, visible = inputs.split(1, 1)
        hidden = (volumes != 0) & (visible == 0)
        count = hidden.sum((1, 2, 3, 4)).clamp(min=1)
        errors = (self.predict(volumes, visible).to(volumes.dtype) - volumes).square()
        return torch.stack(
            [(each * hidden).sum((1, 2, 3, 4)) / count for each in (errors, volumes.square())], 1
        )

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over the scans, and the share of the hidden voxels' variance explained."""
        error, power = encoded[0].mean(0)
        return error, {"explained": 1 - error.detach() / power.detach()}

    def alarm(self, means: Mapping[str, float]) -> str | None:
        if means["explained"] > 0:
            return None
        return (
            "the hidden voxels are told no better than by their mean. Lower "
            "pretrain.learning_rate or pretrain.mae.mask."
        )
