"""What Weights & Biases is told of an evaluation: numbers under their names in metrics.json, tables
and figures, and what was evaluated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofoundry.evaluate.inputs import Evidence, Inputs
from neurofoundry.evaluate.measure.explanations import Explanation
from neurofoundry.evaluate.measure.performance import Measured
from neurofoundry.evaluate.report import build
from neurofoundry.runtime.tracking import ENCODER, Tracker

ARTIFACT = ("report.html", "model_card.md", "checklist.md", "metrics.json", "promotion.json")


def record(
    tracker: Tracker,
    folder: Path,
    *,
    inputs: Inputs,
    tasks: Sequence[Evidence],
    measured: Measured,
    curves: build.Curves,
    explained: Sequence[Explanation],
    metrics: Mapping[str, Any],
    baseline: str,
) -> None:
    """Record the evaluation that ``folder`` holds; ``metrics`` is the content of metrics.json."""
    if not tracker.records:
        return
    for each in inputs.encoders:
        if all((each.folder / name).exists() for name in ENCODER):
            tracker.used(f"encoder-{each.name}", "encoder", each.folder, ENCODER)
    tracker.summary(flat(metrics))
    tracker.table("metrics", measured.measures, step=0)
    tracker.table("differences", measured.differences, step=0)
    for evidence in tasks:
        maps = [
            map for each in build.maps_of(evidence, measured, explained) for map in each["maps"]
        ]
        panels = build.panels_of(evidence, measured, curves, baseline)
        for figure in [*itertools.chain(*panels.values()), *maps]:
            name = re.sub(r"[^a-z0-9]+", "-", figure["caption"].lower())
            tracker.figure(f"{evidence.name}/{name}", figure["svg"], step=0)
    tracker.produced("evaluation", "evaluation", folder, ARTIFACT)


def flat(metrics: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of metrics.json by their path in it: TASK/INIT/FRACTION/SPLIT/METRIC/value."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}{name}/")
        elif isinstance(value, int | float):
            found[f"{path}{name}"] = value
    return found
