"""The declared runs: every task from every initialization, fraction of the labels and seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neurofoundry.contracts import folds
from neurofoundry.contracts.models import DONE, NOT_ESTIMABLE, RUNS, group_folder, run_folder
from neurofoundry.errors import DataError
from neurofoundry.finetune import subsets
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.runtime.stage import Shard
from neurofoundry.tasks import Labelled


@dataclass(frozen=True)
class Run:
    """One model to make: its task, initialization, fraction of the labels, seed, and fold."""

    task: str
    init: str
    fraction: float
    seed: int
    fold: int = 0
    """Of a cross-validation, from 1."""

    @property
    def name(self) -> str:
        """The folder of the model within the output."""
        return str(run_folder(self.task, self.init, self.fraction, self.seed, self.fold))

    @property
    def group(self) -> str:
        """The folder of all seeds and folds."""
        return str(group_folder(self.task, self.init, self.fraction))


def declared(tasks: Iterable[str], params: FinetuneParams, *, folds: int = 0) -> list[Run]:
    """Return all runs in the order of their declaration, a run a fold in a cross-validation."""
    numbers = range(1, folds + 1) if folds else [0]
    starts = params.initializations
    return [
        Run(*values)
        for values in itertools.product(tasks, starts, params.fractions, params.seeds, numbers)
    ]


def ensembles(made: Iterable[Run], of_all: Iterable[Run]) -> dict[str, list[str]]:
    """Return the folders in which the models of all seeds and folds lie, ``made`` here without a
    gap, each with those of its models, where there are several."""
    here = set(made)
    groups: dict[str, list[Run]] = {}
    for run in of_all:
        groups.setdefault(run.group, []).append(run)
    return {
        group: [Path(run.name).relative_to(group).as_posix() for run in members]
        for group, members in groups.items()
        if len(members) > 1 and here.issuperset(members)
    }


def of_shard(runs: Sequence[Run], params: FinetuneParams, shard: Shard) -> list[Run]:
    """Return those of all ``runs`` that a shard makes.

    Probes of one frozen encoder stay together, so that no two shards compute the same features.
    """
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(params.frozen(run.init, run.seed) or run, []).append(run)
    chosen = {run for group in [*groups.values()][shard.items] for run in group}
    return [run for run in runs if run in chosen]


def encoders_to_describe(
    runs: Sequence[Run], of_all: Sequence[Run], params: FinetuneParams, shard: Shard
) -> list[str]:
    """Return the encoders whose features a shard that makes ``runs`` ``of_all`` writes.

    They are those of its probes, of the first seed, and its share of those that nobody probes.
    """
    used = dict.fromkeys(params.initializations[run.init].encoder for run in of_all)
    probed = {frozen.encoder for run in of_all if (frozen := params.frozen(run.init, run.seed))}
    here = {
        frozen.encoder
        for run in runs
        if (frozen := params.frozen(run.init, run.seed)) and frozen.seed in (None, params.seeds[0])
    }
    here.update([name for name in used if name not in probed][shard.items])
    return [name for name in used if name in here]


def labelled(scans: pd.DataFrame, task: Labelled) -> pd.DataFrame:
    """Return the scans of a task with their ``label`` and its number, ``target``."""
    chosen = task.select(scans)
    target = task.targets(chosen)
    return chosen.assign(label=target if task.numeric_label else chosen[task.column], target=target)


def learned_from(rows: pd.DataFrame, run: Run, task: Labelled, seed: int) -> pd.DataFrame:
    """Return those of the labelled scans ``rows`` from which the model of a run learns."""
    key = f"{seed} {run.seed} {run.task}"
    return subsets.fraction_of(rows[rows["split"] == "train"], task, run.fraction, key=key)


def find_gaps(
    runs: Iterable[Run], tasks: Mapping[str, Labelled], scans: pd.DataFrame, *, seed: int
) -> dict[Run, str]:
    """Return the runs whose models cannot be made, and why, in words.

    Where one fold has no model, no fold has: they are judged together. Raises DataError with all
    the reasons if a required task has one.
    """
    runs = list(runs)
    of_task = {name: folds.gap(task, scans) for name, task in tasks.items()}
    reasons: dict[tuple[str, float, int], str | None] = {}
    for run, draw in {(run.fold, draw_of(run)): (run, draw_of(run)) for run in runs}.values():
        if reasons.get(draw) is None:
            reasons[draw] = of_task[run.task] or _shortage(run, tasks[run.task], scans, seed)
    refused = {
        f"{task}: {reason}. {folds.would_do(tasks[task], scans)}".rstrip(". "): None
        for (task, _, _), reason in reasons.items()
        if reason is not None and tasks[task].required
    }
    if refused:
        raise DataError(
            "The usable scans cannot serve tasks that are required:\n  "
            + "\n  ".join(refused)
            + "\nReview scans that were set aside (volumes/qc.html), add scans, or set "
            "tasks.TASK.required to false: then it is reported as not estimable."
        )
    by_run = {run: reasons[draw_of(run)] for run in runs}
    return {run: reason for run, reason in by_run.items() if reason is not None}


def table(runs: Sequence[Run], gaps: Mapping[Run, str]) -> pd.DataFrame:
    """Return the rows of runs.tsv."""
    rows = [
        (run.task, run.init, str(run.fraction), run.seed, run.fold)
        + ((NOT_ESTIMABLE, gaps[run]) if run in gaps else (DONE, None))
        for run in runs
    ]
    made = pd.DataFrame(rows, columns=[*RUNS.columns])
    return made if any(run.fold for run in runs) else made.drop(columns="fold")


def draw_of(run: Run) -> tuple[str, float, int]:
    """Return on what the choice of the scans that a run learns from depends, beside the fold."""
    return run.task, run.fraction, run.seed


def _shortage(run: Run, task: Labelled, scans: pd.DataFrame, seed: int) -> str | None:
    rows = labelled(folds.in_fold(scans, run.fold), task)
    shortage = subsets.shortage(learned_from(rows, run, task, seed), task)
    where = f"in fold {run.fold}, " if run.fold else ""
    return shortage and f"{where}fraction {run.fraction} of split 'train' has {shortage}"
