"""The model that was promoted before, and the one that is to be: on the same scans, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neurofoundry.contracts.evaluation import PromotionRule, Requirement, read_decision
from neurofoundry.errors import DataError
from neurofoundry.evaluate import compare, predictions
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.params import EvaluateParams, Promotion
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.rows import find_row, table_of
from neurofoundry.runtime.store import recorded_key
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import Task

MODEL = "model"
"""What both are called when they are paired: they may start from different weights."""


def fingerprint(rule: Promotion | None) -> dict[str, Any]:
    """Return by which evaluation the champion is known, for the key of the stage."""
    if rule is None or rule.champion is None:
        return {}
    if (key := recorded_key(rule.champion)) is None:
        raise DataError(
            f"{rule.champion}: no evaluation (no stage.json). Give the one of the model that was "
            "promoted before, as `dvc get . evaluation --rev RELEASE --out release` brings it "
            "back, or remove evaluate.promotion.champion."
        )
    return {"champion": key}


def judge(
    rule: Promotion, champion: Path, evidence: Evidence, *, params: EvaluateParams, seed: int
) -> Requirement:
    """Require that the model of the rule is better than the champion, by the whole interval.

    Raises DataError where they cannot be paired: other scans, persons or labels.
    """
    earlier = read(champion, rule, evidence.task)
    first, second = (
        compare.Evaluation(letter, title, {rule.task: compare.tested(each)}, params, seed, {})
        for letter, title, each in (
            ("A", "the champion", earlier),
            ("B", "this evaluation", _alone(_as_kept(evidence), rule.initialization)),
        )
    )
    compare.check(first, [second], [rule.task])
    tested = [(each.letter, each.tasks[rule.task]) for each in (first, second)]
    _, rows = compare.compare_task(tested, first)
    table = table_of(rows, compare.DIFFERENCES)
    return _say(rule, find_row(table, split=rule.split, metric=rule.metric))


def read(folder: Path, rule: Promotion, task: Task) -> Evidence:
    """Read what the promoted model of an earlier evaluation says of the scans. Raises DataError."""
    decision = read_decision(folder)
    if not decision.promoted or decision.rule is None:
        raise DataError(f"{folder}: promotes no model, so none is the champion.")
    theirs = PromotionRule.model_validate(decision.rule)
    if theirs.task != rule.task:
        raise DataError(f"{folder}: promotes a model of '{theirs.task}', not of '{rule.task}'.")
    return _alone(predictions.read(folder / "predictions", rule.task, task), theirs.initialization)


def _as_kept(evidence: Evidence) -> Evidence:
    """Return evidence with scans and persons as in the files of evaluations, to be matched."""
    with TemporaryDirectory() as folder:
        predictions.write(Path(folder), evidence)
        return predictions.read(Path(folder), evidence.name, evidence.task)


def _alone(evidence: Evidence, init: str) -> Evidence:
    models = [model for model in evidence.trained if model.name == init]
    return replace(
        evidence, models=tuple(replace(model, name=MODEL, fraction=1.0) for model in models)
    )


def _say(rule: Promotion, row: Mapping[str, Any] | None) -> Requirement:
    what = f"{METRICS[rule.metric].title} less that of the model that was promoted before"
    if row is None or row["low"] is None:
        why = row["reason"] if row else "one of the two has no predictions"
        return Requirement(name="champion", met=False, reason=f"{what} is not known: {why}.")
    higher = METRICS[rule.metric].higher_is_better
    wins = row["low"] > 0 if higher else row["high"] < 0
    loses = row["high"] < 0 if higher else row["low"] > 0
    verdict = "it wins" if wins else "the earlier one wins" if loses else "neither wins"
    difference = narrative.with_interval(row, rule.metric, signed=True)
    reason = f"{what} is {difference} on {rule.split}, on the same scans: {verdict}."
    return Requirement(name="champion", met=wins, reason=reason)
