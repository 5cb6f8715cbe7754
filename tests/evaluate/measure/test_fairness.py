from __future__ import annotations

import pandas as pd
import pytest

from neurofoundry.evaluate.measure import fairness
from neurofoundry.evaluate.measure.subgroups import SUBGROUPS
from neurofoundry.evaluate.rows import table_of
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """subgroups.tsv and fairness.tsv, of groups of 8 or more."""
    folder = tmp_path_factory.mktemp("fairness")
    tasks = {"age": TASKS["age"]}
    folders = write_inputs(folder / "in", scans_table(160), tasks=tasks)
    run(folders, folder / "out", tasks=tasks, min_subgroup=8)
    names = ("subgroups", "fairness")
    read = [pd.read_csv(folder / f"out/tables/{name}.tsv", sep="\t") for name in names]
    return read[0], read[1]


def test_gaps_are_between_the_groups_of_the_table(tables):
    groups, gaps = tables
    assert set(gaps["init"]) == {"simclr", "simclr-probe", "scratch", "frozen-random"}
    where = "init == 'simclr' and split == 'test' and variable == 'site'"
    own = groups.query(where).dropna(subset="value").set_index("group")["value"]
    gap = gaps.query(where).iloc[0]
    assert gap["groups"] == len(own) >= 2
    assert gap["observed"] == pytest.approx(own.max() - own.min())
    assert (gap["lowest"], gap["highest"]) == (own.idxmin(), own.idxmax())
    assert (gaps["low"] <= gaps["observed"]).all()
    assert (gaps["observed"] <= gaps["high"]).all()
    assert (gaps["value"] <= gaps["observed"]).all()


def planted(values: list[float], reach: float) -> pd.DataFrame:
    head = {"task": "stroke", "init": "simclr", "split": "test", "variable": "site"}
    rows = [
        {**head, "group": name, "value": v, "low": v - reach, "high": v + reach, "metric": "auc"}
        for name, v in zip("abcd", values, strict=False)
    ]
    return table_of(rows, SUBGROUPS)


def test_the_interval_reaches_zero_where_groups_could_be_alike(results):
    tasks = [each for each in results.tasks if each.name == "stroke"]
    alike = fairness.measure(tasks, planted([0.7, 0.75, 0.8], 0.08)).iloc[0]
    assert alike["low"] == 0
    apart = fairness.measure(tasks, planted([0.4, 0.75, 0.9], 0.08)).iloc[0]
    assert apart["low"] > 0.3
    assert fairness.measure(tasks, planted([0.7], 0.08)).empty
