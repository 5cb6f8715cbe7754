from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from neurofoundry.contracts.models import EnsemblePlan, read_ensemble
from neurofoundry.finetune import trust
from neurofoundry.runtime.stage import Shard
from tests.finetune.test_cross_validation import COUNT, in_folds
from tests.support import tiny

TASKS = {"diagnosis": tiny.DIAGNOSIS, "age": tiny.AGE}
PARAMS: dict[str, Any] = {**tiny.FINETUNED, "epochs": 1, "seeds": [3, 1]}


@pytest.fixture(scope="module")
def models(volumes: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run(tmp_path_factory.mktemp("seeds") / "models", volumes, encoder, PARAMS, TASKS)


def ensemble_of(folder: Path) -> EnsemblePlan:
    found = read_ensemble(folder)
    assert found is not None
    return found


def validation(folder: Path, members: tuple[str, ...]) -> list[pd.DataFrame]:
    tables = []
    for member in members:
        val = tiny.predictions(folder / member).query("split == 'val'")
        distance = trust.read(folder / member / "trust.npz").val_distance
        tables.append(val.assign(distance=distance).set_index("scan_id"))
    return tables


def test_it_is_trusted_as_far_as_its_averages_for_val_allow(models: Path) -> None:
    folder = models / "diagnosis/scratch/1.0"
    found = ensemble_of(folder)
    assert found.members == ("3", "1")
    one, other = validation(folder, found.members)
    logits = (np.log(one[["p_CN", "p_AD"]]) + np.log(other[["p_CN", "p_AD"]])) / 2
    ill = (one["label"] == "AD").to_numpy()
    grid = np.geomspace(0.05, 20, 2000)
    losses = [log_loss(ill, softmax(logits / t, axis=1)) for t in grid]
    assert found.temperature is not None
    assert found.temperature == pytest.approx(grid[np.argmin(losses)], rel=0.01)
    p = softmax(logits.to_numpy(), axis=1)
    assert found.calibrated_on == tuple(one[rows]["person"].nunique() for rows in (~ill, ill))
    for limit, scores in zip(found.limits, (1 - p[~ill, 0], 1 - p[ill, 1]), strict=True):
        assert limit in (None, pytest.approx(scores.max()), pytest.approx(np.sort(scores)[-2]))
    distance = (one["distance"] + other["distance"]) / 2
    assert (
        (distance > found.distance_limit).mean()
        <= 0.025
        < (distance >= found.distance_limit).mean()
    )


def test_of_eight_persons_it_promises_nothing(models: Path) -> None:
    found = ensemble_of(models / "age/scratch/1.0")
    assert (found.limits, found.calibrated_on) == ((None,), (8,))


def test_in_folds_each_scan_is_judged_by_the_models_that_it_has_validated(
    encoder: Path, tmp_path: Path
) -> None:
    volumes = tiny.write_volumes(tmp_path / "volumes", in_folds())
    models = tiny.run(tmp_path / "models", volumes, encoder, {**PARAMS, "seeds": [0]}, TASKS)
    folder = models / "age/scratch/1.0"
    found = ensemble_of(folder)
    assert found.members == tuple(f"0/fold-{fold}" for fold in range(1, COUNT + 1))
    pooled = pd.concat(validation(folder, found.members))
    scans = in_folds()
    assert sorted(pooled.index) == sorted(scans["scan_id"][scans["split"] != "ood"])
    errors = (pooled["output"] - pooled["label"]).abs().sort_values()
    share = 1 / pooled.groupby("person")["person"].transform("size")  # a person counts once
    persons = pooled["person"].nunique()
    half = errors[share[errors.index].cumsum() >= 0.9 * (persons + 1)].min()
    assert found.limits == (pytest.approx(half),)
    assert found.calibrated_on == (persons,)


def test_one_model_is_none(models: Path, volumes: Path, encoder: Path, tmp_path: Path) -> None:
    own = tmp_path / "models"
    shutil.copytree(models, own)
    tiny.run(own, volumes, encoder, {**PARAMS, "seeds": [3]}, TASKS)
    assert not list(own.rglob("ensemble.json"))
    assert (own / "age/scratch/1.0/3/model.safetensors").exists()


def test_a_shard_without_all_members_makes_none_and_the_merged_ones_do(
    models: Path, volumes: Path, encoder: Path, tmp_path: Path
) -> None:
    parts = [
        tiny.run(tmp_path / str(n), volumes, encoder, PARAMS, TASKS, shard=Shard(n, 2))
        for n in (1, 2)
    ]
    assert not [path for part in parts for path in part.rglob("ensemble.json")]
    merged = tiny.run(tmp_path / "all", volumes, encoder, PARAMS, TASKS, reuse=parts)
    assert tiny.contents(merged) == tiny.contents(models)
    recorded = json.loads((merged / "stage.json").read_text())["contents"]
    assert "age/scratch/1.0/ensemble.json" in recorded
