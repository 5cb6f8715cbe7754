"""The stage: `neurofoundry finetune --volumes volumes --encoder encoder --out models`.

The sample cohort takes about a minute on two cores.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import find_encoders, read_pretrained
from neurofoundry.contracts.models import (
    DESCRIBED,
    RUNS,
    LearnedFrom,
    ModelPlan,
    ModelVolumes,
    Start,
    write_model_plan,
)
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import hash_table, write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.finetune import explain, runs
from neurofoundry.finetune.model import Origin, find_origins, make, write_features
from neurofoundry.finetune.network import Network, Reader
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.runs import Run
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.seeds import generator
from neurofoundry.nn.selfcheck import check_convolutions
from neurofoundry.runtime import cache
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import hash_json, write_json
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import ENCODER
from neurofoundry.tasks import Task

POLICY = {"min_subjects", "required"}
"""What a task demands of a cohort, and no model depends on."""


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
    study = open_study(Volumes(volumes), find_encoders(encoder), params, tasks, seed)
    for name, folder in study.encoders.items():
        work.tracker.used(f"encoder-{name}", "encoder", folder, ENCODER)
    declared = runs.declared(tasks, params)
    gaps = runs.find_gaps(declared, tasks, study.scans, seed=seed)
    chosen = runs.share(declared, params, work.shard)
    possible = [run for run in chosen if run not in gaps]
    described = runs.described_encoders(possible, params, work.shard)
    kept = [work.dir / "features"] if described else []
    _remove_all_but([*kept, *(work.dir / run.name for run in possible)], work.dir)

    with Progress("finetune", sum(map(study.effort, possible)), unit="epochs") as progress:
        for run in possible:
            progress.advance(0, note=run.name)
            study.provide(run, work, progress)
    _track(work, possible)
    if described:
        names = dict.fromkeys(run.task for run in declared if run not in gaps)
        study.describe(
            described, pd.concat([tasks[name].select(study.scans) for name in names]), work
        )
    write_table(runs.table(chosen, gaps), work.dir / "runs.tsv", RUNS)
    gap_count = len(chosen) - len(possible)
    work.summary.update(runs=len(chosen), done=len(possible), not_estimable=gap_count)


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    volumes: Volumes
    scans: pd.DataFrame
    """The usable ones."""
    encoders: Mapping[str, Path]
    origins: Mapping[tuple[str, int], Origin]
    """What models start from, by name and seed of the run."""
    params: FinetuneParams
    tasks: Mapping[str, Task]
    seed: int
    code: str
    """Hash of the code that decides a model."""

    @property
    def read(self) -> Reader:
        """Reads volumes by their ids."""
        return partial(read_batch, self.volumes)

    def effort(self, run: Run) -> int:
        """Steps of the progress bar."""
        tuned = self.params.initializations[run.init].mode == "finetune"
        return self.params.epochs if tuned else 1

    def provide(self, run: Run, work: Workspace, progress: Progress) -> None:
        """Make the model of a run, or take it from an earlier output, and explain it if asked."""
        task, origin = self.tasks[run.task], self.origin(run)
        rows = runs.labelled(self.scans, task)
        learn = runs.learned_from(rows, run, task, self.seed)
        plan = self.plan(run, learn)
        ingredients = self.ingredients(run, plan, rows)
        folder, earlier = work.dir / run.name, [each / run.name for each in work.earlier]
        if cache.take(folder, hash_json(ingredients), earlier=earlier, key_of=_key_of_model):
            progress.advance(self.effort(run))
        else:
            folder.mkdir(parents=True)
            write_model_plan(folder, plan)
            make(
                folder,
                name=run.name,
                origin=origin,
                init=self.params.initializations[run.init],
                task=task,
                rows=rows,
                learn=learn,
                read=self.read,
                params=self.params,
                seed=int(generator(self.seed, run.seed, run.task).integers(2**63)),
                advance=progress.advance,
            )
            write_json(folder / "run.json", ingredients)
        self.explain(run, folder, rows)

    def origin(self, run: Run) -> Origin:
        """What the model of a run starts from."""
        return self.origins[self.params.initializations[run.init].encoder, run.seed]

    def plan(self, run: Run, learn: pd.DataFrame) -> ModelPlan:
        """What a user of the model must know."""
        task = self.tasks[run.task].model_dump(mode="json", exclude=POLICY)
        init = self.params.initializations[run.init]
        return ModelPlan(
            task={"name": run.task, **task},
            initialization=Start(name=run.init, **init.model_dump()),
            fraction=run.fraction,
            seed=run.seed,
            learned_from=LearnedFrom(
                persons=learn["person"].nunique(),
                scans=len(learn),
                scan_ids_sha256=hash_table(learn[["scan_id"]]),
            ),
            encoder=self.origin(run).plan,
            volumes=ModelVolumes(grid=self.volumes.grid.describe(), preprocess=self.volumes.recipe),
        )

    def ingredients(self, run: Run, plan: ModelPlan, rows: pd.DataFrame) -> dict[str, Any]:
        """What the model of a run is made of: its key."""
        tuned = self.params.initializations[run.init].mode == "finetune"
        return {
            **plan.model_dump(mode="json"),
            "stage_seed": self.seed,
            "training": self.params.training() if tuned else None,
            "weights": self.origin(run).weights,
            "scans_sha256": hash_table(rows[[*DESCRIBED, "volume_sha256"]]),
            "code_sha256": self.code,
        }

    def explain(self, run: Run, folder: Path, rows: pd.DataFrame) -> None:
        """Explain a model if it is to be explained; else remove the explanation."""
        asked = self.params.explain
        largest = run.fraction == max(self.params.fractions)
        if not asked or run.init not in asked.initializations or not largest:
            (folder / "explanation.npz").unlink(missing_ok=True)
            return
        task = self.tasks[run.task]
        explain.write(
            folder,
            Network(copy.deepcopy(self.origin(run).encoder), task),
            task,
            rows=rows,
            read=self.read,
            grid=self.volumes.grid,
            params=asked,
            size=self.params.batch_size,
        )

    def describe(self, names: Sequence[str], scans: pd.DataFrame, work: Workspace) -> None:
        """Write features/ENCODER.npz: the features by each frozen encoder of scans held out."""
        chosen = scans[scans["split"].isin(HELD_OUT)].drop_duplicates("scan_id")
        (work.dir / "features").mkdir(exist_ok=True)
        for path in (work.dir / "features").iterdir():
            if path.stem not in names:
                path.unlink()
        for name in names:
            file = f"features/{name}.npz"
            earlier = [each / file for each in work.earlier]
            origin = self.origins[name, self.params.seeds[0]]
            write_features(
                work.dir / file, origin, chosen.sort_values("scan_id"), self.read, earlier
            )


def open_study(
    volumes: Volumes,
    encoders: Mapping[str, Path],
    params: FinetuneParams,
    tasks: Mapping[str, Task],
    seed: int,
) -> Study:
    """Load what models start from, and check that it fits. Raises DataError and UsageError."""
    for name, init in params.initializations.items():
        if init.encoder not in ("random", *encoders):
            raise UsageError(
                f"finetune.initializations.{name}: no encoder '{init.encoder}'; there is "
                f"{', '.join(encoders)}. Pretrain it (pretrain.methods), or give it with --encoder."
            )
    origins = find_origins(encoders, params.seeds, volumes, seed=seed)
    if params.precision == "bf16":
        declared = params.initializations.values()
        for name in sorted({init.encoder for init in declared if init.mode == "finetune"}):
            network = origins[name, params.seeds[0]].encoder
            device = next(network.parameters()).device
            shape = volumes.grid.shape[::-1]
            check_convolutions(network, shape, device, bf16=True, stage="finetune")
    for folder in encoders.values():
        guard_leaks(volumes.usable, pretrained=read_pretrained(folder))
    code = code_hash("neurofoundry.finetune.model")
    return Study(volumes, volumes.usable, encoders, origins, params, tasks, seed, code)


def _track(work: Workspace, made: Sequence[Run]) -> None:
    """Record the history of every model."""
    step = 0
    for run in made:
        history = pd.read_csv(work.dir / run.name / "history.tsv", sep="\t")
        for record in history.to_dict("records"):
            work.tracker.log({f"{run.name}/{k}": v for k, v in record.items()}, step=step)
            step += 1


def _key_of_model(folder: Path) -> str | None:
    """Of run.json, which is written last."""
    path = folder / "run.json"
    return hash_json(json.loads(path.read_text())) if path.exists() else None


def _remove_all_but(folders: Iterable[Path], root: Path) -> None:
    """Remove what models of other parameters have left in ``root``."""
    kept = {path for folder in folders for path in (folder, *folder.parents)}
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
