"""A fine-tuned model is run by MONAI, without this package, and says what `predict` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import neurofoundry
from neurofoundry.cli.main import app
from neurofoundry.contracts.models import read_model_plan
from neurofoundry.contracts.volumes import SLOPE, Grid, open_volume
from neurofoundry.errors import DataError, UsageError
from neurofoundry.inference import bundle
from neurofoundry.inference.predictions import predict
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.stage import Workspace
from neurofoundry.weights.params import ImportParams
from neurofoundry.weights.published import import_checkpoint
from tests.support import tiny
from tests.support.inference import RECIPE
from tests.support.segmenter import bright, write_model, write_models

PACKAGE = str(Path(neurofoundry.__file__).parent).encode()

BOTH = ("T1w", "FLAIR")
SEEN_IN_FLAIR = bright(1.0, contrasts=BOTH, patch=24)
"""It outlines by windows what is bright in FLAIR."""

ALONE = """
import json, sys
sys.modules["neurofoundry"] = None  # importing it fails
import monai.bundle
for folder, files in json.loads(sys.argv[1]):
    config = f"{folder}/configs/inference.json"
    monai.bundle.run(config_file=config, bundle_root=folder, **files)
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "volumes"
    tiny.write_volumes(folder, tiny.scans_table())
    write_json(folder / "grid.json", {"grid": tiny.GRID.describe(), "params": RECIPE})
    return folder


