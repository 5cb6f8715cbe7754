"""The model that a promotion rule has accepted, in a folder that can be handed on."""

from __future__ import annotations

import shutil
from pathlib import Path

from neurofoundry.contracts.evaluation import PromotionRule, read_decision
from neurofoundry.contracts.models import DONE, RUNS, read_model_plan, run_folder
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.runtime.stage import Workspace


def promote(work: Workspace, *, models: Path, evaluation: Path) -> None:
    """Copy weights, plan, reference, model card and decision.

    Of several seeds, and folds of a cross-validation, it is the first, as it was declared: choosing
    the best would be a choice made on the test set. Raises DataError when nothing was promoted, or
    the model is not in ``models``.
    """
    decision = read_decision(evaluation)
    if not decision.promoted or decision.rule is None:
        raise DataError(f"{evaluation}: no model is promoted. {decision.reason}")
    rule = PromotionRule.model_validate(decision.rule)
    runs = read_table(models / "runs.tsv", RUNS)
    chosen = runs[
        (runs["task"] == rule.task)
        & (runs["init"] == rule.initialization)
        & (runs["status"] == DONE)
    ]
    if chosen.empty:
        raise DataError(
            f"{models / 'runs.tsv'}: no finished run of {rule.task} from {rule.initialization}, "
            f"which {evaluation / 'promotion.json'} promotes. Give the models that this "
            "evaluation has judged."
        )
    run = chosen.sort_values("fraction", ascending=False, kind="stable").iloc[0]
    fold = int(run.get("fold", 0))
    folder = models / run_folder(
        run["task"], run["init"], float(run["fraction"]), int(run["seed"]), fold
    )
    read_model_plan(folder)
    sources = [folder / name for name in ("model.safetensors", "plan.json", "reference.npz")]
    sources += [evaluation / name for name in ("promotion.json", "model_card.md")]
    if missing := [str(path) for path in sources if not path.is_file()]:
        raise DataError(f"{', '.join(missing)}: missing. Run finetune and evaluate again.")
    for path in sources:
        shutil.copyfile(path, work.dir / path.name)
    work.summary |= {"task": rule.task, "initialization": rule.initialization}
