"""One model: what it starts from, how its weights are found, and what it predicts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import UNTRAINED, EncoderParams, Plan, check_volumes, read_plan
from neurofoundry.contracts.models import DESCRIBED, PREDICTIONS
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.finetune import probe, subsets, trust
from neurofoundry.finetune.network import Mirrored, Network, Reader, infer
from neurofoundry.finetune.params import FinetuneParams, Tuning
from neurofoundry.finetune.train import least_loss, train
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder
from neurofoundry.nn.seeds import generator, seeded
from neurofoundry.runtime import cache
from neurofoundry.runtime.arrays import key_of_arrays, write_arrays
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Task


@dataclass(frozen=True)
class Origin:
    """An encoder that models start from; they never change it."""

    encoder: Encoder
    plan: Plan
    weights: str
    """What the weights are a function of: the hash of their file, or a seed."""
    _known: dict[tuple[bool, str], Tensor] = field(default_factory=dict)
    """The features that have been asked for so far: whether mirrored, and of which scan."""

    def features(self, scan_ids: Iterable[str], read: Reader, *, mirror: bool = False) -> Tensor:
        """Return the features (scans, features) of the frozen encoder, computed once per scan.

        ``mirror`` averages those of a scan and of its mirror image.
        """
        keys = [(mirror, scan_id) for scan_id in scan_ids]
        new = [key for key in keys if key not in self._known]
        if new:
            extractor = Mirrored(self.encoder) if mirror else self.encoder
            found = infer(extractor, [scan_id for _, scan_id in new], read)
            self._known.update(zip(new, found, strict=True))
        return torch.stack([self._known[key] for key in keys])


def find_origins(
    folders: Mapping[str, Path], run_seeds: Sequence[int], volumes: Volumes, *, seed: int
) -> dict[tuple[str, int], Origin]:
    """Load every encoder by name, and untrained ones (`UNTRAINED`), for each seed of a run.

    "random" is the network of the first encoder, "sfcn" has its width. Raises UsageError if an
    encoder was trained on volumes unlike ``volumes``, or has the name of an untrained one.
    """
    origins: dict[tuple[str, int], Origin] = {}
    for name, folder in folders.items():
        if name in UNTRAINED:
            raise UsageError(
                f"{folder}: an encoder cannot be named '{name}', which is an untrained network. "
                "Import it under another name (`neurofoundry import --as`)."
            )
        encoder, plan = encoders.load(folder)
        check_volumes(plan, volumes)
        encoder, plan = encoders.widen(encoder, plan, volumes.contrasts)
        origin = Origin(encoders.place(encoder), plan, hash_file(folder / "encoder.safetensors"))
        origins |= {(name, run_seed): origin for run_seed in run_seeds}
    plan = read_plan(next(iter(folders.values())))
    sfcn = EncoderParams(architecture="sfcn", width=plan.encoder.width)
    for name, network in zip(UNTRAINED, (plan.encoder, sfcn), strict=True):
        for run_seed in run_seeds:
            like = plan.model_copy(update={"contrasts": volumes.contrasts})
            origins[name, run_seed] = _untrained(name, network, like, (seed, run_seed))
    return origins


def _untrained(name: str, network: EncoderParams, like: Plan, key: tuple[int, int]) -> Origin:
    """Return an untrained ``network`` for the volumes and contrasts of the encoder ``like``."""
    drawn = int(generator(*key, "encoder").integers(2**63))
    about = {"name": name, "method": "random", "pretraining": None}
    shape = {"encoder": network, "features": network.features}
    plan = like.model_copy(update=about | shape)
    channels = len(like.contrasts)
    encoder = encoders.place(encoders.build(network, seed=drawn, channels=channels))
    return Origin(encoder, plan, f"{network.architecture} of seed {drawn}")


@dataclass(frozen=True)
class Blueprint:
    """What a model is made from."""

    name: str
    """What error messages call it."""
    origin: Origin
    mode: Literal["finetune", "probe"]
    task: Task
    rows: pd.DataFrame
    """The scans of the task in all splits, with ``label`` and ``target``."""
    learn: pd.DataFrame
    """Those of split 'train' whose labels may be used."""
    read: Reader
    params: FinetuneParams
    tuning: Tuning
    seed: int

    contents: ClassVar[tuple[str, ...]] = ("volume_sha256",)
    """The columns of ``rows`` with hashes of what is learned from."""

    def make(self, folder: Path, advance: Callable[[], None]) -> None:
        """Make the model: weights, history.tsv, trust.npz, fitted.tsv and predictions.tsv.

        ``advance`` is called after every epoch of fine-tuning, or once the probe is fitted. Scans
        of test and ood are opened only when the weights are on disk.
        """
        if self.mode == "probe":
            network, history = self._probed()
            advance()
        else:
            network, history = self._finetuned(advance)
        encoders.write_weights(folder / "model.safetensors", network)
        write_table(history, folder / "history.tsv")
        self._write_trust(folder, network)
        self._write_predictions(folder, network)

    def _probed(self) -> tuple[Network, pd.DataFrame]:
        """Fit a linear model to the features of the frozen encoder."""
        network = Network(self.origin.encoder, self.task, mirror=self.params.mirror)
        network.head, history = probe.fit(
            self._frozen_features(self.learn).numpy(),
            self.learn["target"].to_numpy(),
            subsets.folds(self.learn, self.task),
            self.task,
        )
        return network, history

    def _finetuned(self, advance: Callable[[], None]) -> tuple[Network, pd.DataFrame]:
        """Train a copy of the encoder and a head with each learning rate of its tuning; keep the
        one with the least loss on 'val'."""
        head = self._probed()[0].head if self.tuning.head == "probe" else None
        return least_loss([self._tried(rate, head, advance) for rate in self.tuning.learning_rates])

    def _tried(
        self, rate: float, head: nn.Linear | None, advance: Callable[[], None]
    ) -> tuple[Network, pd.DataFrame]:
        """Train with one learning rate, from ``head`` if there is one, else from zeros."""
        network = Network(copy.deepcopy(self.origin.encoder), self.task, mirror=self.params.mirror)
        if head is not None:
            network.head.load_state_dict(head.state_dict())
        with seeded(self.seed):  # dropout
            history = train(
                network,
                self.task,
                name=self.name,
                learn=self.learn,
                val=self.rows[self.rows["split"] == "val"],
                scans_per_epoch=int((self.rows["split"] == "train").sum()),
                read=self.read,
                params=self.params,
                tuning=self.tuning,
                learning_rate=rate,
                seed=self.seed,
                advance=advance,
            )
        return network, history

    def _features(self, network: Network, scans: pd.DataFrame) -> Tensor:
        """Return the features (scans, features) that the head gets, on the CPU."""
        if self.mode == "probe":
            return self._frozen_features(scans)
        return infer(network.extractor, scans["scan_id"], self.read)

    def _frozen_features(self, scans: pd.DataFrame) -> Tensor:
        return self.origin.features(scans["scan_id"], self.read, mirror=self.params.mirror)

    def _write_trust(self, folder: Path, network: Network) -> None:
        """Write trust.npz, and fitted.tsv with the outputs for the scans of ``learn``."""
        val = self.rows[self.rows["split"] == "val"]
        features, val_features = (self._features(network, scans) for scans in (self.learn, val))
        with torch.no_grad():
            device = network.head.weight.device
            outputs, val_outputs = (
                network.head(values.to(device)).cpu() for values in (features, val_features)
            )
        fitted = trust.fit(
            features.numpy(),
            val_features.numpy(),
            val_outputs.numpy(),
            val["target"].to_numpy(np.float64),
            val["person"].to_numpy(),
            self.task,
        )
        trust.write(folder / "trust.npz", fitted)
        columns = self.task.columns(outputs)
        table = self.learn[["scan_id", "person", "label"]].assign(**columns)
        write_table(table, folder / "fitted.tsv")

    def _write_predictions(self, folder: Path, network: Network) -> None:
        """Write predictions.tsv."""
        held_out = self.rows[self.rows["split"].isin(HELD_OUT)]
        if self.mode == "probe":
            with torch.no_grad():
                outputs = network.head(self._frozen_features(held_out))
        else:
            outputs = infer(network, held_out["scan_id"], self.read)
        predictions = held_out[[*DESCRIBED]].assign(**self.task.columns(outputs))
        write_table(predictions, folder / "predictions.tsv", PREDICTIONS)


def write_features(
    path: Path,
    origin: Origin,
    scans: pd.DataFrame,
    read: Reader,
    earlier: Sequence[Path],
    hashes: Sequence[str],
) -> None:
    """Write the features of ``scans`` by the frozen encoder, or take them from an earlier file.

    ``hashes`` are the columns with the hashes of what is read. The arrays are ``scan_id`` (scans,),
    ``features`` (scans, features) and the key ``made_of``.
    """
    content = scans[["scan_id", *hashes]].to_csv(index=False)
    key = hashlib.sha256(f"{origin.weights}\n{content}".encode()).hexdigest()
    if not cache.take(path, key, earlier=earlier, key_of=key_of_arrays):
        features = origin.features(scans["scan_id"], read).numpy()
        scan_ids = scans["scan_id"].to_numpy(str)
        write_arrays(path, key=key, scan_id=scan_ids, features=features)
