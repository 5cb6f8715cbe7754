"""Whether convolutions here are right: some releases of torch and cuDNN were silently wrong."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from neurofoundry.errors import UsageError

SHAPES = {"stem": (1, 7, 2, 3), "block": (8, 3, 1, 1), "stride": (8, 3, 2, 1)}
"""Input channels, kernel, stride and padding of the kinds of convolution in the encoder."""

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Greatest error as a share of the greatest value. TF32, which torch may use, has 10 bits."""


def check_convolutions(device: torch.device, *, bf16: bool) -> None:
    """Compare small 3D convolutions and their gradients with float64 on the CPU; milliseconds.

    Raises UsageError when they differ by more than rounding explains.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    for name, (channels, size, stride, padding) in SHAPES.items():
        source = torch.Generator().manual_seed(0)
        volumes = torch.randn(2, channels, 11, 13, 12, generator=source, dtype=torch.float64)
        kernels = torch.randn(8, channels, size, size, size, generator=source, dtype=torch.float64)
        results = []
        for where, kind in ((torch.device("cpu"), torch.float64), (device, dtype)):
            x, w = (
                each.to(where, kind, memory_format=torch.channels_last_3d).requires_grad_()
                for each in (volumes, kernels)
            )
            maps = F.conv3d(x, w, stride=stride, padding=padding)
            gradients = torch.autograd.grad(maps.square().sum(), (x, w))
            results.append([each.detach().cpu().double() for each in (maps, *gradients)])
        errors = [
            ((found - right).abs().max() / right.abs().max()).item()
            for right, found in zip(*results, strict=True)
        ]
        if not max(errors) < TOLERANCE[dtype]:
            raise UsageError(
                f"3D convolutions ({name}) on {device.type} in {dtype} are wrong by "
                f"{max(errors):.1%} of the largest value, more than the {TOLERANCE[dtype]:.0%} "
                f"that rounding may cost. Install another release of torch (now "
                f"{torch.__version__}), or set pretrain.precision to "
                f"{'fp32' if bf16 else 'bf16'}."
            )
