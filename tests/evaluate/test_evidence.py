"""Broken predictions end in a message that names the file and the problem."""

from __future__ import annotations

import pytest

from tests.evaluate.conftest import fails


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


def test_an_initialization_may_not_be_called_like_a_baseline(folders, tmp_path):
    path = folders.root / "models/runs.tsv"
    folders.edit(path, lambda t: t.replace({"init": {"simclr": "baseline-mean"}}))
    fails(folders, tmp_path, "baseline-mean", "Name the initialization differently")
