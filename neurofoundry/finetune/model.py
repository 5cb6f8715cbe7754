"""One model: where it starts from, how it comes to its weights, and what it predicts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import Plan, check_volumes, read_plan
from neurofoundry.contracts.models import DESCRIBED, PREDICTIONS
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.finetune import probe, reference, subsets
from neurofoundry.finetune.network import Network, Reader, infer
from neurofoundry.finetune.params import FinetuneParams, Initialization
from neurofoundry.finetune.train import train
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder
from neurofoundry.nn.seeds import generator
from neurofoundry.runtime import cache
from neurofoundry.runtime.arrays import key_of_arrays, write_arrays
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Task


@dataclass(frozen=True)
class Origin:
    """An encoder that models start from; they leave it as it is."""

    encoder: Encoder
    plan: Plan
    weights: str
    """What the weights are a function of: the hash of their file, or a seed."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """By scan: those that probes have asked for so far."""


def find_origins(
    folders: Mapping[str, Path], run_seeds: Sequence[int], volumes: Volumes, *, seed: int
) -> dict[tuple[str, int], Origin]:
    """Every encoder by name, and an untrained one, for each seed of a run.

    The untrained network, "random", is that of the first encoder. Raises UsageError when an
    encoder has not been trained on volumes like those of the folder ``volumes``.
    """
    origins: dict[tuple[str, int], Origin] = {}
    for name, folder in folders.items():
        encoder, plan = encoders.load(folder)
        check_volumes(plan, volumes)
        origin = Origin(encoders.place(encoder), plan, hash_file(folder / "encoder.safetensors"))
        origins |= {(name, run_seed): origin for run_seed in run_seeds}
    plan = read_plan(next(iter(folders.values())))
    untrained = plan.model_copy(update={"name": "random", "method": "random", "pretraining": None})
    for run_seed in run_seeds:
        drawn = int(generator(seed, run_seed, "encoder").integers(2**63))
        random = encoders.place(encoders.build(plan.encoder, seed=drawn))
        origins["random", run_seed] = Origin(random, untrained, f"seed {drawn}")
    return origins


def make(
    folder: Path,
    *,
    name: str,
    origin: Origin,
    init: Initialization,
    task: Task,
    rows: pd.DataFrame,
    learn: pd.DataFrame,
    read: Reader,
    params: FinetuneParams,
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Make a model and write its weights, history.tsv, reference.npz, fitted.tsv, predictions.tsv.

    ``rows`` are the scans of the task in all splits, with ``label`` and ``target``; ``learn`` are
    those of split 'train' whose labels may be seen. Scans of test and ood are opened only when the
    weights are on disk.
    """
    if init.mode == "probe":
        network = Network(origin.encoder, task)
        network.head, history = probe.fit(
            _features(origin, learn["scan_id"], read).numpy(),
            learn["target"].to_numpy(),
            subsets.folds(learn, task),
            task,
        )
    else:
        network = Network(copy.deepcopy(origin.encoder), task)
        history = train(
            network,
            task,
            name=name,
            learn=learn,
            val=rows[rows["split"] == "val"],
            scans_per_epoch=int((rows["split"] == "train").sum()),
            read=read,
            params=params,
            seed=seed,
            advance=advance,
        )
    encoders.write_weights(folder / "model.safetensors", network)
    write_table(history, folder / "history.tsv")
    _write_what_it_knows(folder, network, origin, init, task, rows=rows, learn=learn, read=read)

    held_out = rows[rows["split"].isin(HELD_OUT)]
    if init.mode == "probe":
        with torch.no_grad():
            outputs = network.head(_features(origin, held_out["scan_id"], read))
    else:
        outputs = infer(network, held_out["scan_id"], read)
    predictions = held_out[[*DESCRIBED]].assign(**task.columns(outputs))
    write_table(predictions, folder / "predictions.tsv", PREDICTIONS)


def _write_what_it_knows(
    folder: Path,
    network: Network,
    origin: Origin,
    init: Initialization,
    task: Task,
    *,
    rows: pd.DataFrame,
    learn: pd.DataFrame,
    read: Reader,
) -> None:
    """reference.npz, and fitted.tsv: what the model says of the scans that it has learned from."""
    val = rows[rows["split"] == "val"]
    seen, unseen = (
        _features(origin, scans["scan_id"], read)
        if init.mode == "probe"
        else infer(network.encoder, scans["scan_id"], read)
        for scans in (learn, val)
    )
    with torch.no_grad():
        device = network.head.weight.device
        fitted, outputs = (network.head(each.to(device)).cpu() for each in (seen, unseen))
    found = reference.fit(
        seen.numpy(), unseen.numpy(), outputs.numpy(), val["target"].to_numpy(np.float64), task
    )
    reference.write(folder / "reference.npz", found)
    table = learn[["scan_id", "person", "label"]].assign(**task.columns(fitted))
    write_table(table, folder / "fitted.tsv")


def write_features(
    path: Path, origin: Origin, scans: pd.DataFrame, read: Reader, earlier: Sequence[Path]
) -> None:
    """Write what the frozen encoder says of ``scans``: arrays scan_id and features (scans,
    features), and made_of, by which an earlier file is known to be the same."""
    content = scans[["scan_id", "volume_sha256"]].to_csv(index=False)
    key = hashlib.sha256(f"{origin.weights}\n{content}".encode()).hexdigest()
    if not cache.take(path, key, earlier=earlier, key_of=key_of_arrays):
        features = _features(origin, scans["scan_id"], read).numpy()
        names = scans["scan_id"].to_numpy(str)
        write_arrays(path, key=key, scan_id=names, features=features)


def _features(origin: Origin, scan_ids: Iterable[str], read: Reader) -> Tensor:
    """Features (scans, features) of the frozen encoder; each scan is seen once."""
    scan_ids = list(scan_ids)
    new = [scan_id for scan_id in scan_ids if scan_id not in origin.features]
    if new:
        origin.features.update(zip(new, infer(origin.encoder, new, read), strict=True))
    return torch.stack([origin.features[scan_id] for scan_id in scan_ids])
