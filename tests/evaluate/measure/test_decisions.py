from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """metrics.tsv and decisions.tsv of a task with a declared prevalence."""
    folder = tmp_path_factory.mktemp("decisions")
    tasks = {"sex": TASKS["sex"]}
    folders = write_inputs(folder / "in", scans_table(160), tasks=tasks)
    run(folders, folder / "out", tasks=tasks, prevalence={"sex": 0.1})
    read = [pd.read_csv(folder / f"out/tables/{n}.tsv", sep="\t") for n in ("metrics", "decisions")]
    return read[0], read[1]


def test_predictive_values_are_those_of_bayes_rule_for_a_thousand_people(tables):
    metrics, decisions = tables
    where = "init == 'scratch' and split == 'test'"
    known = metrics.query(f"{where} and fraction == 1").set_index("metric")["value"]
    found = decisions.query(where).set_index("measure")
    ill, well = 100, 900
    hits, alarms = ill * known["sensitivity"], well * (1 - known["specificity"])
    assert found.loc["positive_predictive_value", "value"] == pytest.approx(hits / (hits + alarms))
    cleared, missed = well * known["specificity"], ill * (1 - known["sensitivity"])
    assert found.loc["negative_predictive_value", "value"] == pytest.approx(
        cleared / (cleared + missed)
    )
    assert found.loc["likelihood_ratio_positive", "value"] == pytest.approx(
        (hits / ill) / (alarms / well)
    )
    assert found.loc["positive_predictive_value", "prevalence"] == 0.1


def test_every_number_lies_in_its_interval_and_the_threshold_says_where_it_is_from(tables):
    decisions = tables[1]
    inside = decisions.dropna(subset="low")
    assert len(inside)
    assert (inside["low"] <= inside["value"]).all()
    assert (inside["value"] <= inside["high"]).all()
    thresholds = decisions.query("measure == 'threshold'")
    assert set(thresholds["threshold_from"]) == {
        "the largest sensitivity + specificity in validation"
    }
    assert np.isfinite(thresholds["value"]).all()


def test_without_a_declared_prevalence_there_is_a_reason(evaluated):
    table = pd.read_csv(evaluated.dir / "tables/decisions.tsv", sep="\t")
    values = table[table["measure"].str.contains("predictive")]
    assert values["value"].isna().all()
    assert values["reason"].str.contains("evaluate.prevalence|zero in this sample").all()
