"""evaluation/: the numbers of metrics.json, and the decision whether a model is promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, RootModel

from neurofoundry.contracts.documents import read_document, write_document
from neurofoundry.params import Section


class Score(Section):
    """A metric with its 95 % interval; null where it cannot be estimated, with the reason."""

    value: float | None
    low: float | None
    high: float | None
    seed_sd: float | None = None
    """Standard deviation over seeds."""
    reason: str | None = None


class Metrics(RootModel[dict[str, dict[str, dict[str, dict[str, dict[str, Score | int]]]]]]):
    """metrics.json: a score by task, initialization, fraction, split and metric.

    Beside the metrics of a split stand the numbers of its ``subjects`` and ``scans``.
    """


class Requirement(Section):
    """One requirement of a promotion rule: whether it is met, and why."""

    name: str
    met: bool
    reason: str


class Decision(Section):
    """promotion.json: whether a model is promoted, and the reasons in words."""

    promoted: bool
    reason: str
    rule: dict[str, Any] | None
    """evaluate.promotion of params.yaml."""
    difference: dict[str, float | None] | None
    """value, low, high of initialization − over."""
    conditions: tuple[Requirement, ...] = ()
    """All of them must be met."""


class PromotionRule(Section):
    """What of a promotion rule finds the model: the rest has served for the decision."""

    model_config = ConfigDict(extra="ignore")

    task: str
    initialization: str


def write_metrics(folder: Path, content: dict[str, Any]) -> None:
    """Write metrics.json."""
    write_document(folder / "metrics.json", content, Metrics)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json. Raises DataError."""
    document = read_document(
        folder / "metrics.json", Metrics, what="the metrics of an evaluation", remedy=AGAIN
    )
    content: dict[str, Any] = document.model_dump(mode="json", exclude_unset=True)
    return content


def write_decision(folder: Path, decision: Decision) -> None:
    """Write promotion.json."""
    write_document(folder / "promotion.json", decision, Decision)


def read_decision(folder: Path) -> Decision:
    """promotion.json of an evaluation. Raises DataError."""
    return read_document(
        folder / "promotion.json", Decision, what="a decision on promotion", remedy=AGAIN
    )


AGAIN = "Give the folder that `neurofoundry evaluate` wrote, or run it again"
