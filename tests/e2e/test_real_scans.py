"""A fresh clinical folder: four subjects, no labels for most, an odd FLAIR beside a T1w."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e


def test_a_first_look_runs_all_stages_and_says_what_cannot_be_estimated(
    command: Run, tmp_path: Path, real_mri: Path
) -> None:
    words = [
        "neurofoundry", "run", "--data", real_mri, "--out", "first-look", "--params",
        ROOT / "neurofoundry/presets/first-look.yaml", "--set", "pretrain.epochs=1",
    ]  # fmt: skip
    done = command(*words, cwd=tmp_path)
    assert "Report: first-look/evaluation/report.html" in done.stdout
    scans = pd.read_csv(tmp_path / "first-look/volumes/scans.tsv", sep="\t")
    assert len(scans) == 5
    assert scans["usable"].all()
    excluded = pd.read_csv(tmp_path / "first-look/cohort/excluded.tsv", sep="\t")
    assert excluded["path"].str.contains("FLAIR").tolist() == [True]
    metrics = json.loads((tmp_path / "first-look/evaluation/metrics.json").read_text())
    assert set(metrics) == {"sex", "age"}
    report = (tmp_path / "first-look/evaluation/report.html").read_text()
    assert "No task can be estimated" in report
    again = command(*words, cwd=tmp_path)
    for folder in ("volumes", "encoder/simclr", "models", "evaluation"):
        assert f"first-look/{folder}: up to date" in again.stderr
