from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts import folds
from neurofoundry.contracts.models import RUNS
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.runtime.stage import Shard
from tests.support import tiny

COUNT = 3
TASKS = {"diagnosis": tiny.DIAGNOSIS}
PARAMS: dict[str, Any] = {
    **tiny.FINETUNED,
    "epochs": 1,
    "initializations": {
        "scratch": {"encoder": "random", "mode": "finetune"},
        "probe": {"encoder": "simclr", "mode": "probe"},
    },
    "explain": {"initializations": ["scratch"], "scans": 6, "steps": 4},
}


def in_folds(persons: int = 30) -> pd.DataFrame:
    scans = tiny.scans_table(persons)
    number = scans["subject"].str[4:].astype(int) // 2 % COUNT + 1
    split = np.where(scans["split"] == "ood", "ood", "test")
    return scans.assign(split=split, fold=number.astype(str) + f"/{COUNT}")


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_volumes(tmp_path_factory.mktemp("crossed") / "volumes", in_folds())


@pytest.fixture(scope="module")
def models(crossed: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run(tmp_path_factory.mktemp("crossed") / "models", crossed, encoder, PARAMS, TASKS)


def test_every_fold_has_a_model_that_predicts_whom_it_has_not_learned_from(models: Path) -> None:
    runs = read_table(models / "runs.tsv", RUNS)
    assert runs["fold"].tolist() == [1, 2, 3] * 2
    scans = in_folds()
    for row in runs.itertuples():
        folder = models / "diagnosis" / str(row.init) / "1.0" / "0" / f"fold-{row.fold}"
        inside = folds.in_fold(scans, int(row.fold)).set_index("scan_id")["split"]
        predicted = tiny.predictions(folder).set_index("scan_id")["split"]
        assert predicted.equals(inside[predicted.index])
        assert set(predicted.index) == set(inside.index[inside != "train"])
        learned = pd.read_csv(folder / "fitted.tsv", sep="\t")["scan_id"]
        assert set(learned) == set(inside.index[inside == "train"])


def test_test_scans_are_explained_by_the_model_of_their_fold(models: Path) -> None:
    explained: list[str] = []
    for fold in range(1, COUNT + 1):
        folder = models / "diagnosis" / "scratch" / "1.0" / "0" / f"fold-{fold}"
        with np.load(folder / "explanation.npz") as content:
            named = list(content["scan_id"])
        assert set(named) <= set(tiny.predictions(folder).query("split == 'test'")["scan_id"])
        explained += named
    assert len(explained) == len(set(explained)) == 6


def test_shards_make_the_same_models(models: Path, crossed: Path, encoder: Path, tmp_path) -> None:
    parts = [
        tiny.run(tmp_path / str(n), crossed, encoder, PARAMS, TASKS, shard=Shard(n, 2))
        for n in (1, 2)
    ]
    merged = tiny.run(tmp_path / "all", crossed, encoder, PARAMS, TASKS, reuse=parts)
    assert tiny.contents(merged) == tiny.contents(models)


def test_a_fold_that_is_whole_is_made_once(
    models: Path, crossed: Path, encoder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "models"
    shutil.copytree(models, own)
    (own / "stage.json").unlink()
    kept, lost = (own / "diagnosis/scratch/1.0/0" / f"fold-{fold}" for fold in (1, 2))
    (kept / "history.tsv").write_text("as it was\n")
    shutil.rmtree(lost)
    made = tiny.run(tmp_path / "new", crossed, encoder, PARAMS, TASKS, reuse=[own])
    again = made / "diagnosis/scratch/1.0/0"
    assert (again / "fold-1/history.tsv").read_text() == "as it was\n"
    original = models / "diagnosis/scratch/1.0/0/fold-2"
    assert tiny.contents(again / "fold-2") == tiny.contents(original)


def test_an_encoder_pretrained_on_somebody_who_is_tested_is_refused(
    crossed: Path, tmp_path: Path
) -> None:
    seen = tiny.write_encoder(tmp_path / "encoder", persons=("tiny/sub-004",))
    with pytest.raises(DataError) as refused:
        tiny.run(tmp_path / "models", crossed, seen, PARAMS, TASKS)
    assert "tiny/sub-004 was pretrained on" in str(refused.value)
    assert "ingest.splits.pretrain: 0.2, pretrain.splits: [pretrain]" in str(refused.value)


def test_where_one_fold_has_no_model_no_fold_has(encoder: Path, tmp_path: Path) -> None:
    scans = in_folds()
    # All the ill of fold 3 are left out: in fold 1 nobody is ill of whom to learn.
    usable = ~((scans["fold"] == "3/3") & (scans["diagnosis"] == "AD"))
    reason = np.where(usable, None, "broken")
    volumes = tiny.write_volumes(tmp_path / "volumes", scans.assign(usable=usable, reason=reason))
    optional = {"diagnosis": tiny.DIAGNOSIS.model_copy(update={"required": False})}
    models = tiny.run(tmp_path / "models", volumes, encoder, PARAMS, optional)
    runs = read_table(models / "runs.tsv", RUNS)
    assert set(runs["status"]) == {"not estimable"}
    assert set(runs["reason"]) == {
        "in fold 1, split 'train' has 0 subjects with diagnosis=AD, 2 are needed"
    }
    with pytest.raises(DataError, match="in fold 1, split 'train' has 0 subjects"):
        tiny.run(tmp_path / "refused", volumes, encoder, PARAMS, TASKS)
