"""What a person meets at the command line: help, errors, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e


def test_help_lists_the_stages_in_order(command: Run) -> None:
    text = command("neurofoundry", "--help", cwd=ROOT).stdout
    places = [
        text.index(f" {name} ")
        for name in ("ingest", "preprocess", "pretrain", "finetune", "evaluate", "run", "phantom")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["params.yaml", "neurofoundry/presets/first-look.yaml"])
def test_the_parameters_of_the_repository_are_valid(
    command: Run, tmp_path: Path, name: str
) -> None:
    done = command(
        "neurofoundry", "preprocess", "--params", ROOT / name, "--data", "data", "--cohort",
        "cohort", "--out", "volumes", cwd=tmp_path, code=2,
    )  # fmt: skip
    assert "no finished output of 'ingest'" in done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.epoch=3", "Did you mean 'epochs'?"),
        ("tasks.age.column=iq", "no column 'iq'"),
        ("evaluate.reference=nothing", "is not one of"),
        ("tasks.age={kind: regression, column: age, classes: [a, b]}", "no classes"),
    ],
)
def test_a_wrong_parameter_is_exit_2_before_any_data_is_touched(
    command: Run, tmp_path: Path, override: str, words: str
) -> None:
    done = command(
        "neurofoundry", "run", "--params", ROOT / "params.yaml", "--set", override,
        "--data", "nowhere", "--out", "all", cwd=tmp_path, code=2,
    )  # fmt: skip
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_used_is_exit_3(command: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = command(
        "neurofoundry", "ingest", "--params", ROOT / "params.yaml", "--data", "data",
        "--out", "cohort", cwd=tmp_path, code=3,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cohort").exists()


def test_configure_hands_each_stage_what_it_reads(command: Run, tmp_path: Path) -> None:
    done = command(
        "neurofoundry", "configure", "--params", ROOT / "params.yaml", "--preprocess-shards", "3",
        "--finetune-shards", "0", "--set", "pretrain.epochs=5", cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(json.loads(found["preprocess"])) == {"preprocess", "tracking"}
    assert json.loads(found["pretrain"])["pretrain"]["epochs"] == 5
    assert found["shards_of_preprocess"] == ["1/3", "2/3", "3/3"]
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    starts = values["finetune"]["initializations"].values()
    tuned = sum(start["mode"] == "finetune" for start in starts)
    frozen = {start["encoder"] for start in starts if start["mode"] == "probe"}
    assert len(found["shards_of_finetune"]) == len(values["tasks"]) * tuned + len(frozen)


def test_what_the_steps_of_a_run_have_noted_becomes_a_page(command: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    outputs = {"outputFile": str(tmp_path / "outputs.json")}
    told = {"inputs": {"parameterValues": {"store": str(store)}}, "outputs": outputs}
    run = {"NEUROFOUNDRY_RUN": "run-1"}
    command(
        "neurofoundry", "configure", "--params", "nowhere.yaml", "--executor-input",
        json.dumps(told), cwd=tmp_path, code=2, **run,
    )  # fmt: skip
    words = ("neurofoundry", "summarize", "--store", store, "--out", tmp_path / "page.md")
    command(*words, cwd=tmp_path, **run)
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# The run has not come to its end")
    assert "`configure` failed (exit code 2: a parameter or a file" in page


def test_parameters_that_lie_in_a_store_are_those_of_their_stage(
    command: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    (store / "data/v1").mkdir(parents=True)
    words = ("neurofoundry", "configure", "--store", store, "--data-version", "v1", "--params")
    first = json.loads(command(*words, ROOT / "params.yaml", cwd=tmp_path).stdout)
    again = json.loads(command(*words, ROOT / "params.yaml", cwd=tmp_path).stdout)
    other = json.loads(
        command(*words, ROOT / "params.yaml", "--set", "pretrain.epochs=5", cwd=tmp_path).stdout
    )
    assert first == again
    assert first["data"] == str(store / "data/v1")
    assert {name for name in first if first[name] != other[name]} == {"pretrain"}
    assert set(json.loads(Path(first["finetune"]).read_text())) == {
        "finetune", "tasks", "seed", "tracking",
    }  # fmt: skip
    # It is read as a stage's own sections, and those of another stage are no parameters of it.
    out = tmp_path / "out"
    rest = ("--data", store / "data/v1", "--out", out)
    done = command(
        "neurofoundry", "ingest", "--params", first["ingest"], *rest, cwd=tmp_path, code=3
    )
    assert "params" not in done.stderr
    done = command(
        "neurofoundry", "ingest", "--params", first["pretrain"], *rest, cwd=tmp_path, code=2
    )
    assert "ingest: missing" in done.stderr


def test_a_step_says_what_it_lacks(command: Run, tmp_path: Path) -> None:
    words = ("neurofoundry", "check", "--store", tmp_path / "store", "--out", tmp_path / "page.md")
    command(*words, cwd=tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert "hard links" in page
    assert "W&B: no API key, runs are recorded offline" in page
    assert not list((tmp_path / "store").iterdir())
    done = command(*words, "--gpus", "99", cwd=tmp_path, code=2)
    assert "99 expected" in done.stderr
