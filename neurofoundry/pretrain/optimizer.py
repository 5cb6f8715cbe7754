"""AdamW, its learning rate, and one update of the weights."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import nn

from neurofoundry.errors import UsageError
from neurofoundry.pretrain.gradients import compute_gradients
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks


class DivergedError(UsageError):
    """The loss or its gradient is no longer a finite number."""


def make_optimizer(model: nn.Module, params: PretrainParams) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) that decays kernels, not biases and norms."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    kernels = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, params.learning_rate, weight_decay=params.weight_decay, fused=True
    )


def learning_rate(step: int, steps: int, params: PretrainParams) -> float:
    """Return the rate of a step: a linear warm-up from 0, then half a cosine to 0, or none."""
    warmup = params.warmup * steps
    if step < warmup:
        return params.learning_rate * (step + 1) / (warmup + 1)
    if params.schedule == "constant":
        return params.learning_rate
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    batch: pd.DataFrame,
    params: PretrainParams,
    *,
    step: int,
    steps: int,
    rate: float,
    ranks: Ranks,
) -> dict[str, float]:
    """Update the weights once, by this rank's ``inputs`` of a batch and those of all others.

    Returns the loss, the learning rate and the objective's measures. Raises DivergedError before
    the weights have changed.
    """
    persons = torch.tensor(pd.factorize(batch["person"])[0], device=inputs.device)
    optimizer.zero_grad()
    loss, measures = compute_gradients(
        objective,
        inputs,
        persons,
        ranks=ranks,
        chunk=params.chunk,
        bf16=params.precision == "bf16",
    )
    norm = nn.utils.clip_grad_norm_(objective.parameters(), params.clip)
    tensors = {"loss": loss, "gradient": norm, **measures}
    # All in one transfer, the only one of a step: a GPU would be waited for each time.
    numbers = torch.stack([value.detach().double() for value in tensors.values()]).tolist()
    values: dict[str, float] = dict(zip(tensors, numbers, strict=True))
    for what in ("loss", "gradient"):
        if not math.isfinite(values[what]):
            raise DivergedError(
                f"The {what} became {values[what]} in step {step + 1}, with the scans "
                f"{', '.join(batch['scan_id'])}. Lower pretrain.learning_rate "
                f"({params.learning_rate:g}) or raise pretrain.warmup. The state before this step "
                "is in the folder diverged."
            )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    with torch.no_grad():
        objective.after_step(step + 1, steps)
    del values["gradient"]
    return {"loss": values.pop("loss"), "learning_rate": rate, **values}
