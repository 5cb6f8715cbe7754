"""Checks of this machine: convolutions are right, as some releases of torch and cuDNN were silently
wrong, and torch.compile has what it needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from neurofoundry.errors import UsageError
from neurofoundry.nn.encoders import Encoder

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Largest error as a share of the largest value. TF32, which torch may use, has 10 bits."""

MOST_VOXELS, MOST_CHANNELS = 5, 8
"""Of the maps that are tried: voxels along an axis beyond the reach of the kernel, and channels, so
that float64 on the CPU takes no time. Smaller maps are tried as they are: where they have 2 voxels
along an axis, oneDNN (torch 2.13, CPUs that compute bf16) makes weight gradients of uninitialized
memory."""

TRIES = 3
"""Such memory may hold harmless values by chance."""


class Convolution(NamedTuple):
    """A kind of convolution, and the size of the maps that it is applied to."""

    channels: tuple[int, int]
    maps: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def convolutions(encoder: Encoder, shape: Sequence[int]) -> list[Convolution]:
    """List all kinds in ``encoder`` on a volume of ``shape`` (z, y, x), no larger than needed."""
    kinds: dict[Convolution, None] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor], _: Any) -> None:
        assert isinstance(module, nn.Conv3d)
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        maps = tuple(
            min(n, MOST_VOXELS + more) for n, more in zip(inputs[0].shape[2:], reach, strict=True)
        )
        channels = (
            min(module.in_channels, MOST_CHANNELS),
            min(module.out_channels, MOST_CHANNELS),
        )
        how = (module.kernel_size, module.stride, module.padding, module.dilation)
        kinds[Convolution(channels, maps, *how)] = None  # type: ignore[arg-type]

    shadow = copy.deepcopy(encoder).to("meta")  # knows shapes, computes nothing
    for module in shadow.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(note)
    shadow.forward(torch.empty(2, encoder.channels, *shape, device="meta"))
    return list(kinds)


def check_convolutions(
    encoder: Encoder, shape: Sequence[int], device: torch.device, *, bf16: bool, stage: str
) -> None:
    """Compare the convolutions of ``encoder`` and their gradients with float64 on the CPU.

    Takes less than a second. Raises UsageError, which names ``stage``.precision, where they differ
    by more than rounding explains.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    for kind in convolutions(encoder, shape):
        error = _largest_error(kind, device, dtype)
        if error > TOLERANCE[dtype]:
            z, y, x = kind.maps
            raise UsageError(
                f"3D convolutions (kernel {kind.kernel[0]}, stride {kind.stride[0]}, maps of "
                f"{z} x {y} x {x}) on {device.type} in {dtype} are wrong by {error:.2g} of the "
                f"largest value, more than the {TOLERANCE[dtype]:.2g} that rounding explains. "
                f"Install another release of torch (now {torch.__version__}), or set "
                f"{stage}.precision to {'fp32' if bf16 else 'bf16'}."
            )


def _largest_error(kind: Convolution, device: torch.device, dtype: torch.dtype) -> float:
    """Of result and gradients in some tries, as a share of the largest value."""
    source = torch.Generator().manual_seed(0)
    size = (2, kind.channels[0], *kind.maps)
    maps = torch.randn(size, generator=source, dtype=torch.float64)
    size = (*kind.channels[::-1], *kind.kernel)
    kernels = torch.randn(size, generator=source, dtype=torch.float64)
    expected = _convolve(kind, maps, kernels)
    errors = []
    for _ in range(TRIES):
        # Freed at once: uninitialized memory then holds these values.
        for power in range(6, 16):
            torch.full((2**power,), 1e9, device=device)
        results = _convolve(kind, maps.to(device, dtype), kernels.to(device, dtype))
        errors += [
            ((one - other).abs().max() / other.abs().max()).nan_to_num(torch.inf).item()
            for one, other in zip(results, expected, strict=True)
        ]
    return max(errors)


def _convolve(kind: Convolution, maps: torch.Tensor, kernels: torch.Tensor) -> list[torch.Tensor]:
    """The result and its gradients, as float64 on the CPU."""
    x, w = (
        each.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        for each in (maps, kernels)
    )
    result = F.conv3d(x, w, None, kind.stride, kind.padding, kind.dilation)
    gradients = torch.autograd.grad(result.square().sum(), (x, w))
    return [each.detach().cpu().double() for each in (result, *gradients)]


def check_compiler(device: torch.device, *, setting: str) -> None:
    """Compile and run a small function.

    Raises UsageError, which names the ``setting`` that asks for it, where that fails.
    """
    try:
        torch.compile(_halved)(torch.ones(8, device=device))
    except (RuntimeError, OSError, SubprocessError) as error:
        raise UsageError(
            f"{setting}: torch.compile does not work here on {device.type} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). It needs a C++ "
            "compiler (g++, or what CXX names), and Triton on a GPU. Install them, or set it to "
            "false."
        ) from error


def _halved(values: torch.Tensor) -> torch.Tensor:
    return values / 2
