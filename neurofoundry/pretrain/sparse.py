"""The encoder on the visible part of a volume: nothing spreads into what is hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from neurofoundry.nn.encoders import Encoder, Padded, ResNetEncoder

Norm = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def visible_maps(
    encoder: Encoder, volumes: torch.Tensor, visible: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the maps of the four levels of ``encoder``, (batch, channels, z', y', x'), 0 where all
    is hidden, and for each where something is visible, 1 of (batch, 1, z', y', x').

    ``volumes`` are (batch, contrasts, z, y, x); ``visible`` is (batch, 1, z, y, x), 1 where the
    encoder may look.
    As in SparK (Tian et al. 2023) and S3D (Wald et al. 2024): what is hidden is 0, and the maps
    are set to 0 there again after each step, so that the pattern of gaps does not fade from layer
    to layer; the statistics of norms are those of visible positions alone. A position of a coarser
    map is visible if any voxel of its cell is. With everything visible this is the dense encoder.
    """
    assert isinstance(encoder, ResNetEncoder)  # params.py refuses others
    masks: dict[torch.Size, torch.Tensor] = {}

    def seen(maps: torch.Tensor) -> torch.Tensor:
        shape = maps.shape[2:]
        if shape not in masks:
            masks[shape] = F.adaptive_max_pool3d(visible, shape)
        return masks[shape].to(maps.dtype)

    def normalized(norm: nn.Module, maps: torch.Tensor) -> torch.Tensor:
        if isinstance(norm, nn.GroupNorm):
            return group_norm(norm, maps, seen(maps))
        return batch_norm(norm, maps, seen(maps))

    maps: torch.Tensor = normalized(encoder.bn1, encoder.conv1(volumes * visible))
    maps = encoder.act(encoder.maxpool(maps))
    maps = maps * seen(maps)
    levels = []
    for level in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in level:
            maps = _block(encoder, block, maps, normalized)
        levels.append((maps, seen(maps)))
    return levels


def _block(
    encoder: ResNetEncoder, block: Any, maps: torch.Tensor, normalized: Norm
) -> torch.Tensor:
    """Return what a residual block makes of maps."""
    residual = maps
    maps = encoder.act(normalized(block.bn1, block.conv1(maps)))
    maps = normalized(block.bn2, block.conv2(maps))
    if hasattr(block, "conv3"):
        maps = normalized(block.bn3, block.conv3(encoder.act(maps)))
    if isinstance(block.downsample, Padded):
        residual = block.downsample(residual)
    elif block.downsample is not None:
        convolution, norm = block.downsample
        residual = normalized(norm, convolution(residual))
    out: torch.Tensor = encoder.act(maps + residual)
    return out


def batch_norm(norm: nn.Module, maps: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Apply any batch norm to the visible positions as if there were no others.

    ``maps`` are (batch, channels, z, y, x); ``seen`` (batch, 1, z, y, x) is 1 where visible.
    """
    last = maps.permute(0, 2, 3, 4, 1)
    there = seen[:, 0] != 0
    # Positions as a batch: as the voxels of one volume, which is a transposed view, torch (2.13,
    # CPU) computes their values right and their gradients wrong.
    values: torch.Tensor = norm(last[there][:, :, None, None, None])
    whole = torch.zeros_like(last, dtype=values.dtype)
    whole[there] = values[:, :, 0, 0, 0]
    return whole.permute(0, 4, 1, 2, 3)


def group_norm(norm: nn.GroupNorm, maps: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Apply group norm with the mean and variance of the visible positions of each volume.

    ``maps`` and ``seen`` as for `batch_norm`.
    """
    batch, channels, *counts = maps.shape
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    groups = wide.reshape(batch, norm.num_groups, channels // norm.num_groups, *counts)
    seen = seen[:, None].to(groups.dtype)
    count = (seen.sum((2, 3, 4, 5), keepdim=True) * groups.shape[2]).clamp(min=1)
    centred = (groups - (groups * seen).sum((2, 3, 4, 5), keepdim=True) / count) * seen
    variance = centred.square().sum((2, 3, 4, 5), keepdim=True) / count
    scaled = (centred / (variance + norm.eps).sqrt()).flatten(1, 2)
    weight, bias = (each[:, None, None, None] for each in (norm.weight, norm.bias))
    return ((scaled * weight + bias) * seen[:, 0]).to(maps.dtype)
