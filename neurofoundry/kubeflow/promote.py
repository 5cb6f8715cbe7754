"""The model that a promotion rule has accepted, in a folder that can be handed on."""

from __future__ import annotations

import shutil
from pathlib import Path

from neurofoundry.contracts.evaluation import PromotionRule, read_decision
from neurofoundry.contracts.models import (
    DONE,
    RUNS,
    files_of,
    group_folder,
    initialization_of,
    read_model_plan,
    run_folder,
)
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.runtime.stage import Workspace


def promote(work: Workspace, *, models: Path, evaluation: Path) -> None:
    """Copy weights, plan, trust, model card and decision; of an ensemble those of all its members.

    Of several seeds, and folds of a cross-validation, it is the first, as it was declared: choosing
    the best would be a choice made on the test set. Raises DataError when nothing was promoted, or
    the model is not in ``models``.
    """
    decision = read_decision(evaluation)
    if not decision.promoted or decision.rule is None:
        raise DataError(f"{evaluation}: no model is promoted. {decision.reason}")
    rule = PromotionRule.model_validate(decision.rule)
    folder = _folder_of(rule, models, evaluation)
    sources = {name: folder / name for name in files_of(folder)}
    sources |= {name: evaluation / name for name in ("promotion.json", "model_card.md")}
    if missing := [str(path) for path in sources.values() if not path.is_file()]:
        raise DataError(f"{', '.join(missing)}: missing. Run finetune and evaluate again.")
    for name, path in sources.items():
        if path.name == "plan.json":
            read_model_plan(path.parent)
        (work.dir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work.dir / name)
    work.summary |= {"task": rule.task, "initialization": rule.initialization}


def _folder_of(rule: PromotionRule, models: Path, evaluation: Path) -> Path:
    """Return the folder of the model, or of the ensemble, that the rule names."""
    runs = read_table(models / "runs.tsv", RUNS)
    chosen = runs[
        (runs["task"] == rule.task)
        & (runs["init"] == initialization_of(rule.initialization))
        & (runs["status"] == DONE)
    ]
    if chosen.empty:
        raise DataError(
            f"{models / 'runs.tsv'}: no finished run of {rule.task} from {rule.initialization}, "
            f"which {evaluation / 'promotion.json'} promotes. Give the models that this "
            "evaluation has judged."
        )
    run = chosen.sort_values("fraction", ascending=False, kind="stable").iloc[0]
    group = (run["task"], run["init"], float(run["fraction"]))
    if initialization_of(rule.initialization) != rule.initialization:
        return models / group_folder(*group)
    return models / run_folder(*group, int(run["seed"]), int(run.get("fold", 0)))
