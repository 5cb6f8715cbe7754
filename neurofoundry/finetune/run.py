"""The stage: `neurofoundry finetune --volumes volumes --encoder encoder --out models`.

The sample cohort takes about a minute on two cores.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neurofoundry.contracts.encoder import find_encoders, read_pretrained
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, read_grid, read_recipe
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune import explain, subsets
from neurofoundry.finetune.model import (
    DESCRIBED,
    Start,
    find_starts,
    labelled,
    make,
    write_features,
)
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.seeds import generator
from neurofoundry.nn.selfcheck import check_convolutions
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import link, write_json
from neurofoundry.runtime.stage import Shard, Workspace
from neurofoundry.runtime.tracking import ENCODER
from neurofoundry.tasks import Task

POLICY = {"min_subjects", "required"}
"""What a task demands of a cohort, and no model depends on."""


@dataclass(frozen=True)
class Run:
    """One model to make: of which task, from where, with which share of the labels and draw."""

    task: str
    init: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder within the output."""
        return f"{self.task}/{self.init}/{self.fraction}/{self.seed}"


def finetune(
    work: Workspace,
    *,
    volumes: Path,
    encoder: Sequence[Path],
    params: FinetuneParams,
    tasks: Mapping[str, Task],
    seed: int,
) -> None:
    """Make every declared model, or reuse it, and let it predict val, test and ood.

    Writes the files of docs/architecture.md, `models/`. A model that ``work.dir`` or a folder of
    ``work.earlier`` holds, made of the same code, parameters, weights and scans, is not made
    again. Raises DataError and UsageError.
    """
    torch.backends.cudnn.deterministic = True
    grid, recipe = read_grid(volumes), read_recipe(volumes)
    folders = find_encoders(encoder)
    for name, init in params.initializations.items():
        if init.encoder not in ("random", *folders):
            raise UsageError(
                f"finetune.initializations.{name}: no encoder '{init.encoder}'; there is "
                f"{', '.join(folders)}. Pretrain it (pretrain.methods), or give it with --encoder."
            )
    starts = find_starts(folders, params.seeds, volumes, seed=seed)
    tuned = {init.encoder for init in params.initializations.values() if init.mode == "finetune"}
    if params.precision == "bf16":
        for name in sorted(tuned):
            network = starts[name, params.seeds[0]].encoder
            device = next(network.parameters()).device
            check_convolutions(network, grid.shape[::-1], device, bf16=True, stage="finetune")
    scans = read_table(volumes / "scans.tsv", VOLUMES)
    scans = scans[scans["usable"]]
    for folder in folders.values():
        guard_leaks(scans, pretrained=read_pretrained(folder))
    for name, folder in folders.items():
        work.tracker.used(f"encoder-{name}", "encoder", folder, ENCODER)

    grid_of_runs = itertools.product(tasks, params.initializations, params.fractions, params.seeds)
    declared = [Run(*values) for values in grid_of_runs]
    gaps = find_gaps(declared, tasks, scans, seed=seed)
    runs = share(declared, params, work.shard)
    possible = [run for run in runs if run not in gaps]
    described = _described(possible, params, work.shard)
    kept = [work.dir / "features"] if described else []
    _remove_all_but([*kept, *(work.dir / run.name for run in possible)], work.dir)

    code = code_hash("neurofoundry.finetune.model")
    step = 0
    with _progress_bar() as progress:
        bar = progress.add_task("", total=sum(_effort(run, params) for run in possible))
        for run in possible:
            progress.update(bar, description=run.name)
            task, init = tasks[run.task], params.initializations[run.init]
            start = starts[init.encoder, run.seed]
            rows = labelled(scans, task)
            learn = _learn_from(rows, run, task, seed)
            plan = {
                "schema_version": 1,
                "task": {"name": run.task, **task.model_dump(mode="json", exclude=POLICY)},
                "initialization": {"name": run.init, **init.model_dump(mode="json")},
                "fraction": run.fraction,
                "seed": run.seed,
                "learned_from": {
                    "persons": learn["person"].nunique(),
                    "scans": len(learn),
                    "scan_ids_sha256": _hash_table(learn[["scan_id"]]),
                },
                "encoder": start.plan.model_dump(mode="json"),
                "volumes": {"grid": grid.describe(), "preprocess": recipe},
            }
            ingredients = {
                **plan,
                "stage_seed": seed,
                "training": params.training() if init.mode == "finetune" else None,
                "weights": start.weights,
                "scans_sha256": _hash_table(rows[[*DESCRIBED, "volume_sha256"]]),
                "code_sha256": code,
            }
            folder = work.dir / run.name
            if _reuse(folder, [each / run.name for each in work.earlier], ingredients):
                progress.advance(bar, _effort(run, params))
            else:
                folder.mkdir(parents=True)
                write_json(folder / "plan.json", plan)
                make(
                    folder,
                    name=run.name,
                    start=start,
                    init=init,
                    task=task,
                    rows=rows,
                    learn=learn,
                    read=partial(read_batch, volumes, grid=grid),
                    params=params,
                    seed=int(generator(seed, run.seed, run.task).integers(2**63)),
                    advance=partial(progress.advance, bar),
                )
                write_json(folder / "run.json", ingredients)
            explained = params.explain if run.fraction == max(params.fractions) else None
            if explained and run.init in explained.initializations:
                explain.write(
                    folder,
                    Network(copy.deepcopy(start.encoder), task),
                    task,
                    rows=rows,
                    read=partial(read_batch, volumes, grid=grid),
                    grid=grid,
                    params=explained,
                    size=params.batch_size,
                )
            else:
                (folder / "explanation.npz").unlink(missing_ok=True)
            for record in pd.read_csv(folder / "history.tsv", sep="\t").to_dict("records"):
                work.tracker.log({f"{run.name}/{k}": v for k, v in record.items()}, step=step)
                step += 1

    if described:
        names = dict.fromkeys(run.task for run in declared if run not in gaps)
        chosen = pd.concat([tasks[name].select(scans) for name in names])
        _write_features(work, described, chosen, params, starts, volumes, grid)

    table = pd.DataFrame(
        [
            (run.task, run.init, str(run.fraction), run.seed)
            + (("not estimable", gaps[run]) if run in gaps else ("done", None))
            for run in runs
        ],
        columns=["task", "init", "fraction", "seed", "status", "reason"],
    )
    write_table(table, work.dir / "runs.tsv")
    work.summary.update(runs=len(runs), done=len(possible), not_estimable=len(runs) - len(possible))


