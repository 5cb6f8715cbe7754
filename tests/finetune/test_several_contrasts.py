"""From volumes of T1w and FLAIR to predictions; the diagnosis shows in FLAIR alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, Volumes, write_volume
from neurofoundry.inference.embeddings import embed
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.weights.features import load_encoder
from tests.pretrain.conftest import run_stage
from tests.support import tiny


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads whose T1w knows nothing of the diagnosis; every seventh has no FLAIR."""
    folder = tmp_path_factory.mktemp("several") / "volumes"
    folder.mkdir()
    scans = tiny.scans_table()
    middle = ((np.array(tiny.GRID.shape) - 1) / 2)[:, None, None, None]
    axes = (np.indices(tiny.GRID.shape) - middle) / middle
    brain = (axes**2).sum(0) < 0.6
    spot = ((axes - 0.2) ** 2).sum(0) < 0.06
    for number, scan in enumerate(scans.itertuples()):
        noise = np.random.default_rng(number)
        names = [f"{scan.scan_id}.nii"] + [f"{scan.scan_id}-FLAIR.nii"] * (number % 7 > 0)
        for name in names:
            image = noise.normal(0, 0.5, tiny.GRID.shape)
            image[spot] += 3 * ("FLAIR" in name and scan.diagnosis == "AD")
            write_volume(folder / name, image, brain, tiny.GRID)
    there = [(folder / f"{scan_id}-FLAIR.nii").exists() for scan_id in scans["scan_id"]]
    flair = [f"{s}-FLAIR.nii" if t else None for s, t in zip(scans["scan_id"], there, strict=True)]
    scans["volume_FLAIR"] = flair
    scans["volume_sha256_FLAIR"] = [hash_file(folder / name) if name else None for name in flair]
    record = {"grid": tiny.GRID.describe(), "params": {}, "contrasts": ["T1w", "FLAIR"]}
    write_json(folder / "grid.json", record)
    return tiny.with_scans(folder, scans)


@pytest.fixture(scope="module")
def encoder(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pretraining makes of both contrasts, in two epochs."""
    folder = tmp_path_factory.mktemp("several") / "simclr"
    run_stage(volumes, folder, epochs=2, splits=["train"], probe=None)
    return tiny.finished(folder, "pretrain", "encoder.safetensors")


def auc(models: Path, run: str) -> float:
    table = tiny.predictions(models / run)
    rows = table[table["split"].isin(["test", "ood"])]
    ill = (rows["label"] == "AD").to_numpy()
    ranks = rows["p_AD"].rank().to_numpy()
    return float((ranks[ill].sum() - ill.sum() * (ill.sum() + 1) / 2) / (ill.sum() * (~ill).sum()))


def test_pretraining_names_its_channels(volumes: Path, encoder: Path) -> None:
    plan = json.loads((encoder / "plan.json").read_text())
    assert plan["contrasts"] == ["T1w", "FLAIR"]


def test_a_model_learns_what_flair_alone_shows(volumes: Path, tmp_path: Path) -> None:
    """Even from weights that have seen T1w alone, whose stem gets filters for it."""
    params: dict[str, Any] = {
        **tiny.FINETUNED,
        "initializations": {"tuned": {"encoder": "simclr", "mode": "finetune"}},
        "epochs": 10,
    }
    weights = tiny.write_encoder(tmp_path / "t1w")
    models = tiny.run(tmp_path / "models", volumes, weights, params, {"ad": tiny.DIAGNOSIS})
    run = "ad/tuned/1.0/0"
    assert auc(models, run) > 0.8
    plan = json.loads((models / run / "plan.json").read_text())
    assert plan["encoder"]["contrasts"] == ["T1w", "FLAIR"]


def test_another_flair_makes_another_model(volumes: Path, encoder: Path, tmp_path: Path) -> None:
    params = {**tiny.PROBED}
    first = tiny.run(tmp_path / "models", volumes, encoder, params, {"ad": tiny.DIAGNOSIS})
    key = (first / "ad/probe/1.0/0/run.json").read_text()
    other = tmp_path / "volumes"
    other.mkdir()
    for file in volumes.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    table = read_table(other / "scans.tsv", VOLUMES)
    table.loc[table["volume_FLAIR"].notna().idxmax(), ["volume_FLAIR", "volume_sha256_FLAIR"]] = (
        None
    )
    write_table(table, other / "scans.tsv", VOLUMES)
    tiny.finished(other, "preprocess", "scans.tsv")
    second = tiny.run(tmp_path / "again", other, encoder, params, {"ad": tiny.DIAGNOSIS})
    assert (second / "ad/probe/1.0/0/run.json").read_text() != key


def test_embeddings_say_which_contrasts_there_were(
    volumes: Path, encoder: Path, tmp_path: Path
) -> None:
    embed([volumes], weights=encoder, out=tmp_path / "both.tsv", workers=1)
    table = pd.read_csv(tmp_path / "both.tsv", sep="\t").set_index("scan_id")
    scans = Volumes(volumes).scans.set_index("scan_id")
    expected = scans["volume_FLAIR"].notna().map({True: "T1w+FLAIR", False: "T1w"})
    assert table["contrasts"].to_dict() == expected.to_dict()
    alone = tiny.write_encoder(tmp_path / "t1w")
    embed([volumes], weights=alone, out=tmp_path / "t1w.tsv", workers=1)
    assert "contrasts" not in pd.read_csv(tmp_path / "t1w.tsv", sep="\t")
    # Where FLAIR is missing, features are those of the T1w volume alone.
    lacking = table.index[table["contrasts"] == "T1w"][0]
    features = load_encoder(encoder)(volumes / f"{lacking}.nii").numpy()[0]
    np.testing.assert_allclose(table.loc[lacking].filter(like="f0").astype(float), features, 1e-4)
