"""A decoder with skips on the stages of a ResNet: which class each voxel belongs to.

As in a U-Net (Ronneberger et al. 2015, arXiv 1505.04597), maps of the encoder join those of the
decoder at their own resolution, here those of an encoder that was pretrained without a decoder. It
is small on purpose: models that are compared differ in their encoder alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from neurofoundry.errors import UsageError
from neurofoundry.nn.encoders import Encoder, ResNetEncoder

FINE = 8
"""Channels at the resolution of the volume."""


class Segmenter(nn.Module):
    """Maps z-scores (batch, channels, z, y, x) to logits (batch, 1 + classes, z, y, x).

    The background comes first. With ``patch`` it learns from cubes of so many voxels, and answers
    for a volume by windows of that size that overlap by half, whose middle counts most.
    """

    def __init__(self, encoder: Encoder, classes: int, *, patch: int | None = None) -> None:
        super().__init__()
        if not isinstance(encoder, ResNetEncoder):
            raise UsageError(
                "A segmentation needs the stages of a ResNet, which the encoder sfcn does not "
                "have: leave its initialization out"
            )
        self.encoder, self.patch = encoder, patch
        device = next(encoder.parameters()).device
        self.head = Decoder(encoder.channels, _channels(encoder), 1 + classes).to(device)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits; what it learns from are patches already."""
        if self.patch is None or self.training:
            return self._logits(volumes)
        size = patch_of(volumes.shape[2:], self.patch)
        logits = sliding_window_inference(
            volumes, size, 1, self._logits, overlap=0.5, mode="gaussian"
        )
        assert isinstance(logits, Tensor)
        return logits

    def _logits(self, volumes: Tensor) -> Tensor:
        logits: Tensor = self.head(volumes, maps_of(self.encoder, volumes))
        return logits


def patch_of(shape: Iterable[int], edge: int) -> tuple[int, ...]:
    """Return the shape of a patch of a volume: a cube, but for axes that have fewer voxels."""
    return tuple(min(edge, size) for size in shape)


def shares_of(network: nn.Module, volumes: Tensor, *, mirror: bool) -> Tensor:
    """Return the probabilities (batch, 1 + classes, z, y, x) of z-scores; with ``mirror`` their
    mean with those of the mirrored volumes."""
    shares: Tensor = network(volumes).softmax(1)
    if mirror:
        shares = (shares + network(volumes.flip(-1)).softmax(1).flip(-1)) / 2
    return shares


def maps_of(encoder: ResNetEncoder, volumes: Tensor) -> list[Tensor]:
    """Return what the stem and each stage make of volumes, the finest first: the steps of
    `ResNetEncoder.forward`."""
    stem = encoder.bn1(encoder.conv1(volumes))
    maps = [torch.relu(stem)]  # the encoder's own ReLU follows the pool, and works in place
    below = encoder.act(encoder.maxpool(stem))
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        below = stage(below)
        maps.append(below)
    return maps


class Decoder(nn.Module):
    """From the maps of the encoder's stages, the finest first, and the volume to logits."""

    def __init__(self, contrasts: int, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.entrance = _block(contrasts, FINE)
        below = channels[-1]
        self.steps = nn.ModuleList()
        for skip in (*reversed(channels[:-1]), FINE):
            width = max(FINE, min(skip, below // 2))
            self.steps.append(_block(below + skip, width))
            below = width
        self.classify = nn.Conv3d(below, outputs, 1, bias=False)
        nn.init.zeros_(self.classify.weight)
        self.prior = nn.Parameter(torch.zeros(outputs))

    def forward(self, volumes: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits (batch, outputs, z, y, x)."""
        *skips, decoded = maps
        for step, skip in zip(self.steps, [*reversed(skips), self.entrance(volumes)], strict=True):
            finer = F.interpolate(decoded, size=skip.shape[2:], mode="trilinear")
            decoded = step(torch.cat([finer, skip], 1))
        logits: Tensor = self.classify(decoded) + self.prior[:, None, None, None]
        return logits

    def expect(self, shares: Tensor) -> None:
        """Let the first outputs be the ``shares`` (outputs,) that the classes have of all voxels.

        Training then does not begin with learning that most of a volume is background.
        """
        with torch.no_grad():
            self.prior.copy_(shares.clamp(min=1e-6).log())


def _block(inside: int, outside: int) -> nn.Sequential:
    # Instance norm does not depend on the batch, which is small for volumes.
    return nn.Sequential(
        nn.Conv3d(inside, outside, 3, padding=1, bias=False),
        nn.InstanceNorm3d(outside, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


@torch.no_grad()
def _channels(encoder: ResNetEncoder) -> list[int]:
    """Return how many channels each of the encoder's maps has."""
    training = encoder.training
    weight = next(encoder.parameters())
    maps = maps_of(encoder.eval(), weight.new_zeros(1, encoder.channels, 32, 32, 32))
    encoder.train(training)
    return [each.shape[1] for each in maps]
