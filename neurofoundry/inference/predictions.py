"""Predictions for raw scans, each with its uncertainty and whether the scan is familiar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurofoundry.contracts.models import EnsemblePlan, ModelPlan, read_ensemble
from neurofoundry.finetune import trust
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.trust import Trust
from neurofoundry.inference.embeddings import (
    DESCRIBED,
    Weights,
    describe_scans,
    embed_scans,
    open_table,
)
from neurofoundry.inference.members import ModelFolder, read_members
from neurofoundry.inference.outlines import outline
from neurofoundry.runtime.files import hash_json
from neurofoundry.runtime.guard import guard_table
from neurofoundry.tasks import Segmentation, Task
from neurofoundry.tasks.base import Uncertainty


@dataclass(frozen=True, eq=False)
class Member:
    """A trained network, and how far to trust it alone."""

    plan: ModelPlan
    task: Task
    network: Network
    trust: Trust
    sha256: str


@dataclass(frozen=True, eq=False)
class Model:
    """One trained network or several, whose predictions are averaged."""

    members: tuple[Member, ...]
    uncertainty: Uncertainty
    distance_limit: float

    @property
    def plan(self) -> ModelPlan:
        """What all members have in common is what the first one says."""
        return self.members[0].plan

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.members[0].task

    @property
    def weights(self) -> Weights:
        """What gives scans the features that the heads of all members take, side by side."""
        extractor = SideBySide([member.network.extractor for member in self.members])
        sha256 = hash_json([self.plan.test_time_augmentation, *(m.sha256 for m in self.members)])
        return Weights(extractor, self.plan.weights, sha256, self.plan.volumes.preprocess)


class SideBySide(nn.Module):
    """The features of several extractors (batch, extractors × features)."""

    def __init__(self, extractors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.extractors = nn.ModuleList(extractors)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the features, those of the first extractor first."""
        return torch.cat([extractor(volumes) for extractor in self.extractors], dim=1)


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

    A segmentation also writes masks (`outlines.outline`). ``model`` is one model of finetune
    (models/TASK/INIT/FRACTION/SEED), all of its seeds and folds (models/TASK/INIT/FRACTION), or a
    promoted one. ``places`` are raw scans, or outputs of preprocess; ``template`` is the folder of
    a template that is not nilearn's, and ``mask_command`` the program that finds the brain, as in
    `embed`. Raises DataError and UsageError.
    """
    read = [*places, model, *([template] if template else [])]
    guard_table(out, columns=DESCRIBED, inputs=read)
    members = read_members(model)
    if isinstance(members[0].task, Segmentation):
        outline(
            places,
            members=members,
            out=out,
            workers=workers,
            template=template,
            mask_command=mask_command,
        )
        return
    loaded = _read_model(model, members)
    with open_table(out) as (work, write):
        rows = list(
            embed_scans(
                places,
                loaded.weights,
                work=work,
                workers=workers,
                template=template,
                mask_command=mask_command,
            )
        )
        table = describe_scans(rows, loaded.plan.encoder)
        embedded = {n: row.features for n, row in enumerate(rows) if row.features is not None}
        if embedded:
            predictions = predict_from_features(np.stack(list(embedded.values())), loaded)
            predictions.index = pd.Index(embedded)
            table = table.join(predictions)
        write(table)


def _read_model(folder: Path, parts: Sequence[ModelFolder]) -> Model:
    """Read one model of finetune, or an ensemble of several. Raises DataError."""
    members = tuple(_read_member(part) for part in parts)
    together = read_ensemble(folder)
    if together is None:
        return Model(members, members[0].trust.uncertainty, members[0].trust.distance_limit)
    limit = together.distance_limit
    return Model(members, _uncertainty(together), math.nan if limit is None else limit)


def _uncertainty(together: EnsemblePlan) -> Uncertainty:
    return Uncertainty(
        math.nan if together.temperature is None else together.temperature,
        tuple(math.inf if limit is None else limit for limit in together.limits),
        together.calibrated_on,
    )


def _read_member(part: ModelFolder) -> Member:
    network, task = part.read_network(), part.task
    assert isinstance(network, Network)
    assert isinstance(task, Task)
    return Member(part.plan, task, network, trust.read(part.folder / "trust.npz"), part.sha256)


def predict_from_features(features: NDArray[np.float32], model: Model) -> pd.DataFrame:
    """Return what a model says of scans, from their features (scans, members × features).

    Classification: ``prediction``, ``p_CLASS`` as finetune writes it, ``calibrated_p_CLASS``, and
    ``entropy`` of the latter (0 certain, 1 undecided), and the ``set`` of classes that holds the
    truth in 90 %. Regression: ``prediction`` with the ends of such an interval, ``low`` and
    ``high``. Both: the val persons that set or interval is ``calibrated_on``; ``distance`` to the
    training scans, its limit, and ``out_of_distribution``, whether it is above the limit. Of an
    ensemble predictions are averaged as its evaluation has done, and distances are means.
    """
    task, parts = model.task, np.split(features, len(model.members), axis=1)
    of_members, distances = [], []
    for member, part in zip(model.members, parts, strict=True):
        with torch.no_grad():
            columns = task.columns(member.network.head.cpu()(torch.from_numpy(part)))
        of_members.append(np.stack(list(columns.values()), axis=1))
        distances.append(member.trust.distance(part))
    outputs = torch.from_numpy(task.network_outputs(task.average(np.stack(of_members))))
    distance = np.mean(distances, axis=0)
    predictions = {
        **task.state(outputs, model.uncertainty),
        "distance": distance,
        "distance_limit": model.distance_limit,
        "out_of_distribution": pd.array(distance > model.distance_limit, dtype="boolean"),
    }
    return pd.DataFrame(predictions)
