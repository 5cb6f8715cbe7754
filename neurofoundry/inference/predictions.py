"""Predictions for raw scans: each with its uncertainty, and whether the scan is a familiar one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurofoundry.contracts.models import read_model_plan
from neurofoundry.finetune import reference
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.reference import Reference
from neurofoundry.inference.embeddings import Weights, describe, features_of, table
from neurofoundry.nn import encoders
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Task


def predict(
    places: Sequence[Path], *, model: Path, out: Path, workers: int, template: Path | None = None
) -> None:
    """Write the table ``out`` (.tsv or .parquet), one row a scan: prediction, or why not.

    ``model`` is one model of finetune (models/TASK/INIT/FRACTION/SEED) or a promoted one.
    ``places`` are raw scans, or outputs of preprocess; ``template`` is the folder of a template
    that is not nilearn's. Raises DataError and UsageError.
    """
    declared = read_model_plan(model)
    plan, task = declared.weights, declared.predicts
    network = Network(encoders.build(plan.encoder, seed=0), task)
    encoders.read_weights(model / "model.safetensors", network)
    known = reference.read(model / "reference.npz")
    sha256 = hash_file(model / "model.safetensors")
    weights = Weights(network.encoder, plan, sha256, declared.volumes.preprocess)
    with table(out) as (work, write):
        rows = list(features_of(places, weights, work=work, workers=workers, template=template))
        found = [n for n, row in enumerate(rows) if row.features is not None]
        said = describe(rows)
        if found:
            features = np.stack([row.features for row in rows if row.features is not None])
            values = judge(features, network.cpu(), known, task)
            values.index = pd.Index(found)
            said = said.join(values)
        write(said)


def judge(
    features: np.ndarray[Any, np.dtype[np.float32]],
    network: Network,
    known: Reference,
    task: Task,
) -> pd.DataFrame:
    """What a model says of scans, by their features (scans, features).

    Classification: ``prediction``, ``p_CLASS`` as finetune writes it, ``calibrated_p_CLASS``, and
    ``entropy`` of the latter (0 certain, 1 undecided). Regression: ``prediction`` with the ends of
    its interval, ``low`` and ``high``. Both: ``distance`` to the training scans, its limit, and
    ``out_of_distribution``, whether it is beyond.
    """
    with torch.no_grad():
        outputs = network.head(torch.from_numpy(features))
    distance = known.distance(features)
    said = {
        **task.state(outputs, temperature=known.temperature, half_width=known.half_width),
        "distance": distance,
        "distance_limit": known.distance_limit,
        "out_of_distribution": pd.array(distance > known.distance_limit, dtype="boolean"),
    }
    return pd.DataFrame(said)
