"""The gradients of a batch that is encoded in chunks, and on several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.ranks import Ranks


def compute_gradients(
    objective: Objective,
    inputs: torch.Tensor,
    persons: torch.Tensor,
    *,
    ranks: Ranks,
    chunk: int | None,
    bf16: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add the gradients of the loss of the whole batch to ``objective``; return loss and measures.

    ``inputs`` (views, own, channels, z, y, x) are this rank's share of the batch, ``persons``
    (batch,) are those of the whole batch. The rows are encoded ``chunk`` at a time in constant
    memory: once for the loss and its gradient at each encoded row, and once more to propagate that
    to the weights (GradCache, Gao et al. 2021). Encoded rows are gathered from all ranks, and each
    rank propagates its own; the sum over ranks is the gradient of the whole batch, neither averaged
    nor truncated. Loss and gradients equal those of one chunk on one rank, but for rounding, and
    but for batch norm in the encoder, whose statistics are those of a chunk (of all ranks' chunks).
    """
    rows = inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
    chunks = torch.split(rows, chunk or len(rows))

    def encode(some: torch.Tensor) -> torch.Tensor:
        with torch.autocast(some.device.type, torch.bfloat16, enabled=bf16):
            encoded = objective.encode(some)
        return encoded.to(torch.promote_types(encoded.dtype, torch.float32))

    twice = len(chunks) > 1
    with torch.set_grad_enabled(not twice), _restored(objective) if twice else nullcontext():
        encoded = torch.cat([encode(some) for some in chunks])
    own = encoded.detach().reshape(*inputs.shape[:2], -1)
    everyone = ranks.gather(own).requires_grad_()
    loss, measures = objective.loss(everyone, persons)
    torch.autograd.backward(loss)
    assert everyone.grad is not None
    for weight in objective.parameters():
        if weight.grad is not None:
            weight.grad /= ranks.count  # every rank computed all of it
    wanted = ranks.own(everyone.grad).flatten(0, 1)
    if twice:
        for some, gradient in zip(chunks, torch.split(wanted, len(chunks[0])), strict=True):
            torch.autograd.backward(encode(some), gradient)
    else:
        torch.autograd.backward(encoded, wanted)
    ranks.add_gradients(objective)
    return loss.detach(), measures


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics of norms afterwards."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, old in zip(model.buffers(), before, strict=True):
        buffer.copy_(old)
