from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import subgroups
from neurofoundry.evaluate.params import EvaluateParams
from tests.evaluate.conftest import SKILL, TASKS, run, scans_table, write_inputs


@pytest.fixture(scope="module")
def table(usual, evaluated):
    return pd.read_csv(evaluated.dir / "tables/subgroups.tsv", sep="\t")


def test_values_are_those_of_scikit_learn_within_the_group(usual, table):
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t").set_index("scan_id")
    predictions = pd.read_csv(usual.predictions("stroke", "simclr"), sep="\t").query(
        "split == 'ood'"
    )
    for sex in ("F", "M"):
        part = predictions[scans.loc[predictions["scan_id"], "sex"].to_numpy() == sex]
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


def test_baselines_stand_beside_the_models(usual, table):
    rows = table.query("split == 'ood' and variable == 'sex' and group == 'F'")
    for task, constant in (("stroke", "baseline-prevalence"), ("age", "baseline-mean")):
        part = rows[rows["task"] == task].set_index("init")
        assert {*SKILL, constant, "baseline-morphometry"} < set(part.index)
        assert part["subjects"].nunique() == 1
    assert rows.query("init == 'baseline-prevalence' and task == 'stroke'")["value"].item() == 0.5
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t").query("usable")
    mean = scans.loc[scans["split"] == "train", "age"].mean()
    women = scans.query("split == 'ood' and sex == 'F'")
    off = (women["age"] - mean).abs().mean()
    assert rows.query("init == 'baseline-mean'")["value"].item() == pytest.approx(off)


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


def groups_of(women: int, *, ill: int) -> pd.DataFrame:
    """Subgroups by sex of a test set with ``women``, of whom ``ill`` are ill, and as many men; two
    scans a person, which do not count twice."""
    persons = np.arange(2 * women).repeat(2)
    scans = pd.DataFrame(
        {
            "person": persons,
            "split": "test",
            "sex": np.where(persons < women, "F", "M"),
            "age": 50.0,
            "site": "alder",
            "scanner": "X",
        }
    )
    targets = (persons % women < ill).astype(float)
    p = np.random.default_rng(0).random(len(scans))
    model = Model("m", 1.0, (0,), np.stack([1 - p, p], axis=1)[None])
    evidence = Evidence("stroke", TASKS["stroke"], scans, targets, (model,))
    params = EvaluateParams(reference="m", min_subgroup=20, min_subjects=5)
    return subgroups.measure([evidence], params=params).set_index("group")


def test_a_group_of_exactly_the_minimum_has_a_number_and_one_of_fewer_has_none():
    enough, few = groups_of(20, ill=10).loc["F"], groups_of(19, ill=10).loc["F"]
    assert enough["low"] < enough["value"] < enough["high"]
    assert enough["subjects"] == 20
    assert np.isnan(few[["value", "subjects"]].astype(float)).all()
    assert few["reason"] == "fewer than 20 subjects"


@pytest.mark.parametrize("ill", [5, 15])
def test_a_class_of_exactly_the_minimum_is_enough_and_one_of_fewer_is_not(ill):
    fewer = ill - 1 if ill == 5 else ill + 1  # of the ill, or of the healthy
    enough, few = groups_of(20, ill=ill).loc["F"], groups_of(20, ill=fewer).loc["F"]
    assert enough["low"] < enough["value"] < enough["high"]
    assert np.isnan(few["value"])
    assert few["subjects"] == 20
    assert few["reason"] == "fewer than 5 subjects of a class"
