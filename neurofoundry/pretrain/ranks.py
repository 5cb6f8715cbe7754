"""Several processes that train one model, as torchrun starts them; one alone is the plain case."""

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
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def spread(processes: int) -> None:
    """Start this command again as several processes of this machine (0: one a GPU).

    They take this one's place. One process, or one that torchrun has started, goes on as it is.
    """
    count = processes or torch.cuda.device_count()
    if count > 1 and "RANK" not in os.environ:
        # torchrun's default is one thread each, whatever there is.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
        launch = [sys.executable, "-m", "neurofoundry.pretrain.launch_ranks", "--standalone"]
        again = [f"--nproc-per-node={count}", "-m", "neurofoundry", *sys.argv[1:]]
        os.execv(sys.executable, [*launch, *again])


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started beside this one, if it did."""
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
                "Another process has ended, and this one cannot go on without it. The same command "
                "goes on from the last checkpoint."
            ) from error
        raise
    distributed.destroy_process_group()


class LostError(NeurofoundryError):
    """The consequence of what another process says."""


@dataclass(frozen=True)
class Ranks:
    """This process among its like."""

    number: int = 0
    count: int = 1

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def share(self, batch: int) -> slice:
        """Which scans of a batch are this rank's."""
        size = batch // self.count
        return slice(self.number * size, (self.number + 1) * size)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """(views, own, d) of each rank to (views, batch, d), in the order of the batch."""
        if self.count == 1:
            return own
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(parts, own)
        return torch.cat(parts, 1)

    def own(self, everyone: torch.Tensor) -> torch.Tensor:
        """This rank's part of what `gather` gave."""
        return everyone[:, self.share(everyone.shape[1])]

    def add_gradients(self, model: nn.Module) -> None:
        """Make each gradient the sum over all ranks."""
        if self.count == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # In one message: a network has many small tensors.
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def any(self, here: bool) -> bool:
        """Whether it holds for any rank."""
        if self.count == 1:
            return here
        there = torch.tensor(float(here), device=self.device)
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        return bool(there)

    def of_first(self, value: Any) -> Any:
        """The value that the first rank has."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]
