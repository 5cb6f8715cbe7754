"""What a call means for a person: the threshold behind it, likelihood ratios, and predictive values
at a prevalence that is declared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special

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
    their intervals, at it.
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
    positive, negative = ratio(found, _other(missed)), ratio(_other(found), missed)
    return [
        ("likelihood_ratio_positive", positive),
        ("likelihood_ratio_negative", negative),
        ("positive_predictive_value", _given(positive, prevalence)),
        ("negative_predictive_value", _other(_given(negative, prevalence))),
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


def _given(likelihood: Estimate, prevalence: float | None) -> Estimate:
    """Return the probability of the condition after a call, by Bayes' rule in odds."""
    if prevalence is None:
        return Estimate(None, None, None, "evaluate.prevalence declares none for this task")
    if likelihood.value is None or likelihood.low is None or likelihood.high is None:
        return likelihood
    before = float(special.logit(prevalence))
    value, low, high = (
        float(special.expit(before + math.log(each)))
        for each in (likelihood.value, likelihood.low, likelihood.high)
    )
    return Estimate(value, low, high)
