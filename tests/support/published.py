"""A 3D ResNet-18 written from the papers alone, and checkpoints in the forms of others.

Nothing here is taken from neurofoundry or MONAI: it is what they are compared with. Names of
tensors are those of torchvision's ResNet, which all the published checkpoints use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut; ``kind`` of shortcut: biased, unbiased or padded."""

    def __init__(self, inside: int, outside: int, stride: int, dilation: int, kind: str) -> None:
        super().__init__()
        kernel: dict[str, Any] = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.conv1 = nn.Conv3d(inside, outside, stride=stride, bias=False, **kernel)
        self.bn1 = nn.BatchNorm3d(outside)
        self.conv2 = nn.Conv3d(outside, outside, bias=False, **kernel)
        self.bn2 = nn.BatchNorm3d(outside)
        self.stride, self.changes = stride, inside != outside
        if self.changes and kind != "padded":
            shortcut = nn.Conv3d(inside, outside, 1, stride=stride, bias=kind == "biased")
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.changes:
            x = nn.functional.avg_pool3d(x, 1, stride=self.stride)
            x = torch.cat([x, torch.zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], 1)
        return torch.relu(y + x)


class PlainResNet18(nn.Module):
    """Volumes (batch, 1, z, y, x) to the mean of the last level's channels."""

    def __init__(self, stem_stride: int, shortcut: str, *, dilated: bool, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, width, 7, stride=stem_stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        inside = width
        for level, (stride, dilation) in enumerate(
            [(1, 1), (2, 1), (1, 2), (1, 4)] if dilated else [(1, 1), (2, 1), (2, 1), (2, 1)]
        ):
            outside = width * 2**level
            blocks = [
                Block(inside, outside, stride, dilation, shortcut),
                Block(outside, outside, 1, dilation, shortcut),
            ]
            setattr(self, f"layer{level + 1}", nn.Sequential(*blocks))
            inside = outside

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool3d(x, 3, stride=2, padding=1)
        for level in (1, 2, 3, 4):
            x = getattr(self, f"layer{level}")(x)
        return x.mean(dim=(2, 3, 4))


def trained(stem_stride: int, shortcut: str, *, dilated: bool = False) -> PlainResNet18:
    """A network whose every parameter and statistic is an arbitrary number."""
    random = torch.Generator().manual_seed(7)
    network = PlainResNet18(stem_stride, shortcut, dilated=dilated)
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                values.fill_(11)
            elif values.ndim > 1:
                fan_in = values[0].numel()
                values.copy_(torch.randn(values.shape, generator=random) * (2 / fan_in) ** 0.5)
            else:
                values.copy_(torch.rand(values.shape, generator=random) + 0.5)
    return network.eval()


def write_simclr(path: Path, network: nn.Module) -> dict[str, Any]:
    """As model.py of the reference saves it: behind DDP, with projector and optimizer."""
    features = 64
    projector = nn.Sequential(
        nn.Linear(features, features, bias=False), nn.ReLU(), nn.Linear(features, 64, bias=False)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    network.train()
    network(torch.randn(2, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    network.eval()
    tensors = {f"module.encoder.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"module.projector.{name}": value for name, value in projector.state_dict().items()}
    content = {
        "epoch": 999,
        "model_state_dict": tensors,
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(content, path)
    return content
