"""Models of a segmentation learn to outline what was outlined, resume, and are reused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from neurofoundry.contracts.labels import CARRIED, FILE, open_classes, write_classes
from neurofoundry.contracts.masks import open_masks, pack, write_masks
from neurofoundry.contracts.models import read_ensemble, read_model_plan
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import SLOPE, Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune.segment import Trainer
from neurofoundry.nn import encoders
from neurofoundry.nn.segmenter import Segmenter
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Segmentation
from tests.support import outlined, tiny
from tests.support.outlined import TASK
from tests.support.tiny import GRID

PARAMS: dict[str, Any] = {
    "initializations": {
        "simclr": {"encoder": "simclr", "mode": "finetune"},
        "scratch": {"encoder": "random", "mode": "finetune"},
        "frozen": {"encoder": "simclr", "mode": "probe"},
        "sfcn": {"encoder": "sfcn", "mode": "finetune"},
    },
    "epochs": 6,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "augmentation": "none",
}
MADE = ("simclr", "scratch", "frozen")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes with a dark ventricle that is outlined, but for every fifth scan, of nobody."""
    folder = tmp_path_factory.mktemp("labelled") / "volumes"
    return outlined.write_volumes(folder, 28, looked_at=lambda number: number % 5 != 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, labelled: Path, encoder: Path) -> Path:
    out = tmp_path_factory.mktemp("models") / "models"
    return tiny.run(out, labelled, encoder, PARAMS, {"hole": TASK})


def dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(2 * ((one == 1) & (other == 1)).sum() / ((one == 1).sum() + (other == 1).sum()))


@pytest.mark.parametrize("init", MADE)
def test_a_model_outlines_what_was_outlined(models: Path, labelled: Path, init: str) -> None:
    folder = models / "hole" / init / "1.0" / "0"
    read = open_masks(folder / "masks.npz", GRID)
    table = tiny.predictions(folder)
    assert set(table["split"]) == {"val", "test", "ood"}
    truth = [
        open_classes(labelled / FILE.format(scan_id=scan_id, task="hole"), GRID)
        for scan_id in table["scan_id"]
    ]
    overlaps = [
        dice(read(scan_id), each) for scan_id, each in zip(table["scan_id"], truth, strict=True)
    ]
    assert np.median(overlaps) > 0.85
    history = pd.read_csv(folder / "history.tsv", sep="\t")
    assert history["val_loss"].min() < 0.5 * history["val_loss"][0]


def test_files_and_rows_are_those_that_are_declared(models: Path) -> None:
    for init in MADE:
        folder = models / "hole" / init / "1.0" / "0"
        assert sorted(path.name for path in folder.iterdir()) == [
            "history.tsv",
            "masks.npz",
            "model.safetensors",
            "plan.json",
            "predictions.tsv",
            "run.json",
        ]
    runs = pd.read_csv(models / "runs.tsv", sep="\t").set_index("init")
    assert runs["status"].to_dict() == {
        **dict.fromkeys(MADE, "done"),
        "sfcn": "not estimable",
    }
    assert "skips" in runs["reason"]["sfcn"]


def test_models_of_several_seeds_are_an_ensemble(
    labelled: Path, encoder: Path, tmp_path: Path
) -> None:
    few = {"initializations": {"frozen": PARAMS["initializations"]["frozen"]}, "epochs": 3}
    params = {**PARAMS, **few, "seeds": [4, 2]}
    models = tiny.run(tmp_path / "models", labelled, encoder, params, {"hole": TASK})
    plan = read_ensemble(models / "hole/frozen/1.0")
    assert plan is not None
    assert plan.members == ("4", "2")
    assert plan.distance_limit is None

    group = models / "hole/frozen/1.0"
    networks = []
    for member in plan.members:
        networks.append(Segmenter(encoders.load(encoder)[0], 1))
        encoders.read_weights(group / member / "model.safetensors", networks[-1].eval())
    together = tiny.predictions(group)
    alone = tiny.predictions(group / "4")
    pd.testing.assert_frame_equal(together, alone[alone["split"] != "val"].reset_index(drop=True))
    read, other = open_masks(group / "masks.npz", GRID), open_masks(group / "4/masks.npz", GRID)
    differ = 0
    for scan_id in together["scan_id"]:
        volume = torch.from_numpy(Volumes(labelled).open(scan_id).astype(np.float32) * SLOPE)
        with torch.no_grad():
            shares = [network(volume[None, None]).softmax(1) for network in networks]
        expected = ((shares[0] + shares[1]) / 2)[0].argmax(0).numpy()
        np.testing.assert_array_equal(read(scan_id), expected)
        differ += int((other(scan_id) != expected).sum())
    assert differ  # each alone says something else

    made = (group / "masks.npz").stat().st_ino
    again = tiny.run(tmp_path / "again", labelled, encoder, params, {"hole": TASK}, reuse=[models])
    assert (again / "hole/frozen/1.0/masks.npz").stat().st_ino == made
    tiny.run(again, labelled, encoder, {**params, "seeds": [4]}, {"hole": TASK})
    assert [path.name for path in (again / "hole/frozen/1.0").iterdir()] == ["4"]


def test_a_frozen_encoder_stays_as_it_was(models: Path, encoder: Path) -> None:
    before = encoders.load(encoder)[0]
    network = Segmenter(encoders.load(encoder)[0], 1)
    for init, same in (("frozen", True), ("simclr", False)):
        path = models / "hole" / init / "1.0" / "0" / "model.safetensors"
        encoders.read_weights(path, network)
        assert tiny.same_weights(before.state_dict(), network.encoder.state_dict()) == same


