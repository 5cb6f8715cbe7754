"""evaluation/: the numbers of metrics.json and headline.json, and whether a model is promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, RootModel

from neurofoundry.contracts.documents import read_document, write_document
from neurofoundry.params import Section

REMEDY = "Give the folder that `neurofoundry evaluate` wrote, or run it again"


class Score(Section):
    """A metric with its 95 % interval; null with the ``reason`` if it cannot be estimated."""

    value: float | None
    low: float | None
    high: float | None
    seed_sd: float | None = None
    """Standard deviation across seeds."""
    reason: str | None = None


class Metrics(RootModel[dict[str, dict[str, dict[str, dict[str, dict[str, Score | int]]]]]]):
    """metrics.json: a score per task, initialization, fraction, split and metric.

    Each split also has its numbers of ``subjects`` and ``scans``.
    """


class Headline(RootModel[dict[str, float]]):
    """headline.json: the primary metric of every task on test, of the initialization that stands
    for the run; tasks for which it cannot be estimated are left out."""


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
    """The requirements; all must be met."""


class PromotionRule(Section):
    """The fields of a promotion rule that identify the model; the decision has used the rest."""

    model_config = ConfigDict(extra="ignore")

    task: str
    initialization: str


def write_metrics(folder: Path, content: dict[str, Any]) -> None:
    """Write metrics.json."""
    write_document(folder / "metrics.json", content, Metrics)


def write_headline(folder: Path, content: dict[str, float]) -> None:
    """Write headline.json."""
    write_document(folder / "headline.json", content, Headline)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the content of metrics.json. Raises DataError."""
    document = read_document(
        folder / "metrics.json", Metrics, what="the metrics of an evaluation", remedy=REMEDY
    )
    content: dict[str, Any] = document.model_dump(mode="json", exclude_unset=True)
    return content


def write_decision(folder: Path, decision: Decision) -> None:
    """Write promotion.json."""
    write_document(folder / "promotion.json", decision, Decision)


def read_decision(folder: Path) -> Decision:
    """Read promotion.json. Raises DataError."""
    return read_document(
        folder / "promotion.json", Decision, what="a decision on promotion", remedy=REMEDY
    )
