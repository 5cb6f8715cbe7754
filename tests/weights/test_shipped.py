"""The encoders that come with the package."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from neurofoundry.cli.main import app
from neurofoundry.cli.options import encoders_of, with_shipped
from neurofoundry.contracts.cohort import is_phantom
from neurofoundry.contracts.encoder import NAMES_SHIPPED, SHIPPED, find_encoders, read_pretrained
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.params import validate
from neurofoundry.project import Params
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES_SHIPPED)
def test_it_is_small_and_says_what_it_is(name: str) -> None:
    _, plan = encoders.load(SHIPPED / name)
    seen = read_pretrained(SHIPPED / name)
    assert (plan.name, plan.licence) == (name, "CC-BY-4.0")
    assert plan.preprocess["registration"] == "rigid"
    assert plan.pretraining
    assert plan.pretraining.persons == len(seen.persons or ()) == len(seen.sketches)
    # Synthetic, and nobody of the sample or of any cohort that `phantom` makes.
    assert all(is_phantom(person) for person in seen.persons or ())
    assert not any(person.startswith("phantom/") for person in seen.persons or ())
    assert sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) < 3e6


def test_all_that_ships_has_a_name_and_is_in_the_wheel() -> None:
    assert sorted(path.name for path in SHIPPED.iterdir()) == sorted(NAMES_SHIPPED)
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["neurofoundry"]
    package = ROOT / "neurofoundry"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert {path for path in SHIPPED.rglob("*") if path.is_file()} <= packed


@pytest.mark.parametrize("file", ["encoder.safetensors", "plan.json", "subjects.tsv"])
def test_an_altered_file_is_refused(tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(SHIPPED / "small", tmp_path / "small")
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        encoders.load(folder)


def test_a_copy_of_what_it_has_seen_is_a_leak() -> None:
    seen = read_pretrained(SHIPPED / "small")
    scans = tiny.scans_table(4).assign(usable=True, split="test")
    guard_leaks(scans, pretrained=seen)
    scans.loc[0, "sha256"] = sorted(seen.images or ())[0]
    with pytest.raises(DataError):
        guard_leaks(scans, pretrained=seen)


def test_it_is_added_once_and_no_other_can_have_its_name(tmp_path: Path) -> None:
    other = tiny.write_encoder(tmp_path / "encoder/simclr")
    assert with_shipped([other], ["simclr", "random"]) == [other]
    assert with_shipped([other], ["simclr", "small", "small"]) == [other, SHIPPED / "small"]
    own = shutil.copytree(SHIPPED / "small", tmp_path / "encoder/small")
    with pytest.raises(DataError, match="another encoder of the name 'small'"):
        find_encoders(with_shipped([own.parent], ["small"]))


def test_another_grid_is_refused_before_anything_runs() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["preprocess"]["grid"]["spacing"] = 2.0
    with pytest.raises(
        UsageError, match=r"'small' knows volumes of 3 mm only.* is 2\. Remove small"
    ):
        validate(values, Params, origin="params.yaml")


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Volumes of its grid; those of ``tiny`` are coarser."""
    monkeypatch.setattr(tiny, "GRID", Grid(spacing=3.0))
    return tiny.write_volumes(tmp_path / "volumes", tiny.scans_table(28))


def test_finetune_finds_it_by_its_name(tmp_path: Path, volumes: Path) -> None:
    tiny.write_encoder(tmp_path / "encoder/simclr", grid=Grid(spacing=3.0))
    params = """
      {"seed": 0, "tasks": {"age": {"kind": "regression", "column": "age", "min_subjects": 1}},
       "finetune": {"initializations": {"mine": {"encoder": "small", "mode": "probe"}}}}
    """
    words = ["finetune", "--params", params, "--volumes", str(volumes)]
    words += ["--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "models")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert encoders_of(tmp_path / "models") == ["small"]
    model = tiny.read_model(tmp_path / "models/age/mine/1.0/0", SHIPPED / "small", tiny.AGE)
    frozen = encoders.load(SHIPPED / "small")[0].state_dict()
    assert tiny.same_weights(model.encoder.state_dict(), frozen)


def test_embed_finds_it_by_its_name(tmp_path: Path, volumes: Path) -> None:
    out = tmp_path / "features.tsv"
    words = ["embed", str(volumes), "--weights", "small", "--out", str(out), "--workers", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(out, sep="\t")) == len(tiny.scans_table(28))
