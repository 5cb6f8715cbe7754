"""The figures of an evaluation, each drawn once: the report shows them, and the tracker records
them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.measure.explanations import Explanation
from neurofoundry.evaluate.report import narrative, plots
from neurofoundry.evaluate.results import Results
from neurofoundry.stats.metrics import METRICS


@dataclass(frozen=True)
class Figure:
    """A drawing of one initialization."""

    init: str
    caption: str
    svg: str


Panels = tuple[Figure, ...]
"""Figures of one kind, one an initialization: beside each other, as six curves in one figure cannot
be told apart."""


@dataclass(frozen=True)
class TaskFigures:
    """The figures of a task; kinds that do not apply are empty."""

    roc: Panels
    reliability: Panels
    predicted: Panels
    benefit: Panels
    """Decision curves at familiar sites."""
    labels: Panels
    """The primary metric by share of the labels."""
    maps: Mapping[str, Panels]
    """Of each initialization that was explained, one a group of persons."""

    def __iter__(self) -> Iterator[Figure]:
        """Yield all of them."""
        yield from itertools.chain(
            *(self.roc, self.reliability, self.predicted, self.benefit, self.labels)
        )
        yield from itertools.chain(*self.maps.values())


@dataclass(frozen=True)
class Figures:
    """All figures of an evaluation."""

    tasks: Mapping[str, TaskFigures]
    pretraining: Mapping[str, str]
    """The loss of each encoder by epoch, as SVG, where it has more than one."""


def draw(results: Results) -> Figures:
    """Draw all figures."""
    return Figures(
        tasks={each.name: _draw_task(each, results) for each in results.tasks},
        pretraining={
            each.name: plots.pretraining(each.history)
            for each in results.inputs.encoders
            if len(each.history) > 1
        },
    )


def _draw_task(evidence: Evidence, results: Results) -> TaskFigures:
    curves, reference = results.curves, results.params.reference
    models = [model.name for model in evidence.models if not model.is_baseline]
    palette = plots.colours(list(dict.fromkeys(models)), reference)
    reliability = curves.reliability[curves.reliability["split"] == "test"]
    predicted = curves.predicted[curves.predicted["task"] == evidence.name]
    values = predicted[["true", "predicted"]].to_numpy(float)
    limits = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    unit = f",{narrative.unit(evidence)}" if narrative.unit(evidence) else ""
    metric = METRICS[evidence.task.primary].title
    shares = narrative.primary(evidence, results.measured).dropna(subset="value")
    if shares["fraction"].nunique() < 2:
        shares = shares.iloc[:0]
    return TaskFigures(
        roc=_panels(
            *(evidence, curves.bands, "ROC curve"),
            lambda _, rows, title: plots.roc(rows, title),
        ),
        reliability=_panels(
            *(evidence, reliability, "stated and observed risk"),
            lambda init, rows, title: plots.reliability(rows, palette[init], title),
        ),
        predicted=_panels(
            *(evidence, predicted, f"predicted and true {evidence.task.column}"),
            lambda _, rows, title: plots.predicted_against_true(rows, limits, unit, title),
        ),
        benefit=_panels(
            *(evidence, results.benefit[results.benefit["split"] == "test"], "decision curve"),
            lambda init, rows, title: plots.decision_curve(rows, palette[init], title),
        ),
        labels=_panels(
            *(evidence, shares, f"{metric} by share of the labels"),
            lambda init, _, title: plots.label_efficiency(
                *(shares, init, reference, palette[init], f"{metric}{unit}", title)
            ),
        ),
        maps=_maps(evidence, [each for each in results.explained if each.task == evidence.name]),
    )


def _panels(
    evidence: Evidence,
    table: pd.DataFrame,
    what: str,
    plot: Callable[[str, pd.DataFrame, str], str],
) -> Panels:
    """Plot the rows of each initialization of a task."""
    panels = []
    for name, rows in table[table["task"] == evidence.name].groupby("init", sort=False):
        init = str(name)
        title = f"{init}: {what}"
        panels.append(Figure(init, title, plot(init, rows, title)))
    return tuple(panels)


def _maps(evidence: Evidence, explained: list[Explanation]) -> dict[str, Panels]:
    """Plot the maps of each initialization, on one scale of colours."""
    unit = narrative.explained_unit(evidence)
    maps = {}
    for init in dict.fromkeys(each.init for each in explained):
        groups = [each for each in explained if each.init == init]
        limit = max(float(np.abs(each.mean).max()) for each in groups)
        figures = []
        for each in groups:
            group = each.group
            if group != "everybody":
                group = f"{evidence.task.column} {group}"
            caption = f"{init}: {group}, mean of {counted(each.subjects, 'subject')}"
            svg = plots.explanation(each, limit, unit, caption)
            figures.append(Figure(init, caption, svg))
        maps[init] = tuple(figures)
    return maps
