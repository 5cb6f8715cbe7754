"""Whether a model is promoted, by the rule that params.yaml declares beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neurofoundry.contracts.evaluation import Decision, Requirement
from neurofoundry.errors import UsageError
from neurofoundry.evaluate.measure import baselines
from neurofoundry.evaluate.measure.performance import Measured
from neurofoundry.evaluate.params import Promotion
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.rows import find_row
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import Task


def check(rule: Promotion, tasks: Mapping[str, Task], initializations: Sequence[str]) -> None:
    """Refuse a rule that can never be decided. Raises UsageError."""
    if rule.task not in tasks:
        raise UsageError(
            f"evaluate.promotion.task: '{rule.task}' is not one of the tasks ({', '.join(tasks)})."
        )
    task = tasks[rule.task]
    if rule.metric not in task.metric_names:
        raise UsageError(
            f"evaluate.promotion.metric: {rule.task} is a {task.kind} and has "
            f"{', '.join(task.metric_names)}, not '{rule.metric}'."
        )
    if rule.initialization not in initializations:
        raise UsageError(
            f"evaluate.promotion.initialization: '{rule.initialization}' is not one of "
            f"finetune.initializations ({', '.join(initializations)})."
        )
    if rule.max_calibration_error is not None and "ece" not in task.metric_names:
        raise UsageError(
            f"evaluate.promotion.max_calibration_error: {rule.task} is a {task.kind} and states no "
            "probabilities. Leave it out."
        )
    over = [name for name in initializations if name != rule.initialization] + [
        *baselines.names(task)
    ]
    if rule.over not in over:
        raise UsageError(f"evaluate.promotion.over: '{rule.over}' is not one of {', '.join(over)}.")


def decide(
    rule: Promotion | None,
    measured: Measured,
    fraction: float,
    *,
    sites: pd.DataFrame,
    encoder: str | None,
    champion: Requirement | None = None,
) -> Decision:
    """Decide on promotion: every requirement of the rule must be met.

    ``fraction`` is the share of the labels of the model that is promoted, ``sites`` the table of
    robustness.sites, ``encoder`` what the model starts from, ``champion`` what the comparison with
    the model that was promoted before requires.
    """
    if rule is None:
        return _decision(False, "params.yaml declares no rule (evaluate.promotion).", None)
    row = find_row(
        measured.differences,
        task=rule.task,
        init=rule.initialization,
        versus=rule.over,
        split=rule.split,
        metric=rule.metric,
        fraction=fraction,
    )
    if row is None or row["low"] is None:
        reason = row["reason"] if row else f"no model '{rule.initialization}' was made for it"
        return _decision(False, f"The rule cannot be decided: {reason}.", rule)
    requirements = [_better(rule, row), *([champion] if champion else [])]
    if rule.max_calibration_error is not None:
        requirements.append(_calibrated(rule, rule.max_calibration_error, measured, fraction))
    if rule.max_site_accuracy is not None:
        requirements.append(_site_blind(rule.max_site_accuracy, sites, encoder))
    return _decision(
        all(each.met for each in requirements),
        " ".join(each.reason for each in requirements),
        rule,
        difference={key: row[key] for key in ("value", "low", "high")},
        conditions=tuple(requirements),
    )


def _decision(
    promoted: bool,
    reason: str,
    rule: Promotion | None,
    *,
    difference: dict[str, float | None] | None = None,
    conditions: tuple[Requirement, ...] = (),
) -> Decision:
    return Decision(
        promoted=promoted,
        reason=reason,
        rule=rule.model_dump(mode="json", exclude={"champion"}) if rule else None,
        difference=difference,
        conditions=conditions,
    )


def _better(rule: Promotion, row: Mapping[str, Any]) -> Requirement:
    """Require the whole interval of the paired difference to be better than the margin."""
    met = (
        row["low"] > rule.margin
        if METRICS[rule.metric].higher_is_better
        else row["high"] < -rule.margin
    )
    difference = narrative.with_interval(row, rule.metric, signed=True)
    margin = f" by more than {rule.margin:g}" if rule.margin else ""
    reason = (
        f"{METRICS[rule.metric].title} of {rule.initialization} less that of "
        f"{narrative.plain(rule.over)} is {difference} on {rule.split}; the whole interval is "
        f"{'' if met else 'not '}better{margin}."
    )
    return Requirement(name="better", met=met, reason=reason)


def _calibrated(rule: Promotion, bound: float, measured: Measured, fraction: float) -> Requirement:
    row = find_row(
        measured.measures,
        task=rule.task,
        init=rule.initialization,
        split=rule.split,
        metric="ece",
        fraction=fraction,
    )
    what, absent = "Its calibration error", "it was not measured"
    return _bounded("calibrated", bound, row, "ece", what=what, absent=absent)


def _site_blind(bound: float, sites: pd.DataFrame, encoder: str | None) -> Requirement:
    row = find_row(sites, encoder=encoder)
    what = f"The balanced accuracy with which the site is read from the features of {encoder}"
    absent = "there are no features of its encoder"
    return _bounded("site", bound, row, "balanced_accuracy", what=what, absent=absent)


def _bounded(
    name: str, bound: float, row: Mapping[str, Any] | None, metric: str, *, what: str, absent: str
) -> Requirement:
    """Require a measure to be known, and not above its bound."""
    if row is None or row["value"] is None:
        why = row["reason"] if row else absent
        return Requirement(name=name, met=False, reason=f"{what} is not known: {why}.")
    met = row["value"] <= bound
    chance = f" (chance {row['chance']:.2f})" if "chance" in row else ""
    value = f"{narrative.with_interval(row, metric)}{chance}"
    reason = f"{what} is {value}, {'within' if met else 'above'} the bound of {bound:g}."
    return Requirement(name=name, met=met, reason=reason)
