"""The stage: `neurofoundry pretrain --method simclr --volumes volumes --out encoder/simclr`.

On all GPUs of the machine by itself; `--processes 2` starts two processes on a CPU too (launch.py).
A rank that dies takes the others along; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
from torch import nn

from neurofoundry.contracts.encoder import IMAGES, SUBJECTS, Plan, Pretraining
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import (
    Grid,
    Volumes,
)
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders, seeds
from neurofoundry.nn.selfcheck import check_compiler, check_convolutions
from neurofoundry.pretrain.mae import Mae
from neurofoundry.pretrain.norm import synchronize
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.probe import Probe
from neurofoundry.pretrain.ranks import Ranks, joined
from neurofoundry.pretrain.simclr import Simclr
from neurofoundry.pretrain.train import train
from neurofoundry.runtime.code import deciding_code
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import ENCODER


def pretrain(
    work: Workspace, *, volumes: Path, method: str, params: PretrainParams, seed: int
) -> None:
    """Train an encoder on scans without labels, by one method.

    Writes the files of `encoder/METHOD/` (docs/architecture.md). A killed run goes on from its last
    checkpoint and ends with the same weights. Raises DataError and UsageError.
    """
    if method not in params.methods:
        raise UsageError(
            f"--method {method}: not one of pretrain.methods ({', '.join(params.methods)})."
        )
    opened = Volumes(volumes)
    grid = opened.grid
    table = opened.scans
    scans = select_scans(table, params)
    persons = sorted(scans["person"].unique())
    probe = None
    if params.probe:
        probe = Probe(
            table,
            params.probe,
            volumes=volumes,
            grid=grid,
            views=params.augment,
            batch_size=params.batch_size,
            seed=seed,
        )

    values = params.read_by(method)
    del values["licence"]  # no weight depends on it
    made_of = {
        "pretrain": values,
        "method": method,
        "seed": seed,
        "spacing": grid.spacing,
        "scans": hash_table(scans[["scan_id", "person", "volume_sha256"]]),
        "code": dict(deciding_code("neurofoundry.pretrain.run")),
    }
    encoder = encoders.build(params.encoder, seed=seed)
    with joined() as ranks:
        bf16 = params.precision == "bf16"
        check_convolutions(encoder, grid.shape[::-1], ranks.device, bf16=bf16, stage="pretrain")
        if method == "simclr" and params.simclr.compile:
            check_compiler(ranks.device, setting="pretrain.simclr.compile")
        objective = make_objective(method, encoder, params, grid, seed=seed)
        fit_to_ranks(encoder, params, ranks)
        history, looks = train(
            work,
            objective,
            scans,
            volumes=volumes,
            grid=grid,
            params=params,
            made_of=made_of,
            seed=seed,
            ranks=ranks,
            probe=probe,
        )

    pretraining = Pretraining(
        data_version=work.data_version,
        persons=len(persons),
        scans=len(scans),
        epochs=params.epochs,
        seed=seed,
    )
    plan = Plan(
        name=method,
        encoder=params.encoder,
        features=encoder.features,
        grid=grid.describe(),
        preprocess=opened.recipe,
        normalization=opened.normalization,
        method=method,
        licence=params.licence,
        pretraining=pretraining,
    )
    encoders.save(work.dir, encoder, plan)
    write_table(pd.DataFrame({"person": persons}), work.dir / "subjects.tsv", SUBJECTS)
    images = pd.DataFrame({"sha256": sorted(set(scans["sha256"]))})
    write_table(images, work.dir / "images.tsv", IMAGES)
    last = {name: value for name, value in history[-1].items() if name not in ("epoch", "step")}
    if probe and looks:
        last |= {name: value for name, value in looks[-1].items() if name in probe.scores}
    work.tracker.produced(f"encoder-{method}", "encoder", work.dir, ENCODER)
    work.summary |= {**last, "scans": len(scans), "persons": len(persons), "epochs": params.epochs}


def hash_table(table: pd.DataFrame) -> str:
    """Of the values of a table, in their order."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def make_objective(
    method: str, encoder: encoders.Encoder, params: PretrainParams, grid: Grid, *, seed: int
) -> Objective:
    """What ``method`` asks of the encoder; other weights than the encoder's depend on ``seed``."""
    with seeds.seeded(seed):
        if method == "mae":
            return Mae(encoder, params.mae, spacing_mm=grid.spacing)
        return Simclr(encoder, params.simclr)


def fit_to_ranks(encoder: encoders.Encoder, params: PretrainParams, ranks: Ranks) -> None:
    """Give batch norm the statistics of all ranks. Raises UsageError where ranks are unequal."""
    if params.batch_size % ranks.count:
        raise UsageError(
            f"pretrain.batch_size is {params.batch_size}, which {ranks.count} processes cannot "
            f"share equally. Take a multiple of {ranks.count}."
        )
    if ranks.count > 1 and ranks.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    elif ranks.count > 1:
        synchronize(encoder)
        if params.simclr.compile and params.encoder.norm == "batch":
            raise UsageError(
                "pretrain.simclr.compile: the batch norm that several processes share on a CPU "
                "cannot be compiled. Set it to false, or pretrain.encoder.norm to group."
            )


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
