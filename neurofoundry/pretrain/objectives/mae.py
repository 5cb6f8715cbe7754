"""Masked autoencoding: predict the hidden patches of a brain from the visible ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import nn

from neurofoundry.nn import seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.params import Section
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.sparse import visible_maps

CELL = 4
"""Voxels along each axis of a cell, which the decoder predicts at once."""


class MaeParams(Section):
    """Masked autoencoding; `encoder/mae`."""

    mask: float = Field(default=0.6, gt=0, lt=1)
    """Share of the patches that is hidden."""
    patch_mm: float = Field(default=16.0, gt=0)
    """Edge of a patch, rounded to voxels."""


class Mae(Objective):
    """The encoder, convolving over what is visible (He et al. 2022; sparse as SparK, S3D).

    A light decoder reads the encoder's last maps alone, without skip connections, so that what is
    worth knowing must be in the features that later stages use. It is discarded afterwards.
    The encoder is the same network as everywhere: only its inputs have gaps.
    """

    name = "mae"
    Params = MaeParams
    views = 1

    def __init__(self, encoder: Encoder, params: MaeParams, *, spacing_mm: float) -> None:
        super().__init__(encoder, params, spacing_mm=spacing_mm)
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
        """Return one view of each scan; channel 1 is 1 where it is visible."""
        views = super().inputs(zscores, scans, params, *key)
        visible = torch.stack([self.draw_visible(views.shape[3:], *key, scan) for scan in scans])
        return torch.cat([views, visible[None, :, None].to(views)], 2)

    def draw_visible(self, shape: Sequence[int], *key: object) -> torch.Tensor:
        """Draw which voxels of a volume (z, y, x) are visible; ``key`` alone decides."""
        counts = [math.ceil(n / self.patch) for n in shape]
        order = seeds.generator(*key, "patches").permutation(math.prod(counts))
        hidden = round(self.params.mask * len(order))
        visible = torch.from_numpy(order >= hidden).view(*counts)
        for axis, n in enumerate(shape):
            visible = visible.repeat_interleave(self.patch, axis).narrow(axis, 0, n)
        return visible

    def predict(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Predict ``volumes`` (batch, 1, z, y, x) from their voxels where ``visible`` is 1."""
        cells: torch.Tensor = self.decoder(visible_maps(self.encoder, volumes, visible))
        batch, _, *counts = cells.shape
        cells = cells.view(batch, CELL, CELL, CELL, *counts).permute(0, 4, 1, 5, 2, 6, 3)
        whole = cells.reshape(batch, 1, *(CELL * count for count in counts))
        z, y, x = volumes.shape[2:]
        return whole[..., :z, :y, :x]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error and the mean square of the hidden voxels of each brain."""
        volumes, visible = inputs[:, :1], inputs[:, 1:]
        hidden = (volumes != 0) & (visible == 0)
        count = hidden.sum((1, 2, 3, 4)).clamp(min=1)
        errors = (self.predict(volumes, visible).to(volumes.dtype) - volumes).square()
        return torch.stack(
            [(each * hidden).sum((1, 2, 3, 4)) / count for each in (errors, volumes.square())], 1
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
