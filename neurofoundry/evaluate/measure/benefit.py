"""Whether to act on what a model states does more good than to treat everybody, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.measure.performance import (
    persons_per_class,
    persons_to_count,
    shortage,
)
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import ENDS, table_of
from neurofoundry.stats.benefit import THRESHOLDS, Benefit, net_benefit, useful

BENEFIT = ["task", "init", "split", "prevalence", "threshold", "value", "low", "high", "treat_all"]
USEFUL = ["task", "init", "split", "prevalence", "declared", "from", "to"]


def measure(
    tasks: Sequence[Evidence], *, params: EvaluateParams
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """BENEFIT: net benefit of the risks as the models state them, a row a threshold; and USEFUL,
    the thresholds for which it is shown to be better than treating everybody and nobody.

    Of two-class tasks, every initialization with all labels, on test and ood; at the prevalence
    that is declared, else at that of the tested persons, which is taken as known.
    """
    curves: list[pd.DataFrame] = []
    ranges: list[dict[str, object]] = []
    for evidence in tasks:
        for split in evidence.splits if len(evidence.task.classes) == 2 else ():
            if shortage(evidence, split, min_subjects=params.min_subjects):
                continue
            declared = params.prevalence.get(evidence.name)
            prevalence = declared or prevalence_of(evidence, split)
            head: dict[str, Any] = {"task": evidence.name, "split": split}
            head["prevalence"] = prevalence
            for name, found in _of_models(evidence, split, prevalence).items():
                shown = useful(found)
                ends = dict(zip(("from", "to"), shown or (None, None), strict=True))
                ranges.append({**head, "init": name, "declared": declared is not None, **ends})
                columns = {key: getattr(found, key) for key in ENDS}
                table = pd.DataFrame({"threshold": THRESHOLDS, **columns})
                table = table.assign(treat_all=found.treat_all, init=name, **head)
                curves.append(table[BENEFIT])
    whole = pd.concat(curves, ignore_index=True) if curves else table_of([], BENEFIT)
    return whole, table_of(ranges, USEFUL)


def prevalence_of(evidence: Evidence, split: str) -> float:
    """Return the share of the persons of a split who have the class of interest."""
    healthy, ill = persons_per_class(evidence, split)
    return ill / (healthy + ill)


def _of_models(evidence: Evidence, split: str, prevalence: float) -> dict[str, Benefit]:
    rows = evidence.inside(split)
    counts = persons_to_count(evidence, split)
    return {
        model.name: net_benefit(
            evidence.targets[rows] == 1,
            model.outputs[:, rows, 1],
            evidence.persons[rows],
            counts,
            prevalence,
            widening=evidence.widening(split),
        )
        for model in evidence.trained
        if model.seeds
    }
