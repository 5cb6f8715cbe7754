"""What `neurofoundry init` writes."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import neurofoundry
from neurofoundry import presets
from neurofoundry.contracts.encoder import NAMES_SHIPPED, UNTRAINED
from neurofoundry.errors import UsageError
from neurofoundry.params import load_text
from neurofoundry.project import Params

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_preset_is_valid_and_has_no_line_without_effect(name: str) -> None:
    text = presets.read(name)
    params = load_text(text, Params, origin=name)
    assert params.finetune.initializations[params.evaluate.reference].encoder == "random"
    known = {*params.pretrain.methods, *UNTRAINED, *NAMES_SHIPPED}
    assert {each.encoder for each in params.finetune.initializations.values()} <= known


def test_the_preset_of_the_sample_is_that_of_the_repository() -> None:
    assert presets.read("laptop") == (ROOT / "params.yaml").read_text()


def test_the_paper_is_as_its_code_has_it() -> None:
    params = load_text(presets.read("paper"), Params, origin="paper")
    assert params.preprocess.grid.shape == (192, 192, 150)
    pretrain = params.pretrain
    assert (pretrain.encoder.architecture, pretrain.encoder.stem_stride) == ("resnet18", 1)
    assert (pretrain.encoder.width, pretrain.methods) == (1.0, ("simclr", "mae"))
    assert (pretrain.learning_rate, pretrain.weight_decay, pretrain.warmup) == (3e-4, 0, 0)
    assert (pretrain.schedule, pretrain.epochs, pretrain.batch_size) == ("constant", 1000, 72)
    simclr: Any = pretrain.section("simclr")
    assert (simclr.temperature, simclr.projection, simclr.projector) == (0.5, 64, "plain")
    assert params.finetune.fractions == (0.2, 1.0)
    assert len(params.tasks) == 4


def without_code(stages: dict[str, Any]) -> dict[str, Any]:
    """dvc.yaml as it is where the package is installed."""
    for stage in stages["stages"].values():
        own = [name for name in stage["deps"] if not name.startswith("neurofoundry/")]
        stage["deps"] = sorted([*own, "requirements.txt"])
    for plot in stages["plots"]:
        for values in plot.values():
            if "template" in values:
                values["template"] = values["template"].removeprefix("neurofoundry/presets/")
    return stages


def test_the_stages_of_a_project_are_those_of_the_repository(tmp_path: Path) -> None:
    presets.write_project(tmp_path / "study", "paper")
    written = yaml.safe_load((tmp_path / "study/dvc.yaml").read_text())
    for stage in written["stages"].values():
        stage["deps"].sort()
    assert written == without_code(yaml.safe_load((ROOT / "dvc.yaml").read_text()))
    names = {
        values["template"]
        for plot in written["plots"]
        for values in plot.values()
        if "template" in values
    }
    assert all((tmp_path / "study" / name).is_file() for name in names)


def test_a_project_is_written_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = presets.write_project(tmp_path / "study", "workstation")
    assert "dvc repro" in told
    assert (tmp_path / "study/params.yaml").read_text() == presets.read("workstation")
    assert neurofoundry.__version__ in (tmp_path / "study/requirements.txt").read_text()
    assert (tmp_path / "study/data").is_dir()
    with pytest.raises(UsageError, match=r"already params\.yaml, dvc\.yaml"):
        presets.write_project(tmp_path / "study", "paper")
    assert (tmp_path / "study/params.yaml").read_text() == presets.read("workstation")
    (tmp_path / "own/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "own")
    presets.write_project(Path(), "first-look")
    assert (tmp_path / "own/dvc.yaml").is_file()
    with pytest.raises(UsageError, match="--preset huge: expected one of laptop, first-look"):
        presets.write_project(tmp_path / "new", "huge")
    assert not (tmp_path / "new").exists()


def test_the_page_of_plots_needs_no_network() -> None:
    """It holds the libraries that DVC's own page loads from elsewhere, in the same versions."""
    renderer = pytest.importorskip("dvc_render.vega").VegaRenderer
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text(encoding="utf-8")
    assert "{plot_divs}" in page
    assert not re.search(r"<script[^>]+src=|<link|@import", page)
    loaded = re.findall(r"npm/([\w-]+)@([\d.]+)", renderer.SCRIPTS)
    assert loaded == re.findall(r"<!-- ([\w-]+) ([\d.]+), BSD-3-Clause", page)
