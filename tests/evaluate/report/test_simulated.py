from __future__ import annotations

import re

from neurofoundry.evaluate.report import simulated

PLANTED = """Cohorts whose 95 % interval holds the truth, %:

| persons | model | auc | f1 |
|---|---|---|---|
| 8 + 8 | good | 96.5 | 91.2 |
| 30 + 12 | poor | 99.1 | – |
| 35 + 35 | poor | 50.0 | 51.0 |

| persons | model | mae |
|---|---|---|
| 16 | good | 93.0 |

Cohorts in which equals differ with p < 0.05, %:

| persons | model | auc |
|---|---|---|
| 8 + 8 | good | 1.0 |
"""


def test_the_range_is_that_of_the_metrics_and_of_cohorts_as_small(tmp_path):
    table = tmp_path / "coverage.md"
    table.write_text(PLANTED)
    assert simulated.coverage(["auc"], 20, table) == (96.5, 99.1)
    assert simulated.coverage(["auc", "f1"], 20, table) == (91.2, 99.1)
    assert simulated.coverage(["auc"], 100, table) == (50.0, 99.1)
    assert simulated.coverage(["mae"], 20, table) == (93.0, 93.0)
    assert simulated.coverage(["rmse"], 20, table) is None


def test_the_table_of_the_package_has_every_metric_of_a_task_and_is_that_of_the_benchmark():
    text = simulated.TABLE.read_text()
    assert re.match(r"Written by `python benchmarks/coverage.py \d+ \d+`", text)
    for metric in ("auc", "sensitivity", "f1", "brier", "ece", "mae", "rmse", "r2", "correlation"):
        low, high = simulated.coverage([metric], 20) or (0, 0)
        assert 90 <= low <= high <= 100
