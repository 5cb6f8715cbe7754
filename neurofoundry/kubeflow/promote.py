"""The model that a promotion rule has accepted, in a folder that can be handed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from neurofoundry.errors import DataError
from neurofoundry.runtime.stage import Workspace


def promote(work: Workspace, *, models: Path, evaluation: Path) -> None:
    """Copy weights, plan, reference, model card and decision.

    Of several seeds it is the first, as it was declared: choosing the best would be a choice made
    on the test set. Raises DataError when nothing was promoted.
    """
    decision = json.loads((evaluation / "promotion.json").read_text())
    if not decision["promoted"]:
        raise DataError(f"{evaluation}: no model is promoted. {decision['reason']}")
    rule = decision["rule"]
    runs = pd.read_csv(models / "runs.tsv", sep="\t", keep_default_na=False)
    chosen = runs[
        (runs["task"] == rule["task"])
        & (runs["init"] == rule["initialization"])
        & (runs["status"] == "done")
    ]
    run = chosen.sort_values("fraction", ascending=False, kind="stable").iloc[0]
    folder = models / run["task"] / run["init"] / str(run["fraction"]) / str(run["seed"])
    for path in (
        folder / "model.safetensors",
        folder / "plan.json",
        folder / "reference.npz",
        evaluation / "promotion.json",
        evaluation / "model_card.md",
    ):
        shutil.copyfile(path, work.dir / path.name)
    work.summary |= {"task": str(run["task"]), "initialization": str(run["init"])}
