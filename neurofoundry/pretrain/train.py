"""The training loop: exact resume, on one process or many."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import SLOPE
from neurofoundry.pretrain import memory
from neurofoundry.pretrain.batches import Batches
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.optimizer import (
    DivergedError,
    learning_rate,
    make_optimizer,
    train_step,
)
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.picture import draw_views
from neurofoundry.pretrain.probe import Probe
from neurofoundry.runtime import checkpoint
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.stage import Workspace


class Trainer:
    """Trains an objective in place and leaves history, probe and checkpoints in ``work.dir``.

    Every step is a function of the weights, the seed and its own number alone: resuming needs no
    random state. Each rank reads its share of a batch; the first one writes and runs the probe.
    """

    def __init__(
        self,
        work: Workspace,
        objective: Objective,
        batches: Batches,
        params: PretrainParams,
        *,
        made_of: Mapping[str, Any],
        code: Mapping[str, str],
        probe: Probe | None,
    ) -> None:
        torch.backends.cudnn.deterministic = True
        self.work, self.objective, self.batches, self.params = work, objective, batches, params
        self.made_of, self.code = made_of, code
        self.ranks, self.leads = batches.ranks, batches.ranks.number == 0
        self.probe = probe if self.leads and probe and probe.columns else None
        self.gaps = probe.gaps if probe else []
        # The memory format in which oneDNN and cuDNN convolve fastest, by 20 to 40 %.
        objective.to(self.ranks.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(objective.train(), params)
        self.step, self.steps = 0, params.epochs * batches.per_epoch
        self.epoch_so_far: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []
        """The means of each epoch."""
        self.evaluations: list[dict[str, float]] = []
        """What the probe measured."""

    @memory.kept()
    def train(self) -> None:
        """Train from the last checkpoint to the end. Raises UsageError and DataError."""
        self.restore()
        with self.progress() as self.bar, checkpoint.termination() as termination:
            self.begin()
            for batch, stored in self.batches.read(self.step, self.steps):
                self.pace.batch_arrived()
                self.record(self.update(batch, stored), len(batch))
                if self.step % self.batches.per_epoch == 0:
                    self.after_epoch()
                stopped = self.ranks.any(termination.is_set())
                if stopped or self.checkpoint_due():
                    self.save("checkpoint")
                if stopped and self.step < self.steps:
                    self.bar.say(f"Stopped after step {self.step}; the same command continues.")
                    sys.exit(128 + signal.SIGTERM)  # as a shell reports it
                self.pace.step_ended()
        if self.step > self.pace.first:
            mean = self.pace.mean(self.step, self.params.batch_size)
            self.work.circumstances["scans_per_second"] = mean

    def restore(self) -> None:
        """Take up the last checkpoint. Raises UsageError where it is of other data or code."""
        state = self.ranks.of_first(
            checkpoint.load(
                self.work.dir / "checkpoint",
                made_of=self.made_of,
                code=self.code,
                accept_code_change=self.work.accept_code_change,
            )
        )
        if state is None:
            self.clear()
            return
        self.objective.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch_so_far = state["step"], state["epoch_so_far"]
        self.history, self.evaluations = state["history"], state["evaluations"]
        self.work.code_changes = tuple(state["code_changes"])

    def clear(self) -> None:
        """Remove what a run of other parameters left that never reached a checkpoint."""
        for name in ("history.tsv", "probe.tsv", "views.png"):
            (self.work.dir / name).unlink(missing_ok=True)
        shutil.rmtree(self.work.dir / "diverged", ignore_errors=True)

    def progress(self) -> Progress:
        """Return the progress of the steps, which the first rank shows."""
        return Progress("pretrain", self.steps, unit="steps", done=self.step, shown=self.leads)

    def begin(self) -> None:
        """Report what the probe leaves out, and evaluate the untrained encoder."""
        for sentence in self.gaps:
            self.bar.say(sentence)
        if self.step == 0:
            self.evaluate()
        self.pace = Pace(self.step, self.steps)

    def update(self, batch: pd.DataFrame, stored: torch.Tensor) -> dict[str, float]:
        """Make the next step from the stored volumes of this rank; return its loss and measures."""
        own, epoch = self.batches.own(batch), self.step // self.batches.per_epoch
        zscores = stored.to(self.ranks.device, non_blocking=True) * SLOPE
        try:
            with memory.enough(
                self.params, own=len(own), views=self.objective.views, shape=zscores.shape[2:]
            ):
                views = (self.params.augment, self.batches.seed, epoch)
                inputs = self.objective.inputs(zscores, own, *views)
                self.objective.expect(list(batch["scan_id"]), *views)
                values = train_step(
                    self.objective,
                    self.optimizer,
                    inputs,
                    batch,
                    self.params,
                    step=self.step,
                    steps=self.steps,
                    rate=learning_rate(self.step, self.steps, self.params),
                    ranks=self.ranks,
                )
        except DivergedError:
            self.save("diverged")  # apart from the checkpoints: nobody should continue from here
            raise
        if self.step == 0 and self.leads:
            draw_views(self.work.dir / "views.png", zscores, inputs)
            self.work.tracker.pictures("views", [self.work.dir / "views.png"], step=0)
        self.step += 1
        return values

    def record(self, values: dict[str, float], scans: int) -> None:
        """Keep the values of the step that was made, and show them."""
        self.epoch_so_far.append(values)
        epoch = 1 + (self.step - 1) // self.batches.per_epoch
        pace = self.pace.measure(self.step, scans)
        self.work.tracker.log({"epoch": epoch, **pace, **values}, step=self.step)
        self.bar.advance(note=f"loss {values['loss']:.3f}, {pace['scans_per_second']:.1f} scans/s")

    def after_epoch(self) -> None:
        """Write the means of an epoch, warn of a collapse, and run the probe if it is due."""
        epoch = self.step // self.batches.per_epoch
        names = self.epoch_so_far[-1]
        means = {name: fmean(values[name] for values in self.epoch_so_far) for name in names}
        self.history.append({"epoch": epoch, "step": self.step, **means})
        self.epoch_so_far = []
        write_table(pd.DataFrame(self.history), self.work.dir / "history.tsv")
        warm = self.step > self.params.warmup * self.steps
        if warm and (alarm := self.objective.alarm(means)):
            self.bar.say(f"Epoch {epoch}: {alarm}", level=logging.WARNING)
        if self.probe and (epoch % self.probe.every == 0 or self.step == self.steps):
            self.evaluate()

    def evaluate(self) -> None:
        """Run the probe on the first rank alone; the others wait for it in the next step."""
        if self.probe is None:
            return
        scores = self.probe.evaluate(self.objective.encoder, self.ranks.device)
        epoch = self.step // self.batches.per_epoch
        self.evaluations.append({"epoch": epoch, "step": self.step, **scores})
        write_table(pd.DataFrame(self.evaluations), self.work.dir / "probe.tsv")
        named = {f"probe/{name}": value for name, value in scores.items()}
        self.work.tracker.log(named, step=self.step)

    def checkpoint_due(self) -> bool:
        """Whether time or epochs ask for a checkpoint, or training has ended."""
        minutes = (time.monotonic() - self.pace.saved) / 60
        if self.step == self.steps or minutes >= self.params.checkpoint_minutes:
            return True
        epochs = self.params.checkpoint_epochs
        return epochs is not None and self.step % (epochs * self.batches.per_epoch) == 0

    def save(self, folder: str) -> None:
        """Write the state of the first rank, which is that of all, into a folder of checkpoints."""
        if not self.leads:
            return
        state = {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch_so_far": self.epoch_so_far,
            "history": self.history,
            "evaluations": self.evaluations,
            "code_changes": list(self.work.code_changes),
        }
        checkpoint.save(
            self.work.dir / folder, state, step=self.step, made_of=self.made_of, code=self.code
        )
        self.pace.saved = time.monotonic()


class Pace:
    """How fast training is, since this process began."""

    def __init__(self, step: int, steps: int) -> None:
        self.first, self.steps = step, steps
        self.began = self.saved = self.ended = time.monotonic()
        self.waited = 0.0

    def batch_arrived(self) -> None:
        """Note the end of waiting for data."""
        self.waited = time.monotonic() - self.ended

    def step_ended(self) -> None:
        """Note that everything of a step is done, checkpoint and probe included."""
        self.ended = time.monotonic()

    def mean(self, step: int, scans: int) -> float:
        """Return the scans per second since this process began, checkpoints and probes included."""
        return scans * (step - self.first) / (time.monotonic() - self.began)

    def measure(self, step: int, scans: int) -> dict[str, float]:
        """Return what the step that was made says of the pace; ``scans`` are those of its batch."""
        now = time.monotonic()
        left = (now - self.began) * (self.steps - step) / (step - self.first)
        return {
            "scans_per_second": scans / (now - self.ended),
            "data_wait_share": self.waited / (now - self.ended),
            "hours_left": left / 3600,
        }