@pytest.fixture(scope="module")
def models(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ensembles of two untrained encoders with linear heads, which look at mirror images, too."""
    folder = tmp_path_factory.mktemp("bundle")
    encoder = tiny.write_encoder(folder / "encoder")
    params = {
        "initializations": {"probe": {"encoder": "random", "mode": "probe"}},
        **{"seeds": [0, 1], "test_time_augmentation": "mirror"},
    }
    tasks = {"diagnosis": tiny.DIAGNOSIS, "age": tiny.AGE}
    models = tiny.run(folder / "models", volumes, encoder, params, tasks)
    recipe = PreprocessParams(grid=Grid(spacing=6))
    write_models(models / "spot", [bright(1.0), bright(1.6)], recipe)
    write_model(models / "flair", SEEN_IN_FLAIR, recipe, contrasts=BOTH)
    return models


@pytest.fixture(scope="module")
def exported(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("exported")
    chosen = {
        "diagnosis": models / "diagnosis/probe/1.0",
        "age": models / "age/probe/1.0/1",
        "spot": models / "spot",
        "flair": models / "flair",
    }
    for name, model in chosen.items():
        command = ["export", str(model), "--out", str(out / name), "--authors", "A & B"]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return {name: out / name for name in chosen}


@pytest.fixture(scope="module")
def answers(
    exported: dict[str, Path], volumes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What MONAI's bundle runner writes for one volume; of both contrasts also without FLAIR."""
    out = tmp_path_factory.mktemp("answers")
    image, flair = (volume_of(volumes, number) for number in (3, 5))
    names = {"diagnosis": "diagnosis.json", "age": "age.json"}
    names |= {name: f"{name}.nii.gz" for name in ("spot", "flair", "flair-lacking")}
    runs = [
        (
            str(exported[name.partition("-")[0]]),
            {"image": str(image), "output": str(out / file)}
            | ({"image_FLAIR": str(flair)} if name == "flair" else {}),
        )
        for name, file in names.items()
    ]
    subprocess.run([sys.executable, "-c", ALONE, json.dumps(runs)], check=True, cwd=out)
    return {name: out / file for name, file in names.items()}


def volume_of(volumes: Path, number: int) -> Path:
    return volumes / f"{tiny.scans_table()['scan_id'][number]}.nii"


def zscores_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(open_volume(path, tiny.GRID) * np.float32(SLOPE))


def said(model: Path, volumes: Path, out: Path) -> pd.Series[Any]:
    predict([volumes], model=model, out=out, workers=1)
    return pd.read_csv(out, sep="\t").set_index("scan_id").loc[tiny.scans_table()["scan_id"][3]]


def test_an_ensemble_of_classifiers_says_what_predict_says(
    answers: dict[str, Path], models: Path, volumes: Path, tmp_path: Path
) -> None:
    found = json.loads(answers["diagnosis"].read_text())
    row = said(models / "diagnosis/probe/1.0", volumes, tmp_path / "out.tsv")
    assert list(found) == ["CN", "AD"]
    assert [found["CN"], found["AD"]] == pytest.approx([row["p_CN"], row["p_AD"]], abs=1e-4)


def test_a_regression_says_what_predict_says(
    answers: dict[str, Path], models: Path, volumes: Path, tmp_path: Path
) -> None:
    found = json.loads(answers["age"].read_text())
    row = said(models / "age/probe/1.0/1", volumes, tmp_path / "out.tsv")
    assert found == {"age": pytest.approx(row["prediction"], abs=0.01)}


def test_an_ensemble_of_segmentations_outlines_what_its_mean_does(
    answers: dict[str, Path], volumes: Path
) -> None:
    zscores = zscores_of(volume_of(volumes, 3))[None, None]
    with torch.no_grad():
        shares = [bright(t)(zscores).softmax(1)[0] for t in (1.0, 1.6)]
    expected = ((shares[0] + shares[1]) / 2).argmax(0).numpy().transpose(2, 1, 0)
    found: Any = nib.load(answers["spot"])
    assert 10 < expected.sum() < expected.size / 2
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    np.testing.assert_allclose(found.affine, tiny.GRID.affine)


def test_a_model_of_several_contrasts_takes_each_and_zeros_for_one_that_is_missing(
    answers: dict[str, Path], volumes: Path
) -> None:
    t1w, flair = (zscores_of(volume_of(volumes, number)) for number in (3, 5))
    both = torch.stack([t1w, flair])[None]
    with torch.no_grad():
        expected = SEEN_IN_FLAIR(both)[0].argmax(0).numpy().transpose(2, 1, 0)
    found, lacking = (nib.load(answers[name]) for name in ("flair", "flair-lacking"))
    assert 10 < expected.sum() < expected.size / 2
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    assert not np.asarray(lacking.dataobj).any()


def test_metadata_name_the_channels(exported: dict[str, Path]) -> None:
    found = json.loads((exported["flair"] / "configs/metadata.json").read_text())
    image = found["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 2
    assert image["channel_def"]["0"].startswith("T1w, axes (z, y, x)")
    assert image["channel_def"]["1"] == "FLAIR, likewise; zeros where a scan lacks it"
    card = (exported["flair"] / "README.md").read_text()
    assert "--image volume.nii --image_FLAIR FLAIR.nii" in card


def test_predict_takes_an_exported_model(
    exported: dict[str, Path], models: Path, volumes: Path, tmp_path: Path
) -> None:
    one = said(exported["diagnosis"], volumes, tmp_path / "one.tsv")
    other = said(models / "diagnosis/probe/1.0", volumes, tmp_path / "other.tsv")
    pd.testing.assert_series_equal(one, other)


def test_monai_finds_that_metadata_are_true(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(folder / "configs/metadata.json"),
            config_file=str(folder / "configs/inference.json"),
            bundle_root=str(folder),
        )
        loaded: Any = monai.bundle.load(
            folder.name, bundle_dir=folder.parent, load_ts_module=True, device="cpu"
        )
        assert loaded[1]["network_data_format"]["outputs"]["pred"]["channel_def"]


@pytest.mark.parametrize("name", ["$__import__('os').abort()", "@device", "%../x.json::a"])
def test_a_class_that_monai_would_run_or_look_up_is_refused(models: Path, name: str) -> None:
    plan = read_model_plan(models / "diagnosis/probe/1.0/0")
    odd = plan.model_copy(update={"task": plan.task | {"classes": [name, "AD"]}})
    with pytest.raises(UsageError, match=r"class .* begins as what MONAI runs or looks up"):
        bundle.inference(odd)


def test_no_file_names_a_person_or_a_place(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for secret in (b"sub-0", b"/tmp/", b"site-packages", PACKAGE):
                    assert secret not in content, (path, secret)


def test_the_card_says_what_the_output_means(exported: dict[str, Path]) -> None:
    text = (exported["spot"] / "README.md").read_text()
    for words in ("| 1 | spot |", "Not for diagnosis", "2 networks as one", "A & B", "9 persons"):
        assert words in text


def test_a_model_cannot_be_imported_as_an_encoder(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing of its program is run, nor is it taken for weights."""
    for source in (exported["spot"], exported["spot"] / "models/model.ts"):
        with pytest.raises(DataError):
            import_checkpoint(
                Workspace(tmp_path), checkpoint=source, params=ImportParams(name="spot")
            )
