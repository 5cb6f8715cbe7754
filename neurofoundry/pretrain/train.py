"""The training loop: AdamW, warm-up and cosine, exact resume."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn import functional as F

from neurofoundry import augment, checkpoint, cohort
from neurofoundry.errors import DataError, UsageError
from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity
from neurofoundry.pretrain.ntxent import nt_xent
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.picture import draw_pairs
from neurofoundry.stage import Workspace
from neurofoundry.volumes import SLOPE, Grid, read_batch

COLLAPSED = 2.0
"""Effective rank of the embeddings below which they hardly tell one scan from another."""


def train(
    work: Workspace,
    model: nn.Module,
    scans: pd.DataFrame,
    *,
    volumes: Path,
    grid: Grid,
    params: PretrainParams,
    seed: int,
) -> list[dict[str, float]]:
    """Train ``model`` in place, from the last checkpoint if there is one; the means of each epoch.

    Every step is a function of the weights, the seed and its own number alone: resuming needs no
    random state.
    """
    device = next(model.parameters()).device
    torch.backends.cudnn.deterministic = True
    # The order that oneDNN and cuDNN convolve fastest, by 20 to 40 %.
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    model.train()
    optimizer = make_optimizer(model, params)
    steps_per_epoch = len(scans) // params.batch_size
    steps = params.epochs * steps_per_epoch
    step = 0
    epoch_so_far: list[dict[str, float]] = []
    history: list[dict[str, float]] = []
    if state := checkpoint.load(work.dir / "checkpoint"):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, epoch_so_far, history = state["step"], state["epoch_so_far"], state["history"]

    saved = time.monotonic()
    with progress_bar() as progress, checkpoint.termination() as termination:
        bar = progress.add_task("pretrain", total=steps, completed=step, note="")
        for batch, stored in read_batches(volumes, scans, grid, params, seed=seed, start=step):
            started = time.monotonic()
            epoch = step // steps_per_epoch
            rate = learning_rate(step, steps, params)
            views = make_views(stored.to(device), batch, params, seed=seed, epoch=epoch)
            if step == 0:
                draw_pairs(work.dir / "views.png", stored * SLOPE, views)
                work.tracker.picture("views", work.dir / "views.png")
            values = train_step(model, optimizer, views, batch, params, step=step, rate=rate)
            step += 1
            epoch_so_far.append(values)
            speed = len(batch) / (time.monotonic() - started)
            work.tracker.log({"epoch": epoch + 1, "scans_per_second": speed, **values}, step=step)
            note = f"loss {values['loss']:.3f}, {speed:.1f} scans/s"
            progress.update(bar, completed=step, note=note)

            if step % steps_per_epoch == 0:
                means = {name: fmean(values[name] for values in epoch_so_far) for name in values}
                history.append({"epoch": epoch + 1, "step": step, **means})
                epoch_so_far = []
                cohort.write_table(pd.DataFrame(history), work.dir / "history.tsv")
                if step > params.warmup * steps and means["effective_rank"] < COLLAPSED:
                    progress.console.print(
                        f"Epoch {epoch + 1}: the embeddings have collapsed (effective rank "
                        f"{means['effective_rank']:.1f} of {params.projection}). Lower "
                        "pretrain.learning_rate or pretrain.temperature, or raise batch_size.",
                        soft_wrap=True,
                    )
            overdue = time.monotonic() - saved >= 60 * params.checkpoint_minutes
            if overdue or termination.is_set() or step == steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"step": step, "epoch_so_far": epoch_so_far, "history": history}
                checkpoint.save(work.dir / "checkpoint", state, step=step)
                saved = time.monotonic()
            if termination.is_set() and step < steps:
                progress.console.print(f"Ended after step {step}. The same command goes on.")
                sys.exit(128 + 15)  # as a shell reports SIGTERM
    return history


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: torch.Tensor,
    batch: pd.DataFrame,
    params: PretrainParams,
    *,
    step: int,
    rate: float,
) -> dict[str, float]:
    """One update from views (2, batch, 1, z, y, x); how their embeddings lie."""
    inputs = views.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(views.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
        projections = model(inputs)
    embeddings = F.normalize(projections.float()).unflatten(0, (2, -1))
    persons = torch.tensor(pd.factorize(batch["person"])[0], device=views.device)
    loss = nt_xent(embeddings, persons, temperature=params.temperature)
    if not loss.isfinite():
        raise UsageError(
            f"The loss became {loss.item()} in step {step + 1}, with the scans "
            f"{', '.join(batch['scan_id'])}. Lower pretrain.learning_rate "
            f"({params.learning_rate:g}) or raise pretrain.warmup."
        )
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), params.clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    found = embeddings.detach()
    return {
        "loss": loss.item(),
        "learning_rate": rate,
        "alignment": alignment(found).item(),
        "uniformity": uniformity(found).item(),
        "effective_rank": effective_rank(found).item(),
    }


def read_batches(
    volumes: Path,
    scans: pd.DataFrame,
    grid: Grid,
    params: PretrainParams,
    *,
    seed: int,
    start: int,
) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
    """The batches from step ``start`` to the last: rows of ``scans`` and their volumes as stored.

    The order of an epoch depends on (seed, epoch) alone; the scans that fill no batch wait for
    another epoch. The next batch is read while this one is used.
    """
    steps_per_epoch = len(scans) // params.batch_size

    def read(step: int) -> tuple[pd.DataFrame, torch.Tensor]:
        epoch, position = divmod(step, steps_per_epoch)
        order = augment.generator(seed, "order", epoch).permutation(len(scans))
        batch = scans.iloc[order[position * params.batch_size :][: params.batch_size]]
        stored = read_batch(volumes, list(batch["scan_id"]), grid)
        for scan_id, volume in zip(batch["scan_id"], stored, strict=True):
            if not volume.any():
                raise DataError(
                    f"{scan_id}.nii: no voxel of brain. Exclude the scan, or run preprocess again."
                )
        return batch, stored

    steps = range(start, params.epochs * steps_per_epoch)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, start) if steps else None
        for step in steps:
            assert following is not None
            current, following = following.result(), None
            if step + 1 in steps:
                following = reader.submit(read, step + 1)
            yield current


def make_views(
    stored: torch.Tensor, batch: pd.DataFrame, params: PretrainParams, *, seed: int, epoch: int
) -> torch.Tensor:
    """Two views of each stored volume (batch, 1, z, y, x): (2, batch, 1, z, y, x)."""
    zscores = stored * SLOPE
    scans, (_, _, z, y, x) = list(batch["scan_id"]), stored.shape
    return torch.stack(
        [
            augment.apply(zscores, draws.to(stored.device))
            for draws in (
                augment.draw(
                    params.augment, seed=seed, epoch=epoch, scans=scans, view=view, shape=(z, y, x)
                )
                for view in (0, 1)
            )
        ]
    )


def make_optimizer(model: nn.Module, params: PretrainParams) -> torch.optim.Optimizer:
    """AdamW that spares biases and norms from weight decay."""
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, params.learning_rate, weight_decay=params.weight_decay)


def learning_rate(step: int, steps: int, params: PretrainParams) -> float:
    """Linear warm-up from 0, then a cosine to 0."""
    warmup = params.warmup * steps
    if step < warmup:
        return params.learning_rate * (step + 1) / (warmup + 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    return Progress(*columns, TimeRemainingColumn(), note, console=Console(stderr=True))
