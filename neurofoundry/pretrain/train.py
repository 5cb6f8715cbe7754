"""The training loop: AdamW, warm-up and cosine, exact resume, on one process or many."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import SLOPE, Grid, VolumeFolder
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import seeds
from neurofoundry.nn.batches import read_batch
from neurofoundry.pretrain import memory
from neurofoundry.pretrain.gradients import compute_gradients
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.picture import draw_views
from neurofoundry.pretrain.probe import Probe
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.runtime import checkpoint
from neurofoundry.runtime.stage import Workspace

READERS = 4
"""Volumes that are read at once."""


@memory.kept()
def train(
    work: Workspace,
    objective: Objective,
    scans: pd.DataFrame,
    *,
    volumes: Path,
    grid: Grid,
    params: PretrainParams,
    made_of: Mapping[str, Any],
    seed: int,
    ranks: Ranks,
    probe: Probe | None,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Train in place, from the last checkpoint if there is one; the means of each epoch, and what
    the probe saw.

    Every step is a function of the weights, the seed and its own number alone: resuming needs no
    random state. Each rank reads its share of a batch, and the first one writes. A checkpoint that
    is not ``made_of`` the same raises UsageError.
    """
    torch.backends.cudnn.deterministic = True
    # The order that oneDNN and cuDNN convolve fastest, by 20 to 40 %.
    objective.to(ranks.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    objective.train()
    optimizer = make_optimizer(objective, params)
    steps_per_epoch = len(scans) // params.batch_size
    steps = params.epochs * steps_per_epoch
    step = 0
    epoch_so_far: list[dict[str, float]] = []
    history: list[dict[str, float]] = []
    looks: list[dict[str, float]] = []
    if state := ranks.of_first(checkpoint.load(work.dir / "checkpoint", made_of=made_of)):
        objective.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, epoch_so_far, history = state["step"], state["epoch_so_far"], state["history"]
        looks = state["looks"]
    elif ranks.number == 0:
        _clear(work.dir)

    def look(probe: Probe) -> None:
        found = probe.look(objective.encoder, ranks.device)
        looks.append({"epoch": step // steps_per_epoch, "step": step, **found})
        write_table(pd.DataFrame(looks), work.dir / "probe.tsv")
        work.tracker.log({f"probe/{name}": value for name, value in found.items()}, step=step)

    def state_now() -> dict[str, Any]:
        return {
            "model": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "epoch_so_far": epoch_so_far,
            "history": history,
            "looks": looks,
        }

    leads = ranks.number == 0
    # The first rank alone looks; the others wait for it in the next step.
    looker = probe if leads and probe and probe.columns else None
    batches = read_batches(volumes, scans, grid, params, seed=seed, start=step, ranks=ranks)
    with progress_bar(shown=leads) as progress, checkpoint.termination() as termination:
        bar = progress.add_task("pretrain", total=steps, completed=step, note="")
        for sentence in probe.gaps if probe else ():
            progress.console.print(sentence, soft_wrap=True)
        if looker and step == 0:
            look(looker)
        began = saved = ended = time.monotonic()
        before = step
        for batch, stored in batches:
            waited = time.monotonic() - ended
            epoch = step // steps_per_epoch
            own = list(batch["scan_id"].iloc[ranks.share(len(batch))])
            zscores = stored.to(ranks.device, non_blocking=True) * SLOPE
            rate = learning_rate(step, steps, params)
            try:
                with memory.enough(params, own=len(own), shape=zscores.shape[2:]):
                    inputs = objective.inputs(zscores, own, params.augment, seed, epoch)
                    values = train_step(
                        objective,
                        optimizer,
                        inputs,
                        batch,
                        params,
                        step=step,
                        rate=rate,
                        ranks=ranks,
                    )
            except DivergedError:
                if leads:  # apart from the checkpoints: nobody should go on from here
                    checkpoint.save(work.dir / "diverged", state_now(), step=step, made_of=made_of)
                raise
            if step == 0 and leads:
                draw_views(work.dir / "views.png", zscores, inputs)
                work.tracker.pictures("views", [work.dir / "views.png"], step=0)
            step += 1
            epoch_so_far.append(values)
            seconds = time.monotonic() - ended
            speed = len(batch) / seconds
            left = (time.monotonic() - began) * (steps - step) / (step - before)
            pace = {
                "scans_per_second": speed,
                "data_wait_share": waited / seconds,
                "hours_left": left / 3600,
            }
            work.tracker.log({"epoch": epoch + 1, **pace, **values}, step=step)
            note = f"loss {values['loss']:.3f}, {speed:.1f} scans/s"
            progress.update(bar, completed=step, note=note)

            if step % steps_per_epoch == 0:
                means = {name: fmean(values[name] for values in epoch_so_far) for name in values}
                history.append({"epoch": epoch + 1, "step": step, **means})
                epoch_so_far = []
                write_table(pd.DataFrame(history), work.dir / "history.tsv")
                if step > params.warmup * steps and (alarm := objective.alarm(means)):
                    progress.console.print(f"Epoch {epoch + 1}: {alarm}", soft_wrap=True)
                if looker and ((epoch + 1) % looker.every == 0 or step == steps):
                    look(looker)
            stopped = ranks.any(termination.is_set())
            due = time.monotonic() - saved >= 60 * params.checkpoint_minutes
            if params.checkpoint_epochs:
                due |= step % (params.checkpoint_epochs * steps_per_epoch) == 0
            if leads and (due or stopped or step == steps):
                checkpoint.save(work.dir / "checkpoint", state_now(), step=step, made_of=made_of)
                saved = time.monotonic()
            if stopped and step < steps:
                progress.console.print(f"Ended after step {step}. The same command goes on.")
                sys.exit(128 + 15)  # as a shell reports SIGTERM
            ended = time.monotonic()
    return history, looks


def _clear(folder: Path) -> None:
    """Remove what a run of other parameters has left that never came to a checkpoint."""
    for name in ("history.tsv", "probe.tsv", "views.png"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "diverged", ignore_errors=True)


class DivergedError(UsageError):
    """The loss or its gradient is no number any more."""


def train_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    batch: pd.DataFrame,
    params: PretrainParams,
    *,
    step: int,
    rate: float,
    ranks: Ranks,
) -> dict[str, float]:
    """One update from this rank's inputs of a batch; the loss and the method's measures."""
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
    for what, value in (("loss", loss), ("gradient", norm)):
        if not value.isfinite():
            raise DivergedError(
                f"The {what} became {value.item()} in step {step + 1}, with the scans "
                f"{', '.join(batch['scan_id'])}. Lower pretrain.learning_rate "
                f"({params.learning_rate:g}) or raise pretrain.warmup. What the step began with "
                "is in the folder diverged."
            )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    values = {name: value.item() for name, value in measures.items()}
    return {"loss": loss.item(), "learning_rate": rate, **values}


def read_batches(
    volumes: Path,
    scans: pd.DataFrame,
    grid: Grid,
    params: PretrainParams,
    *,
    seed: int,
    start: int,
    ranks: Ranks,
) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
    """The batches from step ``start`` to the last: rows of ``scans``, and the volumes as stored of
    those that are this rank's.

    The order of an epoch depends on (seed, epoch) alone; the scans that fill no batch wait for
    another epoch. The next batch is read while this one is used.
    """
    steps_per_epoch = len(scans) // params.batch_size

    def read(step: int) -> tuple[pd.DataFrame, torch.Tensor]:
        epoch, position = divmod(step, steps_per_epoch)
        order = seeds.generator(seed, "order", epoch).permutation(len(scans))
        batch = scans.iloc[order[position * params.batch_size :][: params.batch_size]]
        own = list(batch["scan_id"].iloc[ranks.share(len(batch))])
        gpu = ranks.device.type == "cuda"
        stored = read_batch(VolumeFolder(volumes, grid), own, readers=readers, pinned=gpu)
        for scan_id, volume in zip(own, stored, strict=True):
            if not volume.any():
                raise DataError(
                    f"{scan_id}.nii: no voxel of brain. Exclude the scan, or run preprocess again."
                )
        return batch, stored

    steps = range(start, params.epochs * steps_per_epoch)
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, start) if steps else None
        for step in steps:
            assert following is not None
            current, following = following.result(), None
            if step + 1 in steps:
                following = reader.submit(read, step + 1)
            yield current


def make_optimizer(model: nn.Module, params: PretrainParams) -> torch.optim.Optimizer:
    """AdamW that spares biases and norms from weight decay."""
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, params.learning_rate, weight_decay=params.weight_decay, fused=True
    )


def learning_rate(step: int, steps: int, params: PretrainParams) -> float:
    """Linear warm-up from 0, then a cosine to 0."""
    warmup = params.warmup * steps
    if step < warmup:
        return params.learning_rate * (step + 1) / (warmup + 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def progress_bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True, quiet=not shown)
    return Progress(*columns, TimeRemainingColumn(), note, console=console)
