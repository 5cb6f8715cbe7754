"""Runs the stage in processes of its own, so that a test can kill it."""

from __future__ import annotations

from pathlib import Path

from neurofoundry import stage
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import leads
from neurofoundry.pretrain.run import pretrain
from neurofoundry.tracking import TrackingParams


def run_stage(volumes: Path, out: Path, values: str) -> None:
    """As the command line does."""
    params = PretrainParams.model_validate_json(values)
    stage.run(
        "pretrain",
        lambda work: pretrain(work, volumes=volumes, method="simclr", params=params, seed=7),
        out=out,
        params={"pretrain": params.read_by("simclr")},
        inputs={"preprocess": volumes},
        track=TrackingParams(mode="disabled"),
        resume_items=True,
        leads=leads(),
    )
