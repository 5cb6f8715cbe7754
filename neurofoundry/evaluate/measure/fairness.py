"""The largest gap between groups of the tested persons, and what of it chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.rows import table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.groups import Gap, largest_gap
from neurofoundry.tasks.base import BASELINE

FAIRNESS = [
    *("task", "init", "split", "variable", "metric", "groups", "lowest", "highest", "observed"),
    *("by_chance", "value", "low", "high"),
]


def measure(tasks: Sequence[Evidence], subgroups: pd.DataFrame) -> pd.DataFrame:
    """FAIRNESS: a row a task, initialization, split and variable with two groups or more in
    SUBGROUPS that have numbers: the largest gap in the primary metric, see `stats.groups.Gap`.

    Groups count as independent, which a person of two sites is not.
    """
    known = subgroups.dropna(subset=["value", "low"])
    known = known[~known["init"].astype(str).str.startswith(BASELINE)]
    metrics = {each.name: each.task.primary for each in tasks}
    rows: list[dict[str, object]] = []
    for keys, groups in known.groupby(["task", "init", "split", "variable"], sort=False):
        if len(groups) > 1:
            metric = metrics[str(keys[0])]
            found = _gap(groups, metric)
            head = dict(zip(("task", "init", "split", "variable"), keys, strict=True))
            names = groups["group"].to_list()
            rows.append(
                {
                    **head,
                    "metric": metric,
                    "groups": len(groups),
                    "lowest": names[found.lowest],
                    "highest": names[found.highest],
                    **{key: getattr(found, key) for key in FAIRNESS[8:]},
                }
            )
    return table_of(rows, FAIRNESS)


def _gap(groups: pd.DataFrame, metric: str) -> Gap:
    estimates = [tuple(row) for row in groups[["value", "low", "high"]].to_numpy(float)]
    return largest_gap([each[0] for each in estimates], partial(_ends, estimates, metric))


def _ends(
    estimates: Sequence[tuple[float, float, float]], metric: str, quantile: float
) -> list[tuple[float, float]]:
    return [intervals.stretched(*each, metric, quantile) for each in estimates]
