"""Fine-tuning: all weights of a network learn a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurofoundry.contracts.volumes import SLOPE
from neurofoundry.errors import UsageError
from neurofoundry.finetune.network import Network, Reader, infer
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.nn import augment, seeds
from neurofoundry.nn.augment.params import AugmentParams
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
"""Views that leave a head nearly its size, and its lesions."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises to its peak."""

DEPTHS = {"head": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4}
"""Levels of the network below its output; the stem is the lowest."""


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
    seed: int,
    advance: Callable[[], None],
) -> pd.DataFrame:
    """Fit ``network`` to the scans ``learn`` and keep the epoch of the least loss on ``val``.

    Both tables have ``scan_id`` and ``target``. Returns the history, one row an epoch: losses are
    cross-entropies weighted for balanced classes, or squared errors over the variance of the
    targets. In the end a regression's network speaks the label's unit. Raises UsageError when a
    loss is not a finite number.
    """
    device = next(network.parameters()).device
    centre, scale = task.standardization(learn["target"])
    objective = task.loss(learn["target"].to_numpy(), device)
    targets = _standardized(learn, centre, scale, device)
    val_targets = _standardized(val, centre, scale, device)
    scan_ids = learn["scan_id"].to_numpy()

    steps = math.ceil(scans_per_epoch / params.batch_size)
    batches = _batches(len(learn), params.batch_size, seeds.generator(seed, "order"))
    optimizer = torch.optim.AdamW(_parameter_groups(network, params), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rise_and_fall(params.epochs * steps))
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    for epoch in range(params.epochs):
        network.train()
        _forget_statistics(network)
        train_loss = 0.0
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows = next(batches)
            volumes = read(list(scan_ids[rows])).to(device).float() * SLOPE
            if params.augmentation == "light":
                # Drawn by step, as few scans come more than once in an epoch.
                volumes = _light_view(volumes, list(scan_ids[rows]), seed=seed, epoch=step)
            with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
                outputs = network(volumes)
            loss = objective(outputs.float(), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            train_loss += loss.item() / steps
        val_loss = objective(infer(network, val["scan_id"], read).to(device), val_targets).item()
        if not math.isfinite(train_loss) or not math.isfinite(val_loss):
            raise UsageError(
                f"{name}: in epoch {epoch + 1} the loss is {train_loss:g} on train and "
                f"{val_loss:g} on val. Set finetune.learning_rate below {params.learning_rate:g}."
            )
        if not history or val_loss < min(row["val_loss"] for row in history):
            best = {key: value.clone() for key, value in network.state_dict().items()}
        history.append({"epoch": epoch + 1, "train_loss": train_loss, "val_loss": val_loss})
        advance()

    network.load_state_dict(best)
    with torch.no_grad():
        network.head.weight.mul_(scale)
        network.head.bias.mul_(scale).add_(centre)
    return pd.DataFrame(history)


def _standardized(scans: pd.DataFrame, centre: float, scale: float, device: torch.device) -> Tensor:
    values = (scans["target"].to_numpy() - centre) / scale
    return torch.tensor(values, dtype=torch.float32, device=device)


def _batches(
    count: int, batch_size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Row numbers, batch after batch of one size: every row once, then all again.

    A smaller last batch would give batch norm poor statistics.
    """
    batch_size = min(batch_size, count)
    rows = random.permutation(count)
    while True:
        if len(rows) < batch_size:
            rows = np.concatenate([rows, random.permutation(count)])
        yield rows[:batch_size]
        rows = rows[batch_size:]


def _light_view(volumes: Tensor, scan_ids: list[str], *, seed: int, epoch: int) -> Tensor:
    z, y, x = volumes.shape[2:]
    draws = augment.draw(LIGHT, seed=seed, epoch=epoch, scans=scan_ids, view=0, shape=(z, y, x))
    return augment.apply(volumes, draws)


def _forget_statistics(network: Network) -> None:
    """Let batch norm average over the batches of this epoch.

    With few steps, a running average would lag behind the weights, or stay with the statistics
    of another set of scans.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_running_stats()
            module.momentum = None


def _parameter_groups(network: Network, params: FinetuneParams) -> list[dict[str, Any]]:
    """Every parameter with the rate of its level, and with decay unless it is a bias or a norm."""
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, values in network.named_parameters():
        level = name.removeprefix("encoder.").split(".")[0]
        depth = DEPTHS.get(level, len(DEPTHS))
        groups.setdefault((depth, values.ndim > 1), []).append(values)
    return [
        {
            "params": values,
            "lr": params.learning_rate * params.layer_decay**depth,
            "weight_decay": params.weight_decay * decays,
        }
        for (depth, decays), values in groups.items()
    ]


def _rise_and_fall(steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at a step: a straight warm-up, then half a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor
