"""Fine-tuning: all weights of a network learn a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurofoundry.contracts.volumes import SLOPE
from neurofoundry.errors import UsageError
from neurofoundry.finetune.network import Network, Reader, infer
from neurofoundry.finetune.params import FinetuneParams, Tuning
from neurofoundry.nn import augment, seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.encoders import Encoder
from neurofoundry.tasks import Task

LIGHT = AugmentParams(
    crop=(0.9, 1.0),
    stretch=1.05,
    rotation=8,
    gamma=1.2,
    remap=0.0,
    bias=0.15,
    blur=0.5,
    coarse=1.0,
    noise=0.1,
)
"""Views that nearly keep the size of a head, and its lesions."""

Trained = TypeVar("Trained", bound=nn.Module)

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises to its peak."""


def train(
    network: Network,
    task: Task,
    *,
    name: str,
    learn: pd.DataFrame,
    val: pd.DataFrame,
    scans_per_epoch: int,
    read: Reader,
    params: FinetuneParams,
    tuning: Tuning,
    learning_rate: float,
    seed: int,
    advance: Callable[[], None],
) -> pd.DataFrame:
    """Fit ``network`` to the scans ``learn``, keep the epoch of the least loss on ``val``, and
    return the history, one row per epoch. A head that is not zero outputs the unit of the label,
    and is itself epoch 0: what training only makes worse stays as it was.

    Both tables have ``scan_id`` and ``target``. Losses are cross-entropies weighted for balanced
    classes, or squared errors over the variance of the targets. The network of a regression
    finally outputs the unit of the label. Raises UsageError if a loss is not a finite number.
    """
    optimizer = make_optimizer(network, params, tuning, learning_rate)
    trainer = Trainer(network, task, learn, scans_per_epoch, read, params, tuning, optimizer, seed)
    history = keep_best_epoch(
        network,
        lambda epoch: (trainer.run_epoch(epoch), trainer.loss_on(val)),
        start=(trainer.loss_on(learn), trainer.loss_on(val)) if trainer.head_is_fitted else None,
        name=name,
        epochs=tuning.epochs,
        learning_rate=learning_rate,
        advance=advance,
    )
    trainer.unstandardize()
    return history


