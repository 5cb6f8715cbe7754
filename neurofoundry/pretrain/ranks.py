"""Processes that train one model together, as torchrun starts them; or one process alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from neurofoundry.errors import NeurofoundryError


def leads() -> bool:
    """Return whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def spread(processes: int) -> None:
    """Replace this process by several that run the same command (0: one a GPU of this machine).

    One process alone, and one that torchrun has started, continues as it is.
    """
    count = processes or torch.cuda.device_count()
    if count > 1 and "RANK" not in os.environ:
        # They share the threads of this one; torchrun's default is one each, whatever there is.
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
        launch = [sys.executable, "-m", "neurofoundry.pretrain.launch_ranks", "--standalone"]
        again = [f"--nproc-per-node={count}", "-m", "neurofoundry", *sys.argv[1:]]
        os.execv(sys.executable, [*launch, *again])


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun has started beside this one, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Each device has its own backend: NCCL on GPUs, gloo on CPUs.
    distributed.init_process_group(timeout=timedelta(minutes=10))
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise LostError(
                "Another process has ended, and this one cannot continue without it. The same "
                "command continues from the last checkpoint."
            ) from error
        raise
    distributed.destroy_process_group()


class LostError(NeurofoundryError):
    """Another process has ended, and reports why."""


@dataclass(frozen=True)
class Ranks:
    """The number of this process among all that train together."""

    number: int = 0
    count: int = 1

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def share(self, batch: int) -> slice:
        """Return which scans of a batch are this rank's."""
        size = batch // self.count
        return slice(self.number * size, (self.number + 1) * size)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Gather (views, own, d) of each rank into (views, batch, d), in the order of the batch."""
        if self.count == 1:
            return own
        own = own.contiguous()
        shares = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(shares, own)
        return torch.cat(shares, 1)

    def own(self, everyone: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of what `gather` returned."""
        return everyone[:, self.share(everyone.shape[1])]

    def add_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over all ranks."""
        if self.count == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # In one message: a network has many small tensors.
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def any(self, here: bool) -> bool:
        """Return whether it holds for any rank."""
        if self.count == 1:
            return here
        there = torch.tensor(float(here), device=self.device)
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        return bool(there)

    def of_first(self, value: Any) -> Any:
        """Return the value that the first rank has."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]
