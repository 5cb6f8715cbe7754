"""The stage as a whole."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry.errors import UsageError
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import headline, narrative
from neurofoundry.evaluate.run import evaluate
from neurofoundry.runtime import stage
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs
from tests.support.page import Page


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TABLES = (
    *("benefit", "brain_age", "calibration", "confusion", "decisions", "differences"),
    *("embeddings", "explanations", "fairness", "gaps", "harmonization", "metrics", "repeats"),
    *("sets", "shots", "sites", "subgroups"),
)


def test_it_writes_what_the_contract_says_and_nothing_else(evaluated):
    assert list(files(evaluated.dir)) == sorted(
        [
            "checklist.md",
            "embeddings.html",
            "headline.json",
            "methods.md",
            "metrics.json",
            "model_card.md",
            "promotion.json",
            "provenance.json",
            "report.html",
            *(f"predictions/{name}.npz" for name in TASKS),
            *(f"plots/{name}.tsv" for name in ("predicted_vs_true", "pretraining")),
            *(f"plots/{name}.tsv" for name in ("reliability", "roc", "roc_bands")),
            *(f"tables/{name}.tsv" for name in TABLES),
        ]
    )


def test_the_same_inputs_give_the_same_bytes(usual, evaluated, tmp_path):
    run(usual, tmp_path / "again")
    assert files(tmp_path / "again") == files(evaluated.dir)


def test_another_seed_gives_other_resamples_and_the_same_values(usual, evaluated, tmp_path):
    run(usual, tmp_path / "out", seed=1, tasks={"sex": TASKS["sex"]})
    first, second = (
        pd.read_csv(folder / "tables/metrics.tsv", sep="\t")
        for folder in (evaluated.dir, tmp_path / "out")
    )
    first = first[first["task"] == "sex"]
    assert np.allclose(first["value"], second["value"], equal_nan=True)
    differs = first["high"].fillna(0).to_numpy() != second["high"].fillna(0).to_numpy()
    # Only calibration errors have intervals that rest on resamples.
    assert set(first["metric"].to_numpy()[differs]) == {"ece"}


def test_the_summary_is_the_headline_numbers(evaluated):
    numbers = json.loads((evaluated.dir / "metrics.json").read_text())
    score = numbers["age"]["simclr"]["1.0"]["ood"]["mae"]
    assert evaluated.summary["age_mae_ood_simclr"] == score["value"]
    assert evaluated.summary["age_mae_ood_simclr_low"] == score["low"]
    assert "alzheimers_auc_val_simclr" in evaluated.summary
    # A pipeline run has the pace of each encoder besides.
    assert 30 < len(evaluated.summary) - 1 <= headline.MOST - 1
    assert evaluated.summary["promoted"] is False


def test_fractions_of_the_labels_are_measured_and_the_largest_is_reported(tmp_path):
    tasks = {name: TASKS[name] for name in ("sex", "age")}
    skill = {"simclr": (2.4, 1.6), "scratch": (0.6, 0.6)}
    folders = write_inputs(
        tmp_path / "in", scans_table(120), tasks=tasks, fractions=(0.1, 1.0), skill=skill
    )
    work = run(folders, tmp_path / "out", tasks=tasks)
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["age"]["simclr"]
    assert list(numbers) == ["0.1", "1.0"]
    assert work.summary["age_mae_test_simclr"] == numbers["1.0"]["test"]["mae"]["value"]
    page = (tmp_path / "out/report.html").read_text()
    shown = Page(tmp_path / "out/report.html").words
    assert shown.count("With fewer labels") == 2
    for init in skill:
        assert f'aria-label="{init}: AUC by share of the labels"' in page
    table = pd.read_csv(tmp_path / "out/tables/differences.tsv", sep="\t")
    few = table.query("init == 'simclr' and versus == 'scratch' and fraction == 0.1")
    row = few.query("versus_fraction == 1 and split == 'test' and metric == 'mae'").iloc[0]
    few, full = (
        json.loads((tmp_path / "out/metrics.json").read_text())["age"][init][fraction]["test"]
        for init, fraction in (("simclr", "0.1"), ("scratch", "1.0"))
    )
    assert row["value"] == pytest.approx(few["mae"]["value"] - full["mae"]["value"])
    sentence = re.search(r"With 10% of the labels simclr reaches [\d.]+, [^.]+\.\d+[^<]*", page)
    assert sentence
    assert "scratch with all of them" in sentence[0]
    # Of every initialization, the reference too, its value, difference and what they say.
    measured = pd.read_csv(tmp_path / "out/tables/metrics.tsv", sep="\t")
    for task, metric in (("sex", "auc"), ("age", "mae")):
        for init in skill:
            where = f"task == '{task}' and init == '{init}' and fraction == 0.1"
            where += f" and split == 'test' and metric == '{metric}'"
            value = measured.query(where).iloc[0]
            where += " and versus == 'scratch' and versus_fraction == 1"
            versus = table.query(where).iloc[0]
            text = narrative.number(value["value"], metric, beside=value) + " "
            text += narrative.with_interval(versus, metric, signed=True)
            words = r"(perhaps |better with|worse with|with 10% not shown to be worse)[^)]*"
            assert re.search(f"{init} {words} {re.escape(text)}", shown)


def test_it_publishes_through_the_shared_stage(usual, tmp_path):
    values = EvaluateParams(reference="scratch", bootstraps=100)
    tasks = {"sex": TASKS["sex"]}
    names = {
        "ingest": "cohort",
        "preprocess": "volumes",
        "pretrain/simclr": "encoder",
        "finetune": "models",
    }
    stage.run(
        "evaluate",
        lambda work: evaluate(work, **usual.inputs, params=values, tasks=tasks, seed=0),
        to=stage.Destination(tmp_path / "evaluation"),
        params={"evaluate": values.model_dump(mode="json")},
        inputs={name: usual.root / folder for name, folder in names.items()},
    )
    record = json.loads((tmp_path / "evaluation/stage.json").read_text())
    assert list(record["contents"]) == ["metrics.json", "promotion.json"]
    assert record["summary"]["sex_auc_test_simclr"] > 0.5


def test_a_reference_that_was_not_trained_is_a_mistake_in_the_parameters(folders, tmp_path):
    with pytest.raises(UsageError, match=r"reference.*supervised.*simclr"):
        run(folders, tmp_path / "out", reference="supervised")


def test_a_prevalence_of_what_has_no_two_classes_is_a_mistake_in_the_parameters(folders, tmp_path):
    with pytest.raises(UsageError, match=r"prevalence: age is not.*alzheimers, stroke, sex"):
        run(folders, tmp_path / "out", prevalence={"age": 0.1})


def test_a_task_without_runs_is_a_mistake_in_the_parameters(folders, tmp_path):
    with pytest.raises(UsageError, match=r"runs\.tsv.*bmi"):
        run(folders, tmp_path / "out", tasks={**TASKS, "bmi": TASKS["age"]})