def keep_best_epoch(
    network: nn.Module,
    run_epoch: Callable[[int], tuple[float, float]],
    *,
    name: str,
    epochs: int,
    learning_rate: float,
    advance: Callable[[], None],
    start: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Train for ``epochs``, keep the weights of the one with the least loss on 'val', and return
    the history, one row an epoch.

    ``run_epoch`` trains for an epoch and returns the losses on 'train' and 'val'; ``start`` are
    those of a network that may stay as it is, as epoch 0. Raises UsageError if a loss of an epoch
    is not a finite number.
    """
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}

    def judge(epoch: int, train_loss: float, val_loss: float) -> None:
        if not history or val_loss < min(row["val_loss"] for row in history):
            best.update({key: value.clone() for key, value in network.state_dict().items()})
        losses = {"train_loss": train_loss, "val_loss": val_loss}
        history.append({"epoch": epoch, "learning_rate": learning_rate, **losses})

    if start is not None:
        judge(0, *start)
    for epoch in range(1, epochs + 1):
        train_loss, val_loss = run_epoch(epoch - 1)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise UsageError(
                f"{name}: in epoch {epoch} the loss is {train_loss:g} on train and "
                f"{val_loss:g} on val. Set finetune.learning_rate below {learning_rate:g}."
            )
        judge(epoch, train_loss, val_loss)
        advance()
    network.load_state_dict(best)
    return pd.DataFrame(history)


def least_loss(tries: Sequence[tuple[Trained, pd.DataFrame]]) -> tuple[Trained, pd.DataFrame]:
    """Return the network of the try with the least loss on 'val', and the history of all tries."""
    least = [history["val_loss"].min() for _, history in tries]
    history = pd.concat([history for _, history in tries], ignore_index=True)
    return tries[int(np.argmin(least))][0], history


class Encoded(Protocol):
    """A network on an encoder; the parameters of the rest are called ``head.…``."""

    @property
    def encoder(self) -> Encoder:
        """What is pretrained."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters."""


class Trainer:
    """The parts of fine-tuning: schedule, order of the scans, and loss."""

    def __init__(
        self,
        network: Network,
        task: Task,
        learn: pd.DataFrame,
        scans_per_epoch: int,
        read: Reader,
        params: FinetuneParams,
        tuning: Tuning,
        optimizer: torch.optim.Optimizer,
        seed: int,
    ) -> None:
        self.network, self.read, self.params, self.seed = network, read, params, seed
        self.device = next(network.parameters()).device
        self.frozen = frozen_modules(network, tuning.freeze)
        for module in self.frozen:
            module.requires_grad_(False)
        self.centre, self.scale = task.standardization(learn["target"])
        head = network.head
        self.head_is_fitted = bool(head.weight.any() or head.bias.any())
        self._standardize()
        self.objective = task.loss(learn["target"].to_numpy(), self.device)
        self.scan_ids = learn["scan_id"].to_numpy()
        self.targets = self._standardized(learn)
        self.steps = math.ceil(scans_per_epoch / params.batch_size)
        """Steps per epoch."""
        self.batches = batches(len(learn), params.batch_size, seeds.generator(seed, "order"))
        self.optimizer = optimizer
        factor = warm_up_and_cosine(tuning.epochs * self.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def run_epoch(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss of its steps."""
        self.network.train()
        for module in self.frozen:
            module.eval()
        forget_statistics(self.network)
        mean = 0.0
        for step in range(epoch * self.steps, (epoch + 1) * self.steps):
            mean += self._step(step) / self.steps
        return mean

    def loss_on(self, scans: pd.DataFrame) -> float:
        """Return the loss on other scans, in evaluation mode."""
        outputs = infer(self.network, scans["scan_id"], self.read).to(self.device)
        return self.objective(outputs, self._standardized(scans)).item()

    def unstandardize(self) -> None:
        """Let the head output targets in the unit of the label."""
        with torch.no_grad():
            self.network.head.weight.mul_(self.scale)
            self.network.head.bias.mul_(self.scale).add_(self.centre)

    def _standardize(self) -> None:
        """Let a head that outputs the unit of the label output targets; zeros stay zeros."""
        head = self.network.head
        if self.head_is_fitted:
            with torch.no_grad():
                head.weight.div_(self.scale)
                head.bias.sub_(self.centre).div_(self.scale)

    def _step(self, step: int) -> float:
        """Train on one batch and return its loss."""
        rows = next(self.batches)
        scan_ids = list(self.scan_ids[rows])
        volumes = self.read(scan_ids).to(self.device).float() * SLOPE
        if self.params.augmentation == "light":
            # Drawn by step, as few scans come more than once in an epoch.
            volumes = _light_view(volumes, scan_ids, seed=self.seed, epoch=step)
        bf16 = self.params.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.network(volumes)
        loss = self.objective(outputs.float(), self.targets[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _standardized(self, scans: pd.DataFrame) -> Tensor:
        values = (scans["target"].to_numpy() - self.centre) / self.scale
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def batches(
    count: int, batch_size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers in batches of one size without end: each row once, then all again.

    A smaller last batch would give batch norm poor statistics.
    """
    batch_size = min(batch_size, count)
    rows = random.permutation(count)
    while True:
        if len(rows) < batch_size:
            rows = np.concatenate([rows, random.permutation(count)])
        yield rows[:batch_size]
        rows = rows[batch_size:]


def make_optimizer(
    network: Encoded, params: FinetuneParams, tuning: Tuning, learning_rate: float
) -> torch.optim.AdamW:
    """Return AdamW with the learning rate of each level; biases and norms are not decayed, and the
    levels that are frozen are left out."""
    frozen = {
        weight for each in frozen_modules(network, tuning.freeze) for weight in each.parameters()
    }
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, values in network.named_parameters():
        if values not in frozen:
            groups.setdefault((depth_of(network, name), values.ndim > 1), []).append(values)
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "lr": learning_rate * tuning.layer_decay**depth,
                "weight_decay": params.weight_decay * decays,
            }
            for (depth, decays), values in groups.items()
        ],
        fused=True,
    )


def frozen_modules(network: Encoded, levels: int) -> list[nn.Module]:
    """Return the modules of the lowest ``levels`` of the encoder, each without its children."""
    trained = len(network.encoder.levels) - levels
    return [
        module
        for name, module in network.encoder.named_modules()
        if not any(module.children()) and depth_of(network, name) > trained
    ]


def depth_of(network: Encoded, name: str) -> int:
    """Return how many levels a parameter or module lies below the output; 0: beside the head."""
    name = name.removeprefix("encoder.")
    depths = enumerate(() if name.startswith("head.") else network.encoder.levels, 1)
    return next((depth for depth, level in depths if name.startswith(level)), 0)


def warm_up_and_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate by step: a linear warm-up, then a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _light_view(volumes: Tensor, scan_ids: list[str], *, seed: int, epoch: int) -> Tensor:
    z, y, x = volumes.shape[2:]
    draws = augment.draw(LIGHT, seed=seed, epoch=epoch, scans=scan_ids, view=0, shape=(z, y, x))
    return augment.apply(volumes, draws)


def forget_statistics(network: nn.Module) -> None:
    """Let batch norm average over the batches of this epoch.

    With few steps, a running average would lag behind the weights, or stay with the statistics
    of another set of scans.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d) and module.training:
            module.reset_running_stats()
            module.momentum = None
