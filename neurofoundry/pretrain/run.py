"""The stage: `neurofoundry pretrain --method simclr --volumes volumes --out encoder/simclr`.

It uses all GPUs of the machine; with `--processes 2` two processes share a CPU (launch_ranks.py).
A rank that dies ends the others too; the same command continues from the last checkpoint.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry import morphometry
from neurofoundry.contracts.encoder import IMAGES, SUBJECTS, Plan, Pretraining
from neurofoundry.contracts.tables import hash_table, write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.selfcheck import check_convolutions
from neurofoundry.pretrain import objectives
from neurofoundry.pretrain.batches import Batches
from neurofoundry.pretrain.norm import synchronize
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.probe import Probe
from neurofoundry.pretrain.ranks import Ranks, joined
from neurofoundry.pretrain.train import Trainer
from neurofoundry.runtime.code import deciding_code
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import encoder_artifact


def pretrain(
    work: Workspace, *, volumes: Path, method: str, params: PretrainParams, seed: int
) -> None:
    """Train an encoder on scans without labels, by one objective.

    Writes the files of `encoder/METHOD/` (docs/architecture.md). A killed run continues from its
    last checkpoint and ends with the same weights. Raises DataError and UsageError.
    """
    section = params.section(method)
    source = Volumes(volumes)
    scans, spacing = select_scans(source.scans, params), source.grid.spacing
    probe = None
    if params.probe:
        views, size = params.augment, params.batch_size
        probe = Probe(source, params.probe, views=views, batch_size=size, seed=seed)
    encoder = encoders.build(params.encoder, seed=seed, channels=len(source.contrasts))
    with joined() as ranks:
        shape, bf16 = source.grid.shape[::-1], params.precision == "bf16"
        check_convolutions(encoder, shape, ranks.device, bf16=bf16, stage="pretrain")
        objective = objectives.build(method, encoder, section, spacing_mm=spacing, seed=seed)
        fit_to_ranks(objective, params, ranks)
        objective.prepare(
            list(scans["scan_id"]), partial(morphometry.measure, source), params.augment, seed=seed
        )
        trainer = Trainer(
            work,
            objective,
            Batches(scans, source, params.batch_size, seed, ranks),
            params,
            made_of=made_of(method, params, source, scans, seed=seed),
            code=deciding_code("neurofoundry.pretrain.run", objectives.MODULES[method]),
            probe=probe,
        )
        trainer.train()
    write_encoder(work, objective, params, source, scans, seed=seed)
    last = {k: value for k, value in trainer.history[-1].items() if k not in ("epoch", "step")}
    if probe and trainer.evaluations:
        last |= {k: value for k, value in trainer.evaluations[-1].items() if k in probe.scores}
    counts = {"scans": len(scans), "persons": scans["person"].nunique(), "epochs": params.epochs}
    work.summary |= last | counts


def select_scans(table: pd.DataFrame, params: PretrainParams) -> pd.DataFrame:
    """Return the usable scans of ``params.splits``, sorted by id. Raises DataError."""
    scans = table[table["usable"] & table["split"].isin(params.splits)].sort_values("scan_id")
    counted = f"The splits {', '.join(params.splits)} hold {len(scans)} usable scans"
    train = int((table["usable"] & (table["split"] == "train")).sum())
    if not len(scans) and train:
        raise DataError(
            f"{counted}, and train {train}. Set pretrain.splits to [train], or give "
            "ingest.splits.pretrain a share."
        )
    if len(scans) < params.batch_size:
        raise DataError(
            f"{counted}, fewer than a batch. Lower pretrain.batch_size ({params.batch_size}), or "
            "add a split to pretrain.splits."
        )
    if scans["person"].nunique() < 2:
        raise DataError(
            f"{counted}, all of one person; contrastive learning needs two. Add scans of other "
            "persons, or a split to pretrain.splits."
        )
    return scans


def fit_to_ranks(objective: Objective, params: PretrainParams, ranks: Ranks) -> None:
    """Give batch norm the statistics of all ranks, and let the objective check what it needs.

    Raises UsageError, also where ranks cannot have equal shares of a batch.
    """
    if params.batch_size % ranks.count:
        raise UsageError(
            f"pretrain.batch_size is {params.batch_size}, which {ranks.count} processes cannot "
            f"share equally. Set it to a multiple of {ranks.count}."
        )
    if ranks.count > 1:
        synchronize(objective, ranks.device)
    objective.check(ranks.device)


def made_of(
    method: str, params: PretrainParams, volumes: Volumes, scans: pd.DataFrame, *, seed: int
) -> dict[str, Any]:
    """Return what the weights depend on beside the code, in plain values."""
    values = params.read_by(method)
    del values["licence"]  # no weight depends on it
    return {
        "pretrain": values,
        "method": method,
        "seed": seed,
        "spacing": volumes.grid.spacing,
        "scans": hash_table(scans[["scan_id", "person", *volumes.hashes]]),
    }


def write_encoder(
    work: Workspace,
    objective: Objective,
    params: PretrainParams,
    volumes: Volumes,
    scans: pd.DataFrame,
    *,
    seed: int,
) -> None:
    """Write the weights, their plan, and whom and what they have seen."""
    persons, encoder, method = sorted(scans["person"].unique()), objective.encoder, objective.name
    plan = Plan(
        name=method,
        encoder=params.encoder,
        features=encoder.features,
        grid=volumes.grid.describe(),
        preprocess=volumes.recipe,
        normalization=volumes.normalization,
        contrasts=volumes.contrasts,
        method=method,
        licence=params.licence,
        pretraining=Pretraining(
            data_version=work.data_version,
            persons=len(persons),
            scans=len(scans),
            epochs=params.epochs,
            seed=seed,
            sizes=objective.learns_sizes,
        ),
    )
    encoders.save(work.dir, encoder, plan)
    write_table(pd.DataFrame({"person": persons}), work.dir / "subjects.tsv", SUBJECTS)
    columns = [name for name in ("sha256", "sketch") if name in scans]
    images = scans[columns].drop_duplicates("sha256").sort_values("sha256")
    write_table(images, work.dir / "images.tsv", IMAGES)
    work.tracker.produced(encoder_artifact(method, work.dir, plan))
