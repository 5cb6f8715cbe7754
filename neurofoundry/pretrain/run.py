"""The stage: `neurofoundry pretrain --method simclr --volumes volumes --out encoder/simclr`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from neurofoundry import cohort, encoders
from neurofoundry.errors import DataError, UsageError
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.train import train
from neurofoundry.stage import Workspace
from neurofoundry.volumes import read_grid


def pretrain(
    work: Workspace, *, volumes: Path, method: str, params: PretrainParams, seed: int
) -> None:
    """Train an encoder so that two views of a scan lie closer than views of other persons.

    Writes the files of `encoder/METHOD/` (docs/architecture.md). A killed run goes on from its last
    checkpoint and ends with the same weights. Raises DataError and UsageError.
    """
    if method not in params.methods:
        raise UsageError(
            f"--method {method}: not one of pretrain.methods ({', '.join(params.methods)})."
        )
    grid = read_grid(volumes)
    table = cohort.read_table(volumes / "scans.tsv", cohort.VOLUMES)
    scans = select_scans(table, params)
    persons = sorted(scans["person"].unique())

    encoder = encoders.build(params.encoder, seed=seed)
    with encoders.seeded(seed):
        projector = nn.Sequential(
            # Batch norm, as in the authors' code of SimCLR: without it a small cohort collapses.
            nn.Linear(encoder.features, encoder.features, bias=False),
            nn.BatchNorm1d(encoder.features),
            nn.ReLU(),
            nn.Linear(encoder.features, params.projection),
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Sequential(encoder, projector).to(device)
    history = train(work, model, scans, volumes=volumes, grid=grid, params=params, seed=seed)

    pretraining = encoders.Pretraining(
        data_version=work.data_version,
        persons=len(persons),
        scans=len(scans),
        epochs=params.epochs,
        seed=seed,
    )
    plan = encoders.Plan(
        name=method,
        encoder=params.encoder,
        features=encoder.features,
        grid=grid.describe(),
        method=method,
        licence=params.licence,
        pretraining=pretraining,
    )
    encoders.save(work.dir, encoder, plan)
    cohort.write_table(pd.DataFrame({"person": persons}), work.dir / "subjects.tsv")
    work.summary |= {name: history[-1][name] for name in ("loss", "effective_rank")}
    work.summary |= {"scans": len(scans), "persons": len(persons), "epochs": params.epochs}


def select_scans(table: pd.DataFrame, params: PretrainParams) -> pd.DataFrame:
    """The usable scans of ``params.splits``, in the order of their ids. Raises DataError."""
    scans = table[table["usable"] & table["split"].isin(params.splits)].sort_values("scan_id")
    found = f"The splits {', '.join(params.splits)} hold {len(scans)} usable scans"
    if len(scans) < params.batch_size:
        raise DataError(
            f"{found}, fewer than a batch. Lower pretrain.batch_size ({params.batch_size}), or "
            "add a split to pretrain.splits."
        )
    if scans["person"].nunique() < 2:
        raise DataError(
            f"{found}, all of one person, and contrast needs two. Add scans of other persons, or "
            "a split to pretrain.splits."
        )
    return scans
