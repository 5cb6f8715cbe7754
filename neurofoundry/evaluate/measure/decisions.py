"""What a call means for a person: the threshold behind it, how often it is right, likelihood
ratios, and predictive values at a prevalence that is declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure.performance import Measured, thresholds_of
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, find_row, table_of
from neurofoundry.stats.comparisons import ratio
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values

DECISIONS = [
    *("task", "init", "split", "measure", "prevalence", "value", "low", "high", "reason"),
    "threshold_from",
]

YOUDEN = "the largest sensitivity + specificity in validation"


def measure(
    tasks: Sequence[Evidence], measured: Measured, *, params: EvaluateParams
) -> pd.DataFrame:
    """DECISIONS: a row a two-class task, initialization with all labels, split and measure.

    ``threshold`` is the mean over seeds. The others follow from sensitivity and specificity, with
    their intervals, at it; predictive values at the declared prevalence.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        if len(evidence.task.classes) == 2:
            prevalence = params.prevalence.get(evidence.name)
            thresholds = thresholds_of(evidence)
            for model in evidence.trained:
                for split in evidence.splits:
                    head = {"task": evidence.name, "init": model.name, "split": split}
                    threshold = _threshold(thresholds[model])
                    row = {"measure": "threshold", "threshold_from": YOUDEN, **cells(threshold)}
                    rows.append({**head, **row})
                    for name, estimate in _of_calls(evidence, model, split, measured, prevalence):
                        at = prevalence if "predictive" in name else None
                        row = {"measure": name, "prevalence": at, **cells(estimate)}
                        rows.append({**head, **row})
    return table_of(rows, DECISIONS)


def _threshold(by_seed: Sequence[Values | None]) -> Estimate:
    """Return the mean over seeds, and over the folds of a cross-validation."""
    known = [float(np.unique(each).mean()) for each in by_seed if each is not None]
    if not known or len(known) < len(by_seed):
        return Estimate(None, None, None, "validation gives no threshold")
    return Estimate(float(np.mean(known)), None, None)


def _of_calls(
    evidence: Evidence, model: Model, split: str, measured: Measured, prevalence: float | None
) -> list[tuple[str, Estimate]]:
    where = {"task": evidence.name, "init": model.name, "fraction": model.fraction, "split": split}
    found, missed = (
        _share(find_row(measured.measures, metric=name, **where))
        for name in ("sensitivity", "specificity")
    )
    return [
        ("sensitivity", found),
        ("specificity", missed),
        ("likelihood_ratio_positive", ratio(found, _other(missed))),
        ("likelihood_ratio_negative", ratio(_other(found), missed)),
        ("positive_predictive_value", _other(_wrong(ratio(_other(missed), found), prevalence, -1))),
        ("negative_predictive_value", _other(_wrong(ratio(_other(found), missed), prevalence, 1))),
    ]


def _share(row: Mapping[str, float | str | None] | None) -> Estimate:
    if row is None or row["value"] is None:
        return Estimate(None, None, None, str(row["reason"]) if row else "no model was made")
    value, low, high = (float(str(row[name])) for name in ("value", "low", "high"))
    return Estimate(value, low, high)


def _other(share: Estimate) -> Estimate:
    """Return one minus a share."""
    if share.value is None or share.low is None or share.high is None:
        return share
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low)


def _wrong(unlikely: Estimate, prevalence: float | None, side: int) -> Estimate:
    """Return the probability that a call is wrong, by Bayes' rule in odds.

    ``unlikely`` is how much less often those whom it is wrong about are called so than those whom
    it is right about; ``side`` is 1 where the ill are the former, -1 where the healthy are.
    """
    if prevalence is None:
        return Estimate(None, None, None, "evaluate.prevalence declares none for this task")
    if unlikely.value is None or unlikely.low is None or unlikely.high is None:
        return unlikely
    before = (prevalence / (1 - prevalence)) ** side
    value, low, high = (
        before * each / (1 + before * each)
        for each in (unlikely.value, unlikely.low, unlikely.high)
    )
    return Estimate(value, low, high)
