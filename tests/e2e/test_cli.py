"""What a person meets at the command line: help, errors, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e


def test_help_lists_the_stages_in_order(command: Run) -> None:
    text = command("neurofoundry", "--help", cwd=ROOT).stdout
    places = [
        text.index(f" {name} ")
        for name in ("ingest", "preprocess", "pretrain", "finetune", "evaluate", "run", "phantom")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["params.yaml", "params/first-look.yaml"])
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
        ("evaluate.baseline=nothing", "is not one of"),
        ("tasks.age={kind: regression, column: age, classes: [a, b]}", "no classes"),
    ],
)
def test_a_wrong_parameter_is_exit_2_before_any_data_is_touched(
    command: Run, tmp_path: Path, override: str, words: str
) -> None:
    done = command(
        "neurofoundry", "ingest", "--params", ROOT / "params.yaml", "--set", override,
        "--data", "nowhere", "--out", "cohort", cwd=tmp_path, code=2,
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
