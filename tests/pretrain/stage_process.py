"""Runs the stage in a process of its own, so that a test can kill it: VOLUMES OUT PARAMS."""

from __future__ import annotations

import sys
from pathlib import Path

from neurofoundry import stage
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.run import pretrain
from neurofoundry.tracking import TrackingParams

if __name__ == "__main__":
    volumes, out = Path(sys.argv[1]), Path(sys.argv[2])
    params = PretrainParams.model_validate_json(sys.argv[3])
    stage.run(
        "pretrain",
        lambda work: pretrain(work, volumes=volumes, method="simclr", params=params, seed=7),
        out=out,
        params={"pretrain": params},
        inputs={"preprocess": volumes},
        track=TrackingParams(mode="disabled"),
    )
