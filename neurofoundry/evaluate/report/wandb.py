"""What Weights & Biases records of an evaluation: numbers under their names in metrics.json, tables
and figures, and what was evaluated."""

from __future__ import annotations

import re
from pathlib import Path

from neurofoundry.evaluate import outputs
from neurofoundry.evaluate.report.figures import Figures
from neurofoundry.evaluate.results import Results
from neurofoundry.runtime.tracking import ENCODER, Tracker

ARTIFACT = ("report.html", "model_card.md", "checklist.md", "metrics.json", "promotion.json")


def record(tracker: Tracker, folder: Path, results: Results, figures: Figures) -> None:
    """Record the evaluation that ``folder`` holds."""
    if not tracker.records:
        return
    for each in results.inputs.encoders:
        if all((each.folder / name).exists() for name in ENCODER):
            tracker.used(f"encoder-{each.name}", "encoder", each.folder, ENCODER)
    tracker.summary(outputs.numbers(results))
    tracker.table("metrics", results.measured.measures, step=0)
    tracker.table("differences", results.measured.differences, step=0)
    for task, drawn in figures.tasks.items():
        for figure in drawn:
            name = re.sub(r"[^a-z0-9]+", "-", figure.caption.lower())
            tracker.figure(f"{task}/{name}", figure.svg, step=0)
    tracker.produced("evaluation", "evaluation", folder, ARTIFACT)
