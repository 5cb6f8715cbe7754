from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.finetune import train as training
from neurofoundry.finetune.network import Network, infer
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.runs import labelled
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.seeds import generator
from neurofoundry.tasks import Classification, Task
from tests.support import tiny
from tests.support.tiny import AGE, DIAGNOSIS

CPU = torch.device("cpu")
THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))


def fit(
    volumes: Path,
    encoder: Path,
    task: Task,
    *,
    scans: pd.DataFrame | None = None,
    freeze: int = 0,
    rate: float | None = None,
    head: dict[str, torch.Tensor] | None = None,
    **change: Any,
) -> tuple[Network, pd.DataFrame, pd.DataFrame]:
    """A network trained on the tiny volumes, its history, and its scans of split 'val'."""
    rows = labelled(tiny.scans_table() if scans is None else scans, task)
    network = Network(encoders.load(encoder)[0], task)
    val = rows[rows["split"] == "val"]
    params = FinetuneParams.model_validate({**tiny.FINETUNED, **change})
    tuning = replace(params.tuning("scratch"), freeze=freeze)
    if head is not None:
        network.head.load_state_dict(head)
    history = training.train(
        network,
        task,
        name="a run",
        learn=rows[rows["split"] == "train"],
        val=val,
        scans_per_epoch=30,
        read=lambda ids: read_batch(Volumes(volumes), ids),
        params=params,
        tuning=tuning,
        learning_rate=rate or tuning.learning_rates[0],
        seed=1,
        advance=lambda: None,
    )
    return network, history, val


def test_the_loss_of_classes_is_their_weighted_cross_entropy() -> None:
    learned = np.array([0.0] * 7 + [1.0] * 2 + [2.0])
    outputs = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.1, 4.0], [1.0, 1.0, 1.0]])
    targets = torch.tensor([0.0, 2.0, 1.0])
    weights = [10 / (3 * 7), 10 / (3 * 2), 10 / (3 * 1)]
    total, weight = 0.0, 0.0
    for row, target in zip(outputs.tolist(), [0, 2, 1], strict=True):
        total -= weights[target] * (row[target] - np.log(np.exp(row).sum()))
        weight += weights[target]
    loss = THREE.loss(learned, CPU)(outputs, targets)
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)


def test_before_it_has_learned_a_regression_says_the_mean_of_what_it_learned_from(
    volumes: Path, encoder: Path
) -> None:
    network, history, val = fit(volumes, encoder, AGE, epochs=1, learning_rate=1e-9)
    scans = tiny.scans_table()
    ages = scans["age"][scans["split"] == "train"]
    outputs = infer(network, val["scan_id"], lambda ids: read_batch(Volumes(volumes), ids))
    np.testing.assert_allclose(outputs.numpy(), ages.mean(), rtol=1e-5)
    naive = ((val["age"] - ages.mean()) ** 2).mean() / ages.var(ddof=0)
    assert history["val_loss"].item() == pytest.approx(naive, rel=1e-4)


def test_the_weights_are_those_of_the_best_epoch(volumes: Path, encoder: Path) -> None:
    scans = tiny.scans_table()
    # What is learned is wrong for val, so that the best epoch is not the last.
    scans.loc[scans["split"] == "val", "age"] = 140 - scans["age"]
    network, history, val = fit(volumes, encoder, AGE, scans=scans)
    variance = scans["age"][scans["split"] == "train"].var(ddof=0)
    outputs = infer(network, val["scan_id"], lambda ids: read_batch(Volumes(volumes), ids))[:, 0]
    loss = ((outputs.numpy() - val["age"]) ** 2).mean() / variance
    assert history["val_loss"].idxmin() < len(history) - 1
    assert loss == pytest.approx(history["val_loss"].min(), rel=1e-3)
    assert loss < 0.9 * history["val_loss"].iloc[-1]


def test_norm_statistics_are_the_mean_over_the_batches_of_the_epoch(
    volumes: Path, encoder: Path
) -> None:
    network, _, _ = fit(volumes, encoder, AGE, epochs=1, learning_rate=1e-9)
    scans = tiny.scans_table()
    scan_ids = scans["scan_id"][scans["split"] == "train"].to_numpy()
    batches = training.batches(len(scan_ids), 8, generator(1, "order"))
    means, variances = [], []
    for _ in range(4):  # 30 scans in batches of 8
        inputs = read_batch(Volumes(volumes), list(scan_ids[next(batches)])) * 0.001
        with torch.no_grad():
            stem = encoders.load(encoder)[0].conv1(inputs)
        means.append(stem.mean((0, 2, 3, 4)))
        variances.append(stem.var((0, 2, 3, 4)))
    norm = network.encoder.bn1
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-3, atol=0)


def test_three_classes_are_told_apart(volumes: Path, encoder: Path) -> None:
    scans = tiny.scans_table()
    scans.loc[(scans["diagnosis"] == "CN") & (scans["age"] > 68), "diagnosis"] = "MCI"
    network, history, val = fit(volumes, encoder, THREE, scans=scans, epochs=8)
    outputs = infer(network, val["scan_id"], lambda ids: read_batch(Volumes(volumes), ids))
    assert outputs.shape == (len(val), 3)
    assert history["val_loss"].min() < 0.6 * np.log(3)


