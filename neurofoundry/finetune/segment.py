"""One model of a segmentation: an encoder with a decoder, how they learn, and what they outline.

Models are trained on whole volumes, or on patches where these are too large for a GPU. Of a frozen
encoder (mode probe) the decoder alone is trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neurofoundry.contracts.cohort import HELD_OUT, TESTED
from neurofoundry.contracts.labels import FILE, open_classes
from neurofoundry.contracts.masks import MASKS, pack, write_masks
from neurofoundry.contracts.models import DESCRIBED, PREDICTIONS, read_model_plan
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import SLOPE, VolumeFolder
from neurofoundry.errors import UsageError
from neurofoundry.finetune.model import Origin
from neurofoundry.finetune.network import Reader, read_network
from neurofoundry.finetune.params import FinetuneParams, Tuning
from neurofoundry.finetune.train import (
    LIGHT,
    batches,
    forget_statistics,
    frozen_modules,
    keep_best_epoch,
    least_loss,
    make_optimizer,
    warm_up_and_cosine,
)
from neurofoundry.nn import augment, encoders, seeds
from neurofoundry.nn.seeds import seeded
from neurofoundry.nn.segmenter import Segmenter, patch_of, shares_of
from neurofoundry.runtime import cache
from neurofoundry.runtime.arrays import key_of_arrays
from neurofoundry.runtime.progress import Progress
from neurofoundry.tasks import Segmentation

AT_ONCE = 2
"""Scans in a forward pass without gradients: the decoder's finest maps are large."""


@dataclass(frozen=True)
class Outline:
    """What a model of a segmentation is made from."""

    name: str
    """What error messages call it."""
    origin: Origin
    mode: Literal["finetune", "probe"]
    task: Segmentation
    rows: pd.DataFrame
    """The scans of the task in all splits."""
    learn: pd.DataFrame
    """Those of split 'train' whose label images may be used."""
    volumes: VolumeFolder
    read: Reader
    params: FinetuneParams
    tuning: Tuning
    seed: int

    contents: ClassVar[tuple[str, ...]] = ("volume_sha256", "label_sha256")
    """The columns of ``rows`` with hashes of what is learned from."""

    def make(self, folder: Path, advance: Callable[[], None]) -> None:
        """Make the model: weights, history.tsv, predictions.tsv and masks.npz.

        ``advance`` is called after every epoch. Scans of test and ood are opened only when the
        weights are on disk.
        """
        network, history = least_loss(
            [self._tried(rate, advance) for rate in self.tuning.learning_rates]
        )
        encoders.write_weights(folder / "model.safetensors", network)
        write_table(history, folder / "history.tsv")
        held_out = self.rows[self.rows["split"].isin(HELD_OUT)]
        masks = {
            scan_id: pack(_largest(self.shares(network, scan_id)), len(self.task.classes))
            for scan_id in held_out["scan_id"]
        }
        write_masks(folder / MASKS, masks)
        write_table(held_out[[*DESCRIBED]], folder / "predictions.tsv", PREDICTIONS)

    def shares(self, network: nn.Module, scan_id: str) -> Tensor:
        """Return the probabilities (1 + classes, z, y, x) that a network gives the voxels."""
        return class_shares(network, self.read([scan_id]), mirror=self.params.mirror)[0]

    def _tried(self, rate: float, advance: Callable[[], None]) -> tuple[Segmenter, pd.DataFrame]:
        """Train with one learning rate."""
        with seeded(self.seed):  # the same decoder, whatever the encoder
            network = Segmenter(
                copy.deepcopy(self.origin.encoder), len(self.task.classes), patch=self.params.patch
            )
            trainer = Trainer(network, self, rate)
            history = trainer.train(self.rows[self.rows["split"] == "val"], advance)
        return network, history


