"""Weights & Biases: the only module that knows it.

One run a stage, grouped by pipeline run. Without an account runs are kept offline in ``wandb/``
and `wandb sync` sends them later. Nothing about the machine or a person is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb

from neurofoundry.params import Section


class TrackingParams(Section):
    """Where experiments are recorded."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, offline without."""
    project: str = "neurofoundry"


@dataclass(frozen=True)
class Tracker:
    """Records numbers and pictures of one stage."""

    _run: wandb.Run

    @property
    def name(self) -> str:
        """Project and id: what finds the run again, online or after `wandb sync`."""
        return f"{self._run.project}/{self._run.id}"

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Record values at a step; a step recorded before a resume is not recorded twice."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the numbers that a run is compared by."""
        self._run.summary.update(dict(values))

    def picture(self, name: str, path: Path) -> None:
        """Record a PNG."""
        self._run.log({name: wandb.Image(str(path))})


@contextmanager
def run(
    params: TrackingParams,
    *,
    stage: str,
    key: str,
    config: Mapping[str, Any],
    place: Path | None = None,
) -> Iterator[Tracker]:
    """Record a stage. The run's id comes from ``key``, so a resumed stage continues its run.

    What is recorded offline goes into ``place``; without one to WANDB_DIR or here.
    """
    if place:
        place.mkdir(parents=True, exist_ok=True)
    mode = params.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    # W&B talks to people on the terminal; the stage has its own progress and messages.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        host="neurofoundry",
        init_timeout=30,
    )
    recorded = wandb.init(
        project=params.project,
        id=key[:16],
        name=f"{stage}-{key[:6]}",
        group=pipeline_run(),
        job_type=stage,
        config=dict(config),
        mode=mode,
        resume="allow" if mode == "online" else None,
        dir=str(place or os.environ.get("WANDB_DIR", ".")),
        settings=settings,
    )
    # Not `with`: leaving it by an exception, W&B prints a traceback with paths of the machine.
    try:
        yield Tracker(recorded)
    except BaseException:
        recorded.finish(exit_code=1)
        raise
    recorded.finish()


def pipeline_run() -> str:
    """The name that groups the stages of one run: Kubeflow's, DVC's experiment, or 'local'."""
    return os.environ.get("NEUROFOUNDRY_RUN") or os.environ.get("DVC_EXP_NAME") or "local"