def test_light_augmentation_changes_the_course_and_not_the_result(
    volumes: Path, encoder: Path
) -> None:
    plain = fit(volumes, encoder, DIAGNOSIS)[1]
    light = fit(volumes, encoder, DIAGNOSIS, augmentation="light")[1]
    assert not np.allclose(plain["train_loss"], light["train_loss"])
    assert light["val_loss"].min() < 0.3


def test_a_loss_that_is_not_a_number_is_said_with_the_cure(volumes: Path, encoder: Path) -> None:
    with pytest.raises(UsageError, match=r"a run: in epoch 1 .* finetune.learning_rate below 1e\+"):
        fit(volumes, encoder, AGE, rate=1e30)


@pytest.mark.parametrize(("count", "size"), [(20, 8), (8, 8), (3, 8), (9, 8)])
def test_batches_have_one_size_and_every_scan_its_turn(count: int, size: int) -> None:
    batches = training.batches(count, size, generator("rows"))
    taken = [next(batches) for _ in range(3 * count)]
    assert {len(batch) for batch in taken} == {min(size, count)}
    stream = np.concatenate(taken)
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    factor = training.warm_up_and_cosine(100)
    rates = [factor(step) for step in range(101)]
    assert np.argmax(rates) in (9, 10)
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_lower_levels_learn_more_slowly_and_only_weights_decay(encoder: Path) -> None:
    network = Network(encoders.load(encoder)[0], DIAGNOSIS)
    params = FinetuneParams.model_validate(
        {**tiny.FINETUNED, "layer_decay": 0.5, "weight_decay": 0.1}
    )
    tuning = params.tuning("scratch")
    settings = {
        id(values): (group["lr"], group["weight_decay"])
        for group in training.make_optimizer(network, params, tuning, 1.0).param_groups
        for values in group["params"]
    }
    named = {name: settings[id(values)] for name, values in network.named_parameters()}
    assert named["head.weight"] == (1, 0.1)
    assert named["head.bias"] == (1, 0)
    assert named["encoder.layer4.0.conv1.weight"] == (0.5, 0.1)
    assert named["encoder.layer1.1.bn1.weight"] == (0.5**4, 0)
    assert named["encoder.conv1.weight"] == (0.5**5, 0.1)


@pytest.mark.parametrize("freeze", [1, 3, 5])
def test_frozen_levels_stay_as_they_are_to_the_bit(
    volumes: Path, encoder: Path, freeze: int
) -> None:
    before = encoders.load(encoder)[0].state_dict()
    network, _, _ = fit(volumes, encoder, DIAGNOSIS, epochs=2, freeze=freeze)
    prefixes = ("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)
    frozen = tuple(name for level in prefixes[:freeze] for name in level)
    for name, values in network.encoder.state_dict().items():
        same = torch.equal(values, before[name])
        assert same if name.startswith(frozen) else not same or "tracked" in name, name
    assert network.head.weight.any()


def test_a_head_that_is_given_starts_as_it_is(volumes: Path, encoder: Path) -> None:
    head = {"weight": torch.full((1, 64), 0.25), "bias": torch.tensor([60.0])}
    network, _, _ = fit(volumes, encoder, AGE, epochs=1, learning_rate=1e-9, freeze=5, head=head)
    torch.testing.assert_close(network.head.weight, head["weight"])
    torch.testing.assert_close(network.head.bias, head["bias"])


def test_a_head_that_training_only_makes_worse_stays_as_it_is(volumes: Path, encoder: Path) -> None:
    scans = tiny.scans_table()
    scans["age"] = 60.0 + np.arange(len(scans)) % 2
    head = {"weight": torch.zeros(1, 64), "bias": torch.tensor([60.5])}
    network, history, _ = fit(
        volumes, encoder, AGE, scans=scans, epochs=2, learning_rate=3.0, head=head
    )
    assert list(history["epoch"]) == [0, 1, 2]
    assert history["val_loss"][0] == history["val_loss"].min()
    for name, values in encoders.load(encoder)[0].state_dict().items():
        assert torch.equal(network.encoder.state_dict()[name], values), name
    torch.testing.assert_close(network.head.state_dict(), head)


def test_training_twice_gives_the_same_bits(volumes: Path, encoder: Path) -> None:
    networks = [fit(volumes, encoder, DIAGNOSIS, epochs=2)[0] for _ in range(2)]
    assert tiny.same_weights(*(network.state_dict() for network in networks))


def test_weight_decay_spares_biases_and_norms(
    volumes: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adamw, groups = torch.optim.AdamW, []

    def record(given: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
        groups.extend(given)
        return adamw(given, **options)

    monkeypatch.setattr(torch.optim, "AdamW", record)
    network, _, _ = fit(volumes, encoder, DIAGNOSIS, epochs=1, weight_decay=0.5)
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    weights = dict(network.named_parameters())
    assert weights["encoder.bn1.weight"].ndim == weights["head.bias"].ndim == 1
    for name, weight in weights.items():
        assert decay[id(weight)] == (0.5 if weight.ndim > 1 else 0), name
