"""Broken inputs end in a message that names the file and the problem."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from neurofoundry.errors import DataError, UsageError
from tests.evaluate.conftest import TASKS, Folders, run


@pytest.fixture
def folders(usual: Folders, tmp_path: Path) -> Folders:
    """A copy that may be broken."""
    shutil.copytree(usual.root, tmp_path / "in")
    return Folders(tmp_path / "in")


def fails(folders: Folders, tmp_path: Path, *words: str, error: type = DataError) -> None:
    with pytest.raises(error) as caught:
        run(folders, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)


def test_a_prediction_that_is_not_a_number_names_the_file(folders, tmp_path):
    path = folders.predictions("alzheimers", "simclr")
    folders.edit(path, lambda t: t.assign(p_AD=["nan", *t["p_AD"][1:]]))
    fails(folders, tmp_path, str(path), "1 of", "not numbers", "Training has diverged")


def test_a_missing_prediction_of_a_regression_names_the_file(folders, tmp_path):
    path = folders.predictions("age", "scratch")
    folders.edit(path, lambda t: t.assign(output=["n/a", "inf", *t["output"][2:]]))
    fails(folders, tmp_path, str(path), "2 of")


def test_a_missing_output_of_a_training_scan_names_the_file(folders, tmp_path):
    path = folders.predictions("age", "scratch").with_name("fitted.tsv")
    folders.edit(path, lambda t: t.assign(output=["n/a", *t["output"][1:]]))
    fails(folders, tmp_path, str(path), "output")


def test_probabilities_must_sum_to_one(folders, tmp_path):
    path = folders.predictions("sex", "simclr")
    folders.edit(path, lambda t: t.assign(p_F="0.9", p_M="0.9"))
    fails(folders, tmp_path, str(path), "sum to 1")


def test_models_of_other_classes_are_refused(folders, tmp_path):
    path = folders.predictions("alzheimers", "simclr")
    folders.edit(path, lambda t: t.rename(columns={"p_AD": "p_MCI"}))
    fails(folders, tmp_path, str(path), "p_AD", "run finetune again")


def test_a_model_may_not_leave_out_scans(folders, tmp_path):
    path = folders.predictions("stroke", "simclr")
    folders.edit(path, lambda t: t.iloc[1:])
    fails(folders, tmp_path, str(path), "1 of these are missing", "same scans")


@pytest.mark.parametrize(
    ("column", "value"), [("person", "clinic/sub-9999"), ("split", "ood"), ("label", "n/a")]
)
def test_a_person_split_or_label_of_another_cohort_is_refused(folders, tmp_path, column, value):
    path = folders.predictions("alzheimers", "simclr")
    folders.edit(path, lambda t: t.assign(**{column: [value, *t[column][1:]]}))
    fails(folders, tmp_path, str(path), column)


def test_a_split_that_nobody_knows_breaks_the_contract(folders, tmp_path):
    path = folders.predictions("alzheimers", "simclr")
    folders.edit(path, lambda t: t.assign(split="train"))
    fails(folders, tmp_path, str(path), "split", "train")


def test_a_run_said_to_be_done_must_have_predictions(folders, tmp_path):
    path = folders.predictions("age", "simclr")
    path.unlink()
    fails(folders, tmp_path, str(path))


def test_a_run_may_stand_only_once(folders, tmp_path):
    path = folders.root / "models/runs.tsv"
    folders.edit(path, lambda t: t.iloc[[0, *range(len(t))]])
    fails(folders, tmp_path, str(path))


def test_an_initialization_may_not_be_called_like_a_floor(folders, tmp_path):
    path = folders.root / "models/runs.tsv"
    folders.edit(path, lambda t: t.replace({"init": {"simclr": "floor-mean"}}))
    fails(folders, tmp_path, "floor-mean", "Name the initialization differently")


def test_volumes_of_another_cohort_are_refused(folders, tmp_path):
    folders.edit(folders.root / "volumes/scans.tsv", lambda t: t.iloc[1:])
    fails(folders, tmp_path, "volumes/scans.tsv", "Run preprocess again")


def test_a_test_subject_that_was_pretrained_on_fails_the_run(folders, tmp_path):
    def add(table):
        return table.assign(person=["clinic-external/sub-0003", *table["person"][1:]])

    folders.edit(folders.root / "encoder/subjects.tsv", add)
    fails(folders, tmp_path, "Leakage", "clinic-external/sub-0003")


def test_a_test_image_that_was_pretrained_on_under_another_name_fails_the_run(folders, tmp_path):
    scans = pd.read_csv(folders.root / "cohort/scans.tsv", sep="\t").query("split == 'test'")
    scans[["sha256"]][:1].to_csv(folders.root / "encoder/images.tsv", sep="\t", index=False)
    fails(folders, tmp_path, "Leakage", scans["scan_id"].iloc[0], "under this or another name")


def test_a_broken_stage_record_names_the_file(folders, tmp_path):
    path = folders.root / "models/stage.json"
    path.write_text("[1]")
    fails(folders, tmp_path, str(path), "expected an object")


def test_a_baseline_that_was_not_trained_is_a_mistake_in_the_parameters(folders, tmp_path):
    with pytest.raises(UsageError, match=r"baseline.*supervised.*simclr"):
        run(folders, tmp_path / "out", baseline="supervised")


def test_a_task_without_runs_is_a_mistake_in_the_parameters(folders, tmp_path):
    with pytest.raises(UsageError, match=r"runs\.tsv.*bmi"):
        run(folders, tmp_path / "out", tasks={**TASKS, "bmi": TASKS["age"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "bmi"}, r"promotion\.task: 'bmi'"),
        ({"metric": "mae"}, r"promotion\.metric: alzheimers is a classification"),
        ({"initialization": "dino"}, r"promotion\.initialization: 'dino'"),
        ({"over": "floor-mean"}, r"promotion\.over: 'floor-mean'.*floor-prevalence"),
        ({"over": "simclr"}, r"promotion\.over: 'simclr'"),
    ],
)
def test_a_promotion_rule_that_cannot_be_decided_is_refused(folders, tmp_path, change, message):
    rule = {"task": "alzheimers", "initialization": "simclr", "metric": "auc", "over": "scratch"}
    with pytest.raises(UsageError, match=message):
        run(folders, tmp_path / "out", promotion=rule | change)


def test_records_may_lack_what_only_people_read(folders, tmp_path):
    for name in ("cohort", "encoder"):
        (folders.root / name / "stage.json").unlink()
    (folders.root / "models/stage.json").write_text(json.dumps({"params": None}))
    (folders.root / "encoder/views.png").unlink()
    for picture in (folders.root / "volumes").glob("*.png"):
        picture.unlink()
    run(folders, tmp_path / "out", tasks={"sex": TASKS["sex"]})
    assert "No pictures were left" in (tmp_path / "out/report.html").read_text()
