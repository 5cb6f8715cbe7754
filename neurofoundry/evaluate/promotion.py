"""Whether a model is promoted, by the rule that params.yaml declared beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neurofoundry.cohort import Task
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import floors, words
from neurofoundry.evaluate.measures import Measured, metric_names
from neurofoundry.evaluate.params import Promotion
from neurofoundry.metrics import METRICS


@dataclass(frozen=True)
class Decision:
    """The decision and its reason in words."""

    promoted: bool
    reason: str
    rule: Promotion | None
    difference: Mapping[str, float | None] | None
    """value, low, high of initialization − over."""


def check(rule: Promotion, tasks: Mapping[str, Task], initializations: Sequence[str]) -> None:
    """Refuse a rule that can never be decided. Raises UsageError."""
    if rule.task not in tasks:
        raise UsageError(
            f"evaluate.promotion.task: '{rule.task}' is not one of the tasks ({', '.join(tasks)})."
        )
    task = tasks[rule.task]
    if rule.metric not in metric_names(task):
        raise UsageError(
            f"evaluate.promotion.metric: {rule.task} is a {task.kind} and has "
            f"{', '.join(metric_names(task))}, not '{rule.metric}'."
        )
    if rule.initialization not in initializations:
        raise UsageError(
            f"evaluate.promotion.initialization: '{rule.initialization}' is not one of "
            f"finetune.initializations ({', '.join(initializations)})."
        )
    over = [name for name in initializations if name != rule.initialization] + [*floors.names(task)]
    if rule.over not in over:
        raise UsageError(f"evaluate.promotion.over: '{rule.over}' is not one of {', '.join(over)}.")


def decide(rule: Promotion | None, measured: Measured, fraction: float) -> Decision:
    """Promoted only if the whole interval of the paired difference is better than the margin."""
    if rule is None:
        return Decision(False, "params.yaml declares no rule (evaluate.promotion).", None, None)
    row = words.find(
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
        return Decision(False, f"The rule cannot be decided: {reason}.", rule, None)
    promoted = (
        row["low"] > rule.margin
        if METRICS[rule.metric].higher_is_better
        else row["high"] < -rule.margin
    )
    found = words.with_interval(row, rule.metric, signed=True)
    margin = f" by more than {rule.margin:g}" if rule.margin else ""
    reason = (
        f"{METRICS[rule.metric].title} of {rule.initialization} less that of "
        f"{words.plain(rule.over)} is {found} on {rule.split}; the whole interval is "
        f"{'' if promoted else 'not '}better{margin}."
    )
    return Decision(promoted, reason, rule, {key: row[key] for key in ("value", "low", "high")})