def write_together(
    folder: Path, members: Mapping[Path, Outline], *, key: str, earlier: Sequence[Path]
) -> None:
    """Write predictions.tsv and masks.npz of several models as one, by their folders.

    A test scan gets the classes with the largest mean of the probabilities that models give it of
    which it is a test scan: in a cross-validation those of one fold of every repeat, at new sites
    all. Masks in a folder of ``earlier`` with the same ``key`` are taken.
    """
    tables = {each: read_table(each / "predictions.tsv", PREDICTIONS) for each in members}
    tested = [table[table["split"].isin(TESTED)] for table in tables.values()]
    rows = pd.concat(tested).drop_duplicates("scan_id")
    write_table(rows, folder / "predictions.tsv", PREDICTIONS)
    places = [each / MASKS for each in earlier]
    if cache.take(folder / MASKS, key, earlier=places, key_of=key_of_arrays):
        return
    networks = [
        encoders.place(read_network(each / "model.safetensors", read_model_plan(each)))
        for each in members
    ]
    seen = [set(table["scan_id"]) for table in tested]
    masks = {}
    with Progress(f"outline {folder.parent.name} together", len(rows), unit="scans") as progress:
        for scan_id in rows["scan_id"]:
            shares = [
                outline.shares(network, scan_id)
                for outline, network, own in zip(members.values(), networks, seen, strict=True)
                if scan_id in own
            ]
            classes = _largest(torch.stack(shares).mean(0))
            masks[scan_id] = pack(classes, len(next(iter(members.values())).task.classes))
            progress.advance()
    write_masks(folder / MASKS, masks, key=key)


def _largest(shares: Tensor) -> NDArray[np.uint8]:
    """Return the class with the largest probability of each voxel."""
    classes: NDArray[np.uint8] = shares.argmax(0).to(torch.uint8).cpu().numpy()
    return classes


