from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from neurofoundry.contracts.volumes import write_volume
from neurofoundry.errors import DataError
from neurofoundry.finetune import trust
from neurofoundry.inference.predictions import predict
from neurofoundry.runtime.files import write_json
from tests.support import tiny
from tests.support.inference import RECIPE

PROBE = {"initializations": {"probe": {"encoder": "simclr", "mode": "probe"}}}
TUNED = {**tiny.FINETUNED, "epochs": 1}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "volumes"
    tiny.write_volumes(folder, tiny.scans_table(70))
    write_json(folder / "grid.json", {"grid": tiny.GRID.describe(), "params": RECIPE})
    return folder


@pytest.fixture(scope="module")
def models(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    encoder = tiny.write_encoder(folder / "encoder")
    params = {**TUNED, "initializations": PROBE["initializations"] | TUNED["initializations"]}
    tasks = {"diagnosis": tiny.DIAGNOSIS, "age": tiny.AGE}
    return tiny.run(folder / "models", volumes, encoder, params, tasks)


def predicted(model: Path, place: Path, out: Path) -> pd.DataFrame:
    predict([place], model=model, out=out, workers=1)
    return pd.read_csv(out, sep="\t")


@pytest.mark.parametrize("init", ["probe", "scratch"])
class TestPredictions:
    def test_of_classes_are_those_of_finetune_with_their_uncertainty(
        self, models: Path, volumes: Path, tmp_path: Path, init: str
    ) -> None:
        model = models / f"diagnosis/{init}/1.0/0"
        found = predicted(model, volumes, tmp_path / "out.tsv").set_index("scan_id")
        expected = tiny.predictions(model).set_index("scan_id")
        found = found.loc[expected.index]
        for name in ("p_CN", "p_AD"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
        calibrated = found[["calibrated_p_CN", "calibrated_p_AD"]].to_numpy()
        np.testing.assert_allclose(calibrated.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found["entropy"], entropy(calibrated, base=2, axis=1), atol=1e-6)
        more_ill = np.where(found["p_AD"] > found["p_CN"], "AD", "CN")
        assert found["prediction"].tolist() == more_ill.tolist()
        # Dividing logits by a temperature divides their difference.
        known = trust.read(model / "trust.npz").uncertainty
        t = known.temperature
        odds = np.log(calibrated[:, 1] / calibrated[:, 0])
        np.testing.assert_allclose(
            odds * t, np.log(expected["p_AD"] / expected["p_CN"]), atol=2e-3, rtol=1e-3
        )
        assert set(found["calibrated_on"]) == {min(known.calibrated_on)} == {5}
        assert found["set"].isna().all()  # of five persons

    def test_of_values_have_an_interval(
        self, models: Path, volumes: Path, tmp_path: Path, init: str
    ) -> None:
        model = models / f"age/{init}/1.0/0"
        found = predicted(model, volumes, tmp_path / "out.tsv").set_index("scan_id")
        expected = tiny.predictions(model).set_index("scan_id")
        found = found.loc[expected.index]
        np.testing.assert_allclose(found["prediction"], expected["output"], rtol=1e-4, atol=1e-2)
        val = expected[expected["split"] == "val"]
        assert set(found["calibrated_on"]) == {val["person"].nunique()} == {10}
        largest = (val["output"] - val["label"]).abs().max()  # of 10 persons none may lie beyond
        inside = (found["high"] - found["low"]) / 2
        np.testing.assert_allclose(inside, largest, rtol=1e-3)


class TestFamiliarity:
    def test_noise_is_flagged_and_most_scans_are_not(
        self, models: Path, volumes: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "volumes"
        scans = tiny.scans_table()
        scans = scans[scans["split"].isin(["train", "val"])]
        tiny.write_volumes(folder, scans)
        noise = np.random.default_rng(0).normal(size=tiny.GRID.shape)
        everywhere = np.ones(tiny.GRID.shape, bool)
        odd = scans["scan_id"].iloc[0]
        write_volume(folder / f"{odd}.nii", noise, everywhere, tiny.GRID)
        tiny.with_scans(folder, scans)
        model = models / "diagnosis/probe/1.0/0"
        found = predicted(model, folder, tmp_path / "out.tsv").set_index("scan_id")
        flagged = found["out_of_distribution"]
        assert flagged[odd]
        assert flagged.drop(odd).mean() < 0.1
        assert (found["distance"] > found["distance_limit"]).equals(flagged.astype(bool))


class TestRawScans:
    def test_a_scan_gets_a_prediction_and_a_torn_one_a_reason(
        self, models: Path, raw: Path, tmp_path: Path
    ) -> None:
        found = predicted(models / "age/probe/1.0/0", raw, tmp_path / "out.tsv").set_index("scan")
        assert found["prediction"].notna().tolist() == [True, True, False]
        assert found.loc["torn.nii.gz", "reason"].startswith("cut short")
        # Phantoms are no relatives of the cubes and spheres that it has learned.
        assert found["out_of_distribution"][:2].tolist() == [True, True]


@pytest.fixture(scope="module")
def several(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    encoder = tiny.write_encoder(folder / "encoder")
    params = {**TUNED, "seeds": [0, 1, 2], "test_time_augmentation": "mirror"}
    tasks = {"diagnosis": tiny.DIAGNOSIS, "age": tiny.AGE}
    return tiny.run(folder / "models", volumes, encoder, params, tasks)


class TestEnsemble:
    def test_it_predicts_the_mean_of_log_odds_of_its_members(
        self, several: Path, volumes: Path, tmp_path: Path
    ) -> None:
        folder = several / "diagnosis/scratch/1.0"
        found = predicted(folder, volumes, tmp_path / "out.tsv").set_index("scan_id")
        own = [tiny.predictions(folder / str(n)).set_index("scan_id") for n in range(3)]
        found = found.loc[own[0].index]
        odds = np.mean([np.log(each["p_AD"] / each["p_CN"]) for each in own], axis=0)
        np.testing.assert_allclose(np.log(found["p_AD"] / found["p_CN"]), odds, atol=1e-3)
        plan = json.loads((folder / "ensemble.json").read_text())
        calibrated = np.log(found["calibrated_p_AD"] / found["calibrated_p_CN"])
        np.testing.assert_allclose(calibrated * plan["temperature"], odds, atol=1e-3)
        assert found["distance_limit"].to_numpy() == pytest.approx(plan["distance_limit"])

    def test_a_distance_is_the_mean_of_the_members(
        self, several: Path, volumes: Path, tmp_path: Path
    ) -> None:
        folder = several / "age/scratch/1.0"
        found = predicted(folder, volumes, tmp_path / "out.tsv")["distance"]
        own = [
            predicted(folder / str(n), volumes, tmp_path / f"{n}.tsv")["distance"] for n in range(3)
        ]
        np.testing.assert_allclose(found, np.mean(own, axis=0), rtol=1e-4)

    def test_members_of_two_tasks_are_refused(
        self, several: Path, volumes: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "mixed"
        shutil.copytree(several / "age/scratch/1.0", folder)
        shutil.rmtree(folder / "1")
        shutil.copytree(several / "diagnosis/scratch/1.0/1", folder / "1")
        with pytest.raises(DataError, match=r"1: not a model of the same task.*Run finetune again"):
            predict([volumes], model=folder, out=tmp_path / "x.tsv", workers=1)

    @pytest.mark.parametrize("member", ["../0", "/etc", "0/../../1"])
    def test_a_member_outside_the_folder_is_refused(
        self, several: Path, volumes: Path, tmp_path: Path, member: str
    ) -> None:
        folder = tmp_path / "outside"
        shutil.copytree(several / "age/scratch/1.0", folder)
        plan = json.loads((folder / "ensemble.json").read_text())
        write_json(folder / "ensemble.json", plan | {"members": [member, "1"]})
        with pytest.raises(DataError, match="not an ensemble of models"):
            predict([volumes], model=folder, out=tmp_path / "x.tsv", workers=1)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("scans", "model"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="Give a folder models/TASK"):
        predict([tmp_path / "scans"], model=tmp_path / "model", out=tmp_path / "x.tsv", workers=1)
