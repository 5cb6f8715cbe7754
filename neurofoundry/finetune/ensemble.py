"""The models of all seeds and folds as one, whose predictions are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from neurofoundry.contracts.models import PREDICTIONS, EnsemblePlan, write_ensemble
from neurofoundry.contracts.tables import read_table
from neurofoundry.finetune import trust
from neurofoundry.finetune.trust import Values
from neurofoundry.tasks import Segmentation, Task


def write(folder: Path, members: Sequence[str], task: Task | Segmentation) -> None:
    """Write ensemble.json into ``folder``, that of a share of the labels, with its ``members``."""
    if isinstance(task, Task):
        plan = _trusted(folder, members, task)
    else:
        plan = EnsemblePlan(members=tuple(members), temperature=None, distance_limit=None)
    write_ensemble(folder, plan)


def _trusted(folder: Path, members: Sequence[str], task: Task) -> EnsemblePlan:
    """Return the ensemble, and how far to trust the members together.

    That is fitted as for each of them, on validation scans; of a cross-validation each scan is
    judged by the models that it has validated, which have not learned from it.
    """
    tables = pd.concat([_validation(folder / member) for member in members])
    tables = tables.sort_values("scan_id", kind="stable")
    scans = tables.drop_duplicates("scan_id")
    columns = [*task.output_columns, "distance"]
    by_member = tables[columns].to_numpy(float).reshape(len(scans), -1, len(columns)).swapaxes(0, 1)
    outputs = task.network_outputs(task.average(by_member[..., :-1]))
    targets: Values = task.numbers(scans["label"]).to_numpy(float)
    fitted = task.uncertainty(outputs, targets, scans["person"].to_numpy())
    return EnsemblePlan(
        members=tuple(members),
        distance_limit=trust.distance_limit(by_member[..., -1].mean(axis=0)),
        temperature=fitted.temperature if math.isfinite(fitted.temperature) else None,
        limits=tuple(each if math.isfinite(each) else None for each in fitted.limits),
        calibrated_on=fitted.calibrated_on,
    )


def _validation(member: Path) -> pd.DataFrame:
    """Return the predictions of a model for its validation scans, with their ``distance``."""
    table = read_table(member / "predictions.tsv", PREDICTIONS)
    distance = trust.read(member / "trust.npz").val_distance
    return table[table["split"] == "val"].assign(distance=distance)