def share(runs: Sequence[Run], params: FinetuneParams, shard: Shard) -> list[Run]:
    """Those of all runs that are a shard's. Probes of one frozen encoder stay together, so that no
    two shards compute the same features."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(params.frozen(run.init, run.seed) or run, []).append(run)
    chosen = {run for group in [*groups.values()][shard.items] for run in group}
    return [run for run in runs if run in chosen]


def _described(runs: Sequence[Run], params: FinetuneParams, shard: Shard) -> list[str]:
    """The encoders whose features are written: all; by a shard, those of its probes."""
    if shard.whole:
        return list(dict.fromkeys(params.initializations[run.init].encoder for run in runs))
    frozen = dict.fromkeys(params.frozen(run.init, run.seed) for run in runs)
    return [each[0] for each in frozen if each and each[1] in (None, params.seeds[0])]


def _write_features(
    work: Workspace,
    names: Sequence[str],
    scans: pd.DataFrame,
    params: FinetuneParams,
    starts: Mapping[tuple[str, int], Start],
    volumes: Path,
    grid: Grid,
) -> None:
    """features/ENCODER.npz: what each frozen encoder says of those scans that are held out."""
    chosen = scans[scans["split"].isin(["val", "test", "ood"])].drop_duplicates("scan_id")
    (work.dir / "features").mkdir(exist_ok=True)
    for path in (work.dir / "features").iterdir():
        if path.stem not in names:
            path.unlink()
    for name in names:
        file = f"features/{name}.npz"
        write_features(
            work.dir / file,
            starts[name, params.seeds[0]],
            chosen.sort_values("scan_id"),
            partial(read_batch, volumes, grid=grid),
            [each / file for each in work.earlier],
        )


def find_gaps(
    runs: Iterable[Run], tasks: Mapping[str, Task], scans: pd.DataFrame, *, seed: int
) -> dict[Run, str]:
    """Why models cannot be made, in words, for those that cannot.

    Raises DataError with all the reasons when a task that is required has one.
    """
    reasons: dict[tuple[str, float, int], str | None] = {}
    refused: dict[str, None] = {}
    for run in runs:
        task, draw = tasks[run.task], (run.task, run.fraction, run.seed)
        if draw not in reasons:
            reason = task.gap(scans)
            if reason is None:
                learn = _learn_from(labelled(scans, task), run, task, seed)
                if shortage := subsets.shortage(learn, task):
                    reason = f"fraction {run.fraction} of split 'train' has {shortage}"
            reasons[draw] = reason
            if reason is not None and task.required:
                refused[f"{run.task}: {reason}"] = None
    if refused:
        raise DataError(
            "The usable scans cannot serve tasks that are required:\n  "
            + "\n  ".join(refused)
            + "\nAdd scans, change the task or finetune.fractions, or set tasks.TASK.required to "
            "false: then it is reported as not estimable."
        )
    found = {run: reasons[run.task, run.fraction, run.seed] for run in runs}
    return {run: reason for run, reason in found.items() if reason is not None}


def _learn_from(rows: pd.DataFrame, run: Run, task: Task, seed: int) -> pd.DataFrame:
    key = f"{seed} {run.seed} {run.task}"
    return subsets.fraction_of(rows[rows["split"] == "train"], task, run.fraction, key=key)


def _effort(run: Run, params: FinetuneParams) -> int:
    """Steps of the progress bar."""
    return params.epochs if params.initializations[run.init].mode == "finetune" else 1


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("finetune"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )


def _hash_table(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _reuse(folder: Path, earlier: Sequence[Path], ingredients: dict[str, Any]) -> bool:
    """Whether ``folder`` now holds a whole model of these ingredients; if not, it is gone."""
    if _made_of(folder) == ingredients:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    source = next((each for each in earlier if _made_of(each) == ingredients), None)
    if source is None:
        return False
    copied = folder.with_name(f".{folder.name}.copied")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(source, copied, copy_function=link)
    copied.rename(folder)
    return True


def _made_of(folder: Path) -> dict[str, Any] | None:
    """Content of run.json, which is written last."""
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.exists() else None


def _remove_all_but(folders: Iterable[Path], root: Path) -> None:
    """Remove what models of other parameters have left in ``root``."""
    kept = {path for folder in folders for path in (folder, *folder.parents)}
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
