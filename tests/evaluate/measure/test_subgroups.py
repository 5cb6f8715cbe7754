from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from tests.evaluate.conftest import SKILL, TASKS, run, scans_table, write_inputs


@pytest.fixture(scope="module")
def table(usual, evaluated):
    return pd.read_csv(evaluated.dir / "tables/subgroups.tsv", sep="\t")


def test_values_are_those_of_scikit_learn_within_the_group(usual, table):
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t").set_index("scan_id")
    said = pd.read_csv(usual.predictions("stroke", "simclr"), sep="\t").query("split == 'ood'")
    for sex in ("F", "M"):
        part = said[scans.loc[said["scan_id"], "sex"].to_numpy() == sex]
        row = table.query(
            "task == 'stroke' and init == 'simclr' and split == 'ood' and variable == 'sex' "
            f"and group == '{sex}'"
        ).iloc[0]
        assert row["subjects"] == part["person"].nunique()
        assert row["value"] == pytest.approx(
            sk.roc_auc_score(part["label"] == "yes", part["p_yes"])
        )
        assert row["low"] < row["value"] < row["high"]


def test_every_variable_is_there_and_what_a_task_predicts_is_no_group_of_it(table):
    assert set(table["variable"]) == {"sex", "age", "site"}  # there is one scanner, one ood site
    assert "sex" not in set(table[table["task"] == "sex"]["variable"])
    assert set(table[table["variable"] == "age"]["group"]) == {"40–59", "60–79", "80–120"}


def test_floors_stand_beside_the_models(usual, table):
    rows = table.query("split == 'ood' and variable == 'sex' and group == 'F'")
    for task, constant in (("stroke", "floor-prevalence"), ("age", "floor-mean")):
        part = rows[rows["task"] == task].set_index("init")
        assert {*SKILL, constant, "floor-morphometry"} < set(part.index)
        assert part["subjects"].nunique() == 1
    assert rows.query("init == 'floor-prevalence' and task == 'stroke'")["value"].item() == 0.5
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t").query("usable")
    mean = scans.loc[scans["split"] == "train", "age"].mean()
    women = scans.query("split == 'ood' and sex == 'F'")
    off = (women["age"] - mean).abs().mean()
    assert rows.query("init == 'floor-mean'")["value"].item() == pytest.approx(off)


def test_groups_of_fewer_than_twenty_have_neither_a_number_nor_a_count(table):
    few = table[table["reason"].fillna("").str.startswith("fewer than 20")]
    assert len(few)
    assert few[["value", "low", "high", "subjects"]].isna().all(axis=None)
    assert (table["subjects"].dropna() >= 20).all()


def test_a_group_with_too_few_of_a_class_says_so(tmp_path):
    scans = scans_table(160)
    women = scans["sex"] == "F"
    scans = scans.assign(stroke=np.where(women, "no", scans["stroke"]))
    tasks = {"stroke": TASKS["stroke"]}
    folders = write_inputs(tmp_path / "in", scans, tasks=tasks, skill={"scratch": (1.0, 1.0)})
    run(folders, tmp_path / "out", tasks=tasks, min_subgroup=5)
    table = pd.read_csv(tmp_path / "out/tables/subgroups.tsv", sep="\t")
    row = table.query("group == 'F' and split == 'test'").iloc[0]
    assert row["reason"] == "fewer than 5 subjects of a class"
    assert np.isnan(row["value"])
