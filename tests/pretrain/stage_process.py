"""Runs the stage in processes of its own, so that a test can kill it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.nn import encoders
from neurofoundry.pretrain import objectives
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import leads
from neurofoundry.pretrain.run import pretrain
from neurofoundry.runtime import stage


def run_stage(volumes: Path, out: Path, values: str) -> None:
    """As the command line does."""
    params = PretrainParams.model_validate_json(values)
    (method,) = params.methods
    stage.run(
        "pretrain",
        lambda work: pretrain(work, volumes=volumes, method=method, params=params, seed=7),
        to=stage.Destination(out),
        params={"pretrain": params.read_by(method)},
        inputs={"preprocess": volumes},
        leads=leads(),
        found_by_name=[objectives.MODULES[method]],
    )


def run_shallow_stage(volumes: Path, out: Path, values: str, cache: Path) -> None:
    """With the stem and the first level of the encoder alone, as the compiler takes its time; what
    it has made lies in ``cache``."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    build = encoders.build

    def shallow(params: EncoderParams, *, seed: int, channels: int = 1) -> encoders.Encoder:
        encoder = build(params, seed=seed, channels=channels)
        encoder.layer2, encoder.layer3 = nn.Identity(), nn.Identity()
        encoder.layer4 = encoders.Padded(encoder.features, 1)
        return encoder

    encoders.build = shallow
    run_stage(volumes, out, values)
