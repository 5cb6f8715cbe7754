"""Evaluate: read the predictions, measure and compare them, and write it down for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neurofoundry.contracts.models import ensembles
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import inputs, outputs, promotion
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.measure import outlines
from neurofoundry.evaluate.measure.outlines import Outlines
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import build, figures, headline, wandb
from neurofoundry.evaluate.results import measure
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Labelled, Segmentation, Task, of_one_label, segmentations


def evaluate(
    work: Workspace,
    *,
    cohort: Path,
    volumes: Path,
    encoder: Sequence[Path],
    models: Path,
    params: EvaluateParams,
    tasks: Mapping[str, Labelled],
    seed: int,
) -> None:
    """Write metrics.json, tables, plots, promotion.json, and report, model card and checklist."""
    single = of_one_label(tasks)
    opened = Volumes(volumes)
    earlier = inputs.read(cohort_dir=cohort, volumes=opened, encoder=encoder, models=models)
    of_single = replace(earlier, runs=earlier.runs[earlier.runs["task"].isin(single)])
    _check(params, tasks, single, earlier, models)
    results = measure(of_single, opened, models, tasks=single, params=params, seed=seed)
    outputs.write(work.dir, results)
    outlined = None
    if declared := segmentations(tasks):
        outlined = _outlines(declared, earlier, opened, models, params)
        outlines.write(work.dir, outlined)
    drawn = figures.draw(results)
    build.write(work.dir, results, drawn, outlined)
    wandb.record(work.tracker, work.dir, models, results, drawn)
    work.summary |= headline.numbers(results) | {"promoted": results.decision.promoted}
    work.answer = wandb.answer(results, params, single, seed)


def _outlines(
    tasks: Mapping[str, Segmentation],
    earlier: Inputs,
    volumes: Volumes,
    models: Path,
    params: EvaluateParams,
) -> Outlines:
    """Measure what models outline, and log how well."""
    measured = outlines.measure(
        tasks,
        earlier.runs,
        volumes,
        models,
        reference=params.reference,
        fewest=params.min_subjects,
        fewest_in_group=params.min_subgroup,
    )
    for line in outlines.describe(measured):
        LOGGER.info("%s", line)
    return measured


def _check(
    params: EvaluateParams,
    tasks: Mapping[str, Labelled],
    single: Mapping[str, Task],
    earlier: Inputs,
    models: Path,
) -> None:
    """Refuse parameters that ask for what the models do not have. Raises UsageError."""
    initializations = list(dict.fromkeys(earlier.runs["init"]))
    missing = sorted(set(tasks) - set(earlier.runs["task"]))
    if missing:
        raise UsageError(
            f"{models / 'runs.tsv'}: no run of the task {', '.join(missing)}. "
            "Run finetune with these parameters first."
        )
    if tasks and params.reference not in initializations:
        raise UsageError(
            f"evaluate.reference: '{params.reference}' is not one of the initializations in "
            f"{models / 'runs.tsv'} ({', '.join(initializations)})."
        )
    two_classes = [name for name, task in tasks.items() if len(task.classes) == 2]
    if unknown := sorted(set(params.prevalence) - set(two_classes)):
        raise UsageError(
            f"evaluate.prevalence: {', '.join(unknown)} is not one of the tasks with two classes "
            f"({', '.join(two_classes) or 'there is none'})."
        )
    if params.promotion:
        names = [*initializations, *ensembles(earlier.runs)]
        promotion.check(params.promotion, single, names)
