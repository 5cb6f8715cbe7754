"""Batch norm with the statistics of all ranks, on a CPU too, where torch has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

MOMENTUM = 0.1
"""Weight of a batch in the running statistics: torch's default, which the encoders keep."""

DIMS = (0, 2, 3, 4)
"""Axes over which the statistics of a channel are taken."""


class RankBatchNorm(nn.BatchNorm3d):
    """Equals batch norm in one process that has the batches of all ranks, in value and gradient.

    The gradients of its weights are those of this rank's rows, to be summed like all others.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalize ``maps`` (batch, channels, z, y, x); batches of ranks may differ in size."""
        if not self.training:
            return super().forward(maps)
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        apply: Callable[..., tuple[torch.Tensor, ...]] = _Normalize.apply
        normalized, mean, variance, count = apply(wide, self.weight, self.bias, self.eps)
        with torch.no_grad():
            state = dict(self.named_buffers())
            state["num_batches_tracked"] += 1
            state["running_mean"].lerp_(mean, MOMENTUM)
            state["running_var"].lerp_(variance * count / (count - 1), MOMENTUM)
        return normalized.to(maps.dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, ...]:
        own = maps.new_tensor([maps.numel() / maps.shape[1]])
        *total, count = _over_ranks(torch.cat([maps.sum(DIMS), own]))
        mean = torch.stack(total) / count
        centred = maps - _channels(mean)
        variance = _over_ranks(centred.square().sum(DIMS)) / count
        scale = (variance + eps).rsqrt()
        normalized = centred.mul_(_channels(scale))
        ctx.save_for_backward(normalized, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalized * _channels(weight) + _channels(bias), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        normalized, weight, scale, count = ctx.saved_tensors
        of_bias = gradient.sum(DIMS)
        of_weight = (gradient * normalized).sum(DIMS)
        # Every row of every rank moved the mean and the variance (Ioffe and Szegedy 2015).
        by_mean, by_variance = _over_ranks(torch.stack([of_bias, of_weight])) / count
        rest = gradient - _channels(by_mean) - normalized * _channels(by_variance)
        return rest * _channels(weight * scale), of_weight, of_bias, None


def synchronize(model: nn.Module, device: torch.device) -> None:
    """Give every 3D batch norm of ``model`` the statistics of all ranks, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm3d:
                setattr(module, name, _synchronized(child, device))


def _synchronized(norm: nn.BatchNorm3d, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(norm)
    of_ranks = RankBatchNorm(norm.num_features)
    of_ranks.load_state_dict(norm.state_dict())
    for ours, theirs in zip(of_ranks.parameters(), norm.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return of_ranks


def _over_ranks(own: torch.Tensor) -> torch.Tensor:
    distributed.all_reduce(own)
    return own


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