class Trainer:
    """The parts of the training of a segmentation: schedule, order of the scans, views, loss."""

    def __init__(self, network: Segmenter, of: Outline, rate: float) -> None:
        self.network, self.of, self.rate = network, of, rate
        self.device = next(network.parameters()).device
        whole = len(network.encoder.levels)
        tuning = replace(of.tuning, freeze=whole) if of.mode == "probe" else of.tuning
        self.frozen = frozen_modules(network, tuning.freeze)
        for module in self.frozen:
            module.requires_grad_(False)
        self.scan_ids = of.learn["scan_id"].to_numpy()
        network.head.expect(self._shares())
        shown = (of.rows["split"] == "train").sum() * _patches_per_scan(of)
        self.steps = math.ceil(shown / of.params.batch_size)
        """Steps per epoch, as many for a fraction of the labels as for all."""
        order = seeds.generator(of.seed, "order")
        self.batches = batches(len(of.learn), of.params.batch_size, order)
        self.optimizer = make_optimizer(network, of.params, tuning, rate)
        factor = warm_up_and_cosine(tuning.epochs * self.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def train(self, val: pd.DataFrame, advance: Callable[[], None]) -> pd.DataFrame:
        """Keep the epoch of the least loss on ``val``; return the history, one row an epoch.

        Raises UsageError if a loss is not a finite number.
        """
        return keep_best_epoch(
            self.network,
            lambda epoch: (self.run_epoch(epoch), self.loss_on(val)),
            name=self.of.name,
            epochs=self.of.tuning.epochs,
            learning_rate=self.rate,
            advance=advance,
        )

    def run_epoch(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss of its steps."""
        self.network.train()
        for module in self.frozen:
            module.eval()
        forget_statistics(self.network)
        losses = [self._step(step) for step in range(epoch * self.steps, (epoch + 1) * self.steps)]
        return sum(losses) / self.steps

    @torch.no_grad()
    def loss_on(self, scans: pd.DataFrame) -> float:
        """Return the loss on other scans, all of them together, in evaluation mode."""
        self.network.eval()
        overlaps = []
        for start in range(0, len(scans), AT_ONCE):
            scan_ids = list(scans["scan_id"][start : start + AT_ONCE])
            volumes, classes = self._read(scan_ids)
            overlaps.append(self.of.task.overlap(self.network(volumes), classes))
        return float(self.of.task.loss(torch.stack(overlaps).sum(0)))

    def _step(self, step: int) -> float:
        """Train on one batch and return its loss."""
        scan_ids = list(self.scan_ids[next(self.batches)])
        volumes, classes = self._read(scan_ids)
        if self.of.params.augmentation == "light":
            volumes, classes = _light_view(volumes, classes, scan_ids, seed=self.of.seed, step=step)
        if self.of.params.patch:
            edge, of = self.of.params.patch, (self.of.seed, step)
            volumes, classes = _patches(volumes, classes, scan_ids, edge=edge, of=of)
        bf16 = self.of.params.precision == "bf16"
        self.optimizer.zero_grad()
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                logits = self.network(volumes)
            loss = self.of.task.loss(self.of.task.overlap(logits.float(), classes))
            loss.backward()
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{self.of.name}: the GPU does not hold a step with {len(scan_ids)} x "
                f"{' x '.join(map(str, volumes.shape[2:]))} voxels. Lower finetune.batch_size, or "
                "set finetune.patch to a smaller edge, such as 96, to learn from parts of volumes."
            ) from error
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _read(self, scan_ids: list[str]) -> tuple[Tensor, Tensor]:
        volumes = self.of.read(scan_ids).to(self.device).float() * SLOPE
        classes = read_classes(self.of.volumes, self.of.task.column, scan_ids)
        return volumes, classes.to(self.device)

    def _shares(self) -> Tensor:
        """Return the shares of background and classes among all voxels to learn from."""
        counts = torch.zeros(1 + len(self.of.task.classes), dtype=torch.float64)
        for scan_id in self.scan_ids:
            classes = read_classes(self.of.volumes, self.of.task.column, [scan_id])
            counts += classes.flatten().bincount(minlength=len(counts))
        return (counts / counts.sum()).float()


def read_classes(volumes: VolumeFolder, task: str, scan_ids: Sequence[str]) -> Tensor:
    """Read label images of the grid, shape (batch, z, y, x), uint8. Raises DataError."""
    batch = torch.empty((len(scan_ids), *volumes.grid.shape[::-1]), dtype=torch.uint8)
    for classes, scan_id in zip(batch, scan_ids, strict=True):
        path = volumes.folder / FILE.format(scan_id=scan_id, task=task)
        np.copyto(classes.numpy(), open_classes(path, volumes.grid))
    return batch


@torch.no_grad()
def class_shares(network: nn.Module, volumes: Tensor, *, mirror: bool) -> Tensor:
    """Return `shares_of` volumes in steps of ``SLOPE``."""
    network.eval()
    zscores = volumes.to(next(network.parameters()).device).float() * SLOPE
    return shares_of(network, zscores, mirror=mirror)


def _light_view(
    volumes: Tensor, classes: Tensor, scan_ids: list[str], *, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return a random view of volumes, and of their classes where it shows each voxel."""
    z, y, x = volumes.shape[2:]
    draws = augment.draw(LIGHT, seed=seed, epoch=step, scans=scan_ids, view=0, shape=(z, y, x))
    places = F.affine_grid(draws.affine, list(volumes.shape), align_corners=False)
    shown = F.grid_sample(
        classes[:, None].float(), places.to(classes.device), mode="nearest", align_corners=False
    )
    return augment.apply(volumes, draws), shown[:, 0].round().to(torch.uint8)


def _patches_per_scan(of: Outline) -> int:
    """Return how many patches have as many voxels as a volume, which an epoch shows of each scan.

    One patch of each scan of a batch, in more steps: a step needs no more memory.
    """
    shape = of.volumes.grid.shape
    patch = patch_of(shape, of.params.patch) if of.params.patch else shape
    return math.ceil(math.prod(shape) / math.prod(patch))


def _patches(
    volumes: Tensor, classes: Tensor, scan_ids: list[str], *, edge: int, of: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    """Return a random patch of each volume, as likely around a voxel of a class as around another,
    and its classes; the draw depends on ``of``, the scan, and its place in the batch, in which a
    scan may come twice."""
    names = ("volume", "classes")
    crop = RandCropByPosNegLabeld(names, "classes", patch_of(volumes.shape[2:], edge))
    found: list[dict[Any, Any]] = []
    for place, (volume, shown, scan_id) in enumerate(zip(volumes, classes, scan_ids, strict=True)):
        draw = int(seeds.generator(*of, place, scan_id, "patch").integers(2**32))
        found.append(crop.set_random_state(draw)({"volume": volume, "classes": shown[None]})[0])
    patches, shown = (torch.stack([each[name].as_tensor() for each in found]) for name in names)
    return patches, shown[:, 0]
