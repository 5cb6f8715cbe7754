"""The declared runs: every task from every initialization, fraction of the labels and seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from neurofoundry.contracts.models import DONE, NOT_ESTIMABLE, RUNS
from neurofoundry.errors import DataError
from neurofoundry.finetune import subsets
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.runtime.stage import Shard
from neurofoundry.tasks import Task


@dataclass(frozen=True)
class Run:
    """One model to make: its task, initialization, fraction of the labels and seed."""

    task: str
    init: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """The folder of the model within the output."""
        return f"{self.task}/{self.init}/{self.fraction}/{self.seed}"


def declared(tasks: Iterable[str], params: FinetuneParams) -> list[Run]:
    """Return all runs in the order of their declaration."""
    grid = itertools.product(tasks, params.initializations, params.fractions, params.seeds)
    return [Run(*values) for values in grid]


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


def labelled(scans: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the scans of a task with their ``label`` and its number, ``target``."""
    chosen = task.select(scans)
    target = task.targets(chosen)
    return chosen.assign(label=target if task.numeric_label else chosen[task.column], target=target)


def learned_from(rows: pd.DataFrame, run: Run, task: Task, seed: int) -> pd.DataFrame:
    """Return those of the labelled scans ``rows`` from which the model of a run learns."""
    key = f"{seed} {run.seed} {run.task}"
    return subsets.fraction_of(rows[rows["split"] == "train"], task, run.fraction, key=key)


def find_gaps(
    runs: Iterable[Run], tasks: Mapping[str, Task], scans: pd.DataFrame, *, seed: int
) -> dict[Run, str]:
    """Return the runs whose models cannot be made, and why, in words.

    Raises DataError with all the reasons if a required task has one.
    """
    reasons: dict[tuple[str, float, int], str | None] = {}
    refused: dict[str, None] = {}
    for run in runs:
        task, draw = tasks[run.task], (run.task, run.fraction, run.seed)
        if draw not in reasons:
            reasons[draw] = _gap(run, task, scans, seed)
            if reasons[draw] is not None and task.required:
                refused[f"{run.task}: {reasons[draw]}"] = None
    if refused:
        raise DataError(
            "The usable scans cannot serve tasks that are required:\n  "
            + "\n  ".join(refused)
            + "\nAdd scans, change the task or finetune.fractions, or set tasks.TASK.required to "
            "false: then it is reported as not estimable."
        )
    by_run = {run: reasons[run.task, run.fraction, run.seed] for run in runs}
    return {run: reason for run, reason in by_run.items() if reason is not None}


def table(runs: Sequence[Run], gaps: Mapping[Run, str]) -> pd.DataFrame:
    """Return the rows of runs.tsv."""
    rows = [
        (run.task, run.init, str(run.fraction), run.seed)
        + ((NOT_ESTIMABLE, gaps[run]) if run in gaps else (DONE, None))
        for run in runs
    ]
    return pd.DataFrame(rows, columns=[*RUNS.columns])


def _gap(run: Run, task: Task, scans: pd.DataFrame, seed: int) -> str | None:
    if (reason := task.gap(scans)) is not None:
        return reason
    shortage = subsets.shortage(learned_from(labelled(scans, task), run, task, seed), task)
    return shortage and f"fraction {run.fraction} of split 'train' has {shortage}"
