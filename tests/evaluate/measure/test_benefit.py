from __future__ import annotations

import pandas as pd
import pytest

from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs


def test_curves_are_at_the_prevalence_of_the_tested_persons(usual, evaluated):
    table = pd.read_csv(evaluated.dir / "tables/benefit.tsv", sep="\t")
    assert set(table["task"]) == {"alzheimers", "stroke", "sex"}
    predictions = pd.read_csv(usual.predictions("stroke", "simclr"), sep="\t").query(
        "split == 'test'"
    )
    ill = predictions["label"] == "yes"
    by_person = predictions.assign(ill=ill).groupby("person")["ill"].max()
    part = table.query("task == 'stroke' and init == 'simclr' and split == 'test'")
    row = part[(part["threshold"] - 0.3).abs() < 1e-6].iloc[0]
    assert row["prevalence"] == pytest.approx(by_person.mean())
    found, alarms = ((predictions["p_yes"][who] >= 0.3).mean() for who in (ill, ~ill))
    share = by_person.mean()
    expected = share * found - (1 - share) * alarms * 3 / 7
    assert row["value"] == pytest.approx(expected)
    assert row["treat_all"] == pytest.approx(share - (1 - share) * 3 / 7)
    assert (part["low"] <= part["value"]).all()
    assert (part["value"] <= part["high"]).all()


def test_a_declared_prevalence_is_that_of_the_curve(tmp_path):
    tasks = {"sex": TASKS["sex"]}
    folders = write_inputs(tmp_path / "in", scans_table(120), tasks=tasks)
    run(folders, tmp_path / "out", tasks=tasks, prevalence={"sex": 0.05})
    table = pd.read_csv(tmp_path / "out/tables/benefit.tsv", sep="\t")
    assert set(table["prevalence"]) == {0.05}
    assert table["value"].max() <= 0.05
