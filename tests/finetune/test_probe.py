from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error, roc_auc_score
from sklearn.preprocessing import StandardScaler

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.finetune import probe
from neurofoundry.finetune.network import infer
from neurofoundry.finetune.subsets import folds
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.tasks import Classification, Task
from tests.support import tiny
from tests.support.tiny import AGE, DIAGNOSIS

THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))


def by_hand(
    features: NDArray[np.float64], targets: NDArray[np.float64], fold: NDArray[np.int64], task: Task
) -> tuple[float, NDArray[np.float64]]:
    """The penalty, and the outputs for the scans that were fitted, one loop at a time."""

    def outputs(
        penalty: float, known: NDArray[np.bool_], asked: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        scaler = StandardScaler().fit(features[known])
        inputs, questions = scaler.transform(features[known]), scaler.transform(features[asked])
        if not task.classes:
            return Ridge(alpha=penalty).fit(inputs, targets[known]).predict(questions)
        model = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=2000)
        return model.fit(inputs, targets[known]).predict_proba(questions)

    loss = log_loss if task.classes else mean_squared_error
    losses = []
    for penalty in probe.PENALTIES:
        by_fold = [
            loss(targets[fold == number], outputs(penalty, fold != number, fold == number))
            for number in sorted(set(fold))
        ]
        losses.append(np.mean(by_fold))
    best = probe.PENALTIES[int(np.argmin(losses))]
    everyone = np.ones(len(targets), bool)
    return float(best), outputs(best, everyone, everyone)


@pytest.mark.parametrize("task", [DIAGNOSIS, THREE, AGE], ids=["two classes", "three", "age"])
def test_a_probe_equals_a_pipeline_by_hand(task: Task) -> None:
    random = np.random.default_rng(3)
    persons = np.repeat(np.arange(30), 2)
    latent = random.normal(size=60)
    features = (latent[:, None] * random.normal(size=8) + random.normal(size=(60, 8))) * 7 + 100
    classes = len(task.classes)
    targets = np.floor((latent.argsort().argsort() / 60) ** 2 * classes) if classes else 60 + latent
    rows = pd.DataFrame({"person": [f"a/{n}" for n in persons], "target": targets})
    # Not cross-validated by person, the by-hand folds would differ.
    fold = folds(rows.assign(target=rows.groupby("person")["target"].transform("max")), task)

    head, history = probe.fit(features.astype(np.float32), targets, fold, task)
    with torch.no_grad():
        columns = task.columns(head(torch.tensor(features, dtype=torch.float32)))
    penalty, expected = by_hand(features.astype(np.float32).astype(float), targets, fold, task)

    assert history["penalty"][history["chosen"]].item() == penalty
    outputs = np.stack(list(columns.values()), 1)
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, volumes: Path, encoder: Path) -> Path:
    out = tmp_path_factory.mktemp("probed") / "models"
    tasks = {"diagnosis": DIAGNOSIS, "age": AGE}
    return tiny.run(out, volumes, encoder, tiny.PROBED, tasks)


@pytest.mark.parametrize("task", [DIAGNOSIS, AGE], ids=["diagnosis", "age"])
def test_the_saved_network_reproduces_the_predictions(
    probed: Path, volumes: Path, encoder: Path, task: Task
) -> None:
    folder = probed / task.column / "probe/1.0/0"
    network = tiny.read_model(folder, encoder, task)
    written = tiny.predictions(folder)
    outputs = infer(network, written["scan_id"], lambda ids: read_batch(Volumes(volumes), ids))
    for name, values in task.columns(outputs).items():
        np.testing.assert_allclose(values, written[name], rtol=1e-4, atol=1e-4)


def test_a_frozen_encoder_stays_as_it_is_to_the_last_bit(probed: Path, encoder: Path) -> None:
    pretrained = encoders.load(encoder)[0].state_dict()
    for task in (DIAGNOSIS, AGE):
        network = tiny.read_model(probed / task.column / "probe/1.0/0", encoder, task)
        assert tiny.same_weights(network.encoder.state_dict(), pretrained)


def test_a_probe_finds_what_was_planted(probed: Path) -> None:
    diagnosis = tiny.predictions(probed / "diagnosis/probe/1.0/0")
    age = tiny.predictions(probed / "age/probe/1.0/0")
    for split in ("val", "test", "ood"):
        ill, old = diagnosis[diagnosis["split"] == split], age[age["split"] == split]
        assert roc_auc_score(ill["label"] == "AD", ill["p_AD"]) > 0.95
        spread = (old["label"] - old["label"].mean()).abs().mean()
        assert (old["label"] - old["output"]).abs().mean() < 0.6 * spread
