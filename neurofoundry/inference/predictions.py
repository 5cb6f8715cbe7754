"""Predictions for raw scans, each with its uncertainty and whether the scan is familiar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neurofoundry.contracts.models import read_model_plan
from neurofoundry.contracts.origin import check_contents
from neurofoundry.finetune import reference
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.reference import Reference
from neurofoundry.inference.embeddings import (
    DESCRIBED,
    Weights,
    describe_scans,
    embed_scans,
    open_table,
)
from neurofoundry.nn import encoders
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.guard import guard_table
from neurofoundry.runtime.links import check_links
from neurofoundry.tasks import Task

MODEL_FILES = ("model.safetensors", "plan.json", "reference.npz")
"""What a prediction is made of."""


def predict(
    places: Sequence[Path],
    *,
    model: Path,
    out: Path,
    workers: int,
    template: Path | None = None,
    mask_command: str | None = None,
) -> None:
    """Write the table ``out`` (.tsv or .parquet), one row a scan: prediction, or why there is none.

    ``model`` is one model of finetune (models/TASK/INIT/FRACTION/SEED) or a promoted one.
    ``places`` are raw scans, or outputs of preprocess; ``template`` is the folder of a template
    that is not nilearn's, and ``mask_command`` the program that finds the brain, as in `embed`.
    Raises DataError and UsageError.
    """
    read = [*places, model, *([template] if template else [])]
    guard_table(out, columns=DESCRIBED, inputs=read)
    check_links(model)  # before anything is hashed: a link may lead to a device
    check_contents(model, MODEL_FILES)
    declared = read_model_plan(model)
    plan, task = declared.weights, declared.predicts
    network = Network(encoders.build(plan.encoder, seed=0), task)
    encoders.read_weights(model / "model.safetensors", network)
    known = reference.read(model / "reference.npz")
    sha256 = hash_file(model / "model.safetensors")
    weights = Weights(network.encoder, plan, sha256, declared.volumes.preprocess)
    with open_table(out) as (work, write):
        rows = list(
            embed_scans(
                places,
                weights,
                work=work,
                workers=workers,
                template=template,
                mask_command=mask_command,
            )
        )
        table = describe_scans(rows)
        embedded = {n: row.features for n, row in enumerate(rows) if row.features is not None}
        if embedded:
            features = np.stack(list(embedded.values()))
            predictions = predict_from_features(features, network.cpu(), known, task)
            predictions.index = pd.Index(embedded)
            table = table.join(predictions)
        write(table)


def predict_from_features(
    features: NDArray[np.float32], network: Network, known: Reference, task: Task
) -> pd.DataFrame:
    """Return what a model says of scans, from their features (scans, features).

    Classification: ``prediction``, ``p_CLASS`` as finetune writes it, ``calibrated_p_CLASS``, and
    ``entropy`` of the latter (0 certain, 1 undecided). Regression: ``prediction`` with the ends of
    its interval, ``low`` and ``high``. Both: ``distance`` to the training scans, its limit, and
    ``out_of_distribution``, whether it is above the limit.
    """
    with torch.no_grad():
        outputs = network.head(torch.from_numpy(features))
    distance = known.distance(features)
    predictions = {
        **task.state(outputs, temperature=known.temperature, half_width=known.half_width),
        "distance": distance,
        "distance_limit": known.distance_limit,
        "out_of_distribution": pd.array(distance > known.distance_limit, dtype="boolean"),
    }
    return pd.DataFrame(predictions)