def test_a_model_is_made_again_where_an_outline_changes_and_not_otherwise(
    models: Path, labelled: Path, encoder: Path, tmp_path: Path
) -> None:
    few = {**PARAMS, "initializations": {"frozen": PARAMS["initializations"]["frozen"]}}
    of_run = Path("hole/frozen/1.0/0/model.safetensors")
    again = tiny.run(tmp_path / "again", labelled, encoder, few, {"hole": TASK}, reuse=[models])
    assert (again / of_run).read_bytes() == (models / of_run).read_bytes()
    assert (again / of_run).stat().st_ino == (models / of_run).stat().st_ino
    own = Path(shutil.copytree(labelled, tmp_path / "volumes"))
    table = read_table(own / "labels.tsv", CARRIED)
    path = own / FILE.format(scan_id=table["scan_id"][0], task="hole")
    write_classes(path, np.zeros(GRID.shape, np.uint8), GRID.affine)
    table.loc[0, "label_sha256"] = hash_file(path)
    write_table(table, own / "labels.tsv", CARRIED)
    other = tiny.run(tmp_path / "other", own, encoder, few, {"hole": TASK}, reuse=[models])
    assert (other / of_run).read_bytes() != (models / of_run).read_bytes()


def naive_loss(logits: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Sums over one voxel after another."""
    count = logits.shape[1]
    both, predicted, true = np.zeros(count), np.zeros(count), np.zeros(count)
    entropy = 0.0
    for place in np.ndindex(classes.shape):
        scores = np.exp(logits[(place[0], slice(None), *place[1:])])
        shares, label = scores / scores.sum(), classes[place]
        entropy -= np.log(shares[label])
        predicted += shares
        both[label] += shares[label]
        true[label] += 1
    overlap = (2 * both + 1) / (predicted + true + 1)
    return float(1 - overlap[1:].mean() + entropy / classes.size)


def test_the_loss_is_that_of_a_naive_loop_and_adds_up_over_batches() -> None:
    random = np.random.default_rng(0)
    task = TASK.model_copy(update={"classes": ("a", "b")})
    logits, classes = random.normal(size=(3, 3, 4, 5, 6)), random.integers(0, 3, (3, 4, 5, 6))
    parts = [
        task.overlap(torch.from_numpy(logits[part]), torch.from_numpy(classes[part]))
        for part in (slice(0, 2), slice(2, 3))
    ]
    assert task.loss(torch.stack(parts).sum(0)).item() == pytest.approx(
        naive_loss(logits, classes), rel=1e-9
    )


def test_masks_are_read_as_they_were_written(tmp_path: Path) -> None:
    shape = GRID.shape[::-1]
    classes = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    write_masks(tmp_path / "masks.npz", {"a": pack(classes, 2)})
    read = open_masks(tmp_path / "masks.npz", GRID)
    np.testing.assert_array_equal(read("a"), classes)
    with pytest.raises(DataError, match=r"masks\.npz: no masks"):
        read("b")


@pytest.mark.parametrize("patch", [None, 24])
def test_views_and_patches_move_outlines_with_the_volume(
    labelled: Path,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    patch: int | None,
) -> None:
    """In both, as in the volume, what is outlined is dark, and nothing else of the brain is. An
    epoch shows as many voxels either way, by steps that hold no more scans."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(network: Segmenter, volumes: torch.Tensor) -> torch.Tensor:
        assert network.patch == patch
        seen.append((volumes, torch.empty(0)))
        return torch.zeros(len(volumes), 2, *volumes.shape[2:], requires_grad=True)

    overlap = Segmentation.overlap

    def noted(task: Segmentation, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        seen[-1] = (seen[-1][0], classes)
        return overlap(task, logits, classes)

    monkeypatch.setattr(Segmenter, "forward", spy)
    monkeypatch.setattr(Segmentation, "overlap", noted)
    monkeypatch.setattr(Trainer, "loss_on", lambda *_: 1.0)
    params = {
        **PARAMS,
        "augmentation": "light",
        "patch": patch,
        "epochs": 1,
        "initializations": {"scratch": {"encoder": "random", "mode": "finetune"}},
    }
    models = tiny.run(tmp_path / "views", labelled, encoder, params, {"hole": TASK})
    assert read_model_plan(models / "hole/scratch/1.0/0").patch == patch
    views = [pair for pair in seen if pair[1].numel()]
    scans = Volumes(labelled).scans
    to_learn_from = (scans["hole"].notna() & (scans["split"] == "train")).sum()
    # A cube of 24 holds 13,824 of the 25,600 voxels of a volume, so there are two of each scan.
    assert len(views) == math.ceil(to_learn_from * (2 if patch else 1) / PARAMS["batch_size"])
    for volumes, classes in views:
        assert len(volumes) == PARAMS["batch_size"]
        assert volumes.shape[2:] == ((patch,) * 3 if patch else GRID.shape[::-1])
        brain = volumes[:, 0] != 0
        inside, outside = (
            volumes[:, 0][brain & (classes == 1)],
            volumes[:, 0][brain & (classes == 0)],
        )
        assert inside.median() < outside.quantile(0.2)


def test_a_gpu_that_is_too_small_is_told_of_patches(
    labelled: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(network: Segmenter, volumes: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Segmenter, "forward", full)
    params = {**PARAMS, "initializations": {"frozen": PARAMS["initializations"]["frozen"]}}
    with pytest.raises(UsageError, match=r"4 x 25 x 32 x 32 voxels.*finetune\.patch"):
        tiny.run(tmp_path / "models", labelled, encoder, params, {"hole": TASK})
