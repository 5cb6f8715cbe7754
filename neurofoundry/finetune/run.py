"""The stage: `neurofoundry finetune --volumes volumes --encoder encoder --out models`.

The sample cohort takes about a minute on two cores.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import UNTRAINED, find_encoders, read_pretrained
from neurofoundry.contracts.labels import CARRIED, read_labels
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
from neurofoundry.finetune import ensemble, explain, runs
from neurofoundry.finetune.model import Blueprint, Origin, find_origins, write_features
from neurofoundry.finetune.network import Network, Reader
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.runs import Run
from neurofoundry.finetune.segment import Outline, write_together
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.seeds import generator
from neurofoundry.nn.selfcheck import check_convolutions
from neurofoundry.runtime import cache
from neurofoundry.runtime.code import code_hash
from neurofoundry.runtime.files import hash_json, write_json
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import encoder_artifact
from neurofoundry.tasks import Segmentation, Task

DEMANDS = {"min_subjects", "required"}
"""What a task demands of a cohort; no model depends on it."""


def finetune(
    work: Workspace,
    *,
    volumes: Path,
    encoder: Sequence[Path],
    params: FinetuneParams,
    tasks: Mapping[str, Task | Segmentation],
    seed: int,
) -> None:
    """Make or reuse every declared model, which predicts val, test and ood.

    Writes the files of `models/` in docs/architecture.md. A model in ``work.dir`` or in a folder of
    ``work.earlier`` that was made from the same code, parameters, weights and scans is reused.
    Raises DataError and UsageError.
    """
    torch.backends.cudnn.deterministic = True
    study = open_study(Volumes(volumes), find_encoders(encoder), params, tasks, seed)
    for name, folder in study.encoders.items():
        work.tracker.used(encoder_artifact(name, folder))
    declared = runs.declared(tasks, params, folds=folds.count(study.scans))
    gaps = runs.find_gaps(declared, tasks, study.scans, seed=seed)
    gaps |= {run: why for run in declared if (why := study.unfit(run)) and run not in gaps}
    chosen = runs.of_shard(declared, params, work.shard)
    possible = [run for run in chosen if run not in gaps]
    everyone = [run for run in declared if run not in gaps]
    described = runs.encoders_to_describe(possible, everyone, params, work.shard)
    features = [work.dir / "features"] if described else []
    _remove_all_but([*features, *(work.dir / run.name for run in possible)], work.dir)
    _remove_models_above([work.dir / run.name for run in possible if run.fold])

    with Progress("finetune", sum(map(study.effort, possible)), unit="epochs") as progress:
        for run in possible:
            progress.advance(0, note=run.name)
            study.provide(run, work, progress)
    together = runs.ensembles(possible, everyone)
    _write_ensembles(work.dir, together, tasks)
    for group, members in together.items():
        study.outline_together(group, [f"{group}/{name}" for name in members], possible, work)
    _track(work, possible)
    if described:
        names = dict.fromkeys(run.task for run in everyone)
        scans = pd.concat([tasks[name].select(study.scans) for name in names])
        study.describe(described, scans, work)
    write_table(runs.table(chosen, gaps), work.dir / "runs.tsv", RUNS)
    gap_count = len(chosen) - len(possible)
    work.summary.update(runs=len(chosen), done=len(possible), not_estimable=gap_count)


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    volumes: Volumes
    scans: pd.DataFrame
    """The usable scans."""
    encoders: Mapping[str, Path]
    origins: Mapping[tuple[str, int], Origin]
    """What models start from, by the name of the encoder and the seed of the run."""
    params: FinetuneParams
    tasks: Mapping[str, Task | Segmentation]
    seed: int
    sound: set[int] = field(default_factory=set)
    """The origins, by identity, whose precision has been checked."""

    def read(self, origin: Origin) -> Reader:
        """Return a function that reads the volumes that an encoder sees by their scan ids."""
        return partial(read_batch, self.volumes, contrasts=origin.plan.contrasts)

    def effort(self, run: Run) -> int:
        """Return by how much the model of a run advances the progress."""
        if not self._is_tuned(run):
            return 1
        tuning = self.params.tuning(run.init)
        return tuning.epochs * len(tuning.learning_rates)

    def provide(self, run: Run, work: Workspace, progress: Progress) -> None:
        """Make the model of a run, or take it from an earlier output, and explain it if asked."""
        blueprint = self.blueprint(run)
        plan = self.plan(run, blueprint)
        ingredients = self.ingredients(run, plan, blueprint)
        folder, earlier = work.dir / run.name, [output / run.name for output in work.earlier]
        if cache.take(folder, hash_json(ingredients), earlier=earlier, key_of=_key_of_model):
            progress.advance(self.effort(run))
        else:
            self.check_precision(run, blueprint)
            folder.mkdir(parents=True)
            write_model_plan(folder, plan)
            blueprint.make(folder, progress.advance)
            write_json(folder / "run.json", ingredients)
        self.explain(run, folder, blueprint)

    def check_precision(self, run: Run, blueprint: Blueprint | Outline) -> None:
        """See that this machine computes what the model of a run needs. Raises UsageError.

        Only where a model is made: a machine that takes shards together may be one that cannot.
        """
        origin = blueprint.origin
        if self.params.precision == "bf16" and self._is_tuned(run) and id(origin) not in self.sound:
            device = next(origin.encoder.parameters()).device
            shape = self.volumes.grid.shape[::-1]
            check_convolutions(origin.encoder, shape, device, bf16=True, stage="finetune")
            self.sound.add(id(origin))

    def unfit(self, run: Run) -> str | None:
        """Return why an encoder cannot serve a task, in words; None if it can."""
        origin = self.origins[self.params.initializations[run.init].encoder, run.seed]
        outlined = isinstance(self.tasks[run.task], Segmentation)
        if outlined and origin.plan.encoder.architecture == "sfcn":
            return "the encoder sfcn has no stages for the skips of a decoder"
        return None

    def blueprint(self, run: Run) -> Blueprint | Outline:
        """Return what the model of a run is made from."""
        task, init = self.tasks[run.task], self.params.initializations[run.init]
        rows = runs.labelled(folds.in_fold(self.scans, run.fold), task)
        common: dict[str, Any] = {
            "name": run.name,
            "origin": (origin := self.origins[init.encoder, run.seed]),
            "mode": init.mode,
            "learn": runs.learned_from(rows, run, task, self.seed),
            "read": self.read(origin),
            "params": self.params,
            "tuning": self.params.tuning(run.init),
            "seed": int(generator(self.seed, run.seed, run.task).integers(2**63)),
        }
        if isinstance(task, Segmentation):
            outlined = self._outlined(rows, task)
            return Outline(**common, task=task, rows=outlined, volumes=self.volumes)
        return Blueprint(**common, task=task, rows=rows)

    def _outlined(self, rows: pd.DataFrame, task: Segmentation) -> pd.DataFrame:
        """Return scans with the hashes of their label images on the grid."""
        labels = read_labels(self.volumes.folder, CARRIED)
        of_task = labels[labels["task"] == task.column].set_index("scan_id")["label_sha256"]
        return rows.assign(label_sha256=rows["scan_id"].map(of_task))

    def plan(self, run: Run, blueprint: Blueprint | Outline) -> ModelPlan:
        """Return what a user of the model must know."""
        task = self.tasks[run.task].model_dump(mode="json", exclude=DEMANDS)
        init = self.params.initializations[run.init]
        return ModelPlan(
            task={"name": run.task, **task},
            initialization=Start(name=run.init, encoder=init.encoder, mode=init.mode),
            fraction=run.fraction,
            seed=run.seed,
            fold=run.fold,
            learned_from=LearnedFrom(
                persons=blueprint.learn["person"].nunique(),
                scans=len(blueprint.learn),
                scan_ids_sha256=hash_table(blueprint.learn[["scan_id"]]),
            ),
            encoder=blueprint.origin.plan,
            volumes=ModelVolumes(grid=self.volumes.grid.describe(), preprocess=self.volumes.recipe),
            test_time_augmentation=self.params.test_time_augmentation,
            patch=self.params.patch if isinstance(blueprint, Outline) else None,
        )

    def ingredients(
        self, run: Run, plan: ModelPlan, blueprint: Blueprint | Outline
    ) -> dict[str, Any]:
        """Return what decides the model of a run, in plain values; its hash is the key."""
        return {
            **plan.model_dump(mode="json"),
            "stage_seed": self.seed,
            "training": self.params.training(run.init) if self._is_tuned(run) else None,
            "weights": blueprint.origin.weights,
            "scans_sha256": hash_table(
                blueprint.rows[[*DESCRIBED, *blueprint.contents, *self.volumes.hashes[1:]]]
            ),
            "code_sha256": code_hash(type(blueprint).__module__),
        }

    def explain(self, run: Run, folder: Path, blueprint: Blueprint | Outline) -> None:
        """Explain a model if the parameters ask for it; else remove its explanation."""
        if isinstance(blueprint, Outline):
            return  # it shows where, by itself
        params = self.params.explain
        largest = run.fraction == max(self.params.fractions)
        _, parts = folds.places(self.scans)
        largest &= run.fold <= parts  # of a cross-validation the first repeat
        if not params or run.init not in params.initializations or not largest:
            (folder / "explanation.npz").unlink(missing_ok=True)
            return
        explain.write(
            folder,
            Network(
                copy.deepcopy(blueprint.origin.encoder), blueprint.task, mirror=self.params.mirror
            ),
            blueprint.task,
            rows=blueprint.rows,
            read=blueprint.read,
            grid=self.volumes.grid,
            steps=params.steps,
            count=math.ceil(params.scans / max(1, parts)),
            size=self.params.batch_size,
        )

    def outline_together(
        self, group: str, members: Sequence[str], made: Sequence[Run], work: Workspace
    ) -> None:
        """Write what several models of a segmentation outline as one."""
        by_name = {run.name: run for run in made}
        if not isinstance(self.tasks[by_name[members[0]].task], Segmentation):
            return
        outlines = {work.dir / name: self.blueprint(by_name[name]) for name in members}
        write_together(
            work.dir / group,
            {folder: each for folder, each in outlines.items() if isinstance(each, Outline)},
            key=hash_json([_key_of_model(folder) for folder in outlines]),
            earlier=[output / group for output in work.earlier],
        )

    def describe(self, names: Sequence[str], scans: pd.DataFrame, work: Workspace) -> None:
        """Write features/ENCODER.npz, the features of held-out scans and of those that models may
        learn from, for each frozen encoder."""
        wanted = scans[scans["split"].isin([*HELD_OUT, "train"])].drop_duplicates("scan_id")
        (work.dir / "features").mkdir(exist_ok=True)
        for path in (work.dir / "features").iterdir():
            if path.stem not in names:
                path.unlink()
        for name in names:
            file = f"features/{name}.npz"
            earlier = [output / file for output in work.earlier]
            origin = self.origins[name, self.params.seeds[0]]
            rows = wanted.sort_values("scan_id")
            write_features(
                work.dir / file, origin, rows, self.read(origin), earlier, self.volumes.hashes
            )

    def _is_tuned(self, run: Run) -> bool:
        """Return whether a model is trained, and not fitted."""
        outlined = isinstance(self.tasks[run.task], Segmentation)
        return outlined or self.params.initializations[run.init].mode == "finetune"


def open_study(
    volumes: Volumes,
    encoders: Mapping[str, Path],
    params: FinetuneParams,
    tasks: Mapping[str, Task | Segmentation],
    seed: int,
) -> Study:
    """Load and check what models start from. Raises DataError and UsageError."""
    for name, init in params.initializations.items():
        if init.encoder not in (*UNTRAINED, *encoders):
            raise UsageError(
                f"finetune.initializations.{name}: no encoder '{init.encoder}'; there is "
                f"{', '.join(encoders)}. Pretrain it (pretrain.methods), or give it with --encoder."
            )
    origins = find_origins(encoders, params.seeds, volumes, seed=seed)
    for folder in encoders.values():
        guard_leaks(volumes.usable, pretrained=read_pretrained(folder))
    return Study(volumes, volumes.usable, encoders, origins, params, tasks, seed)


def _track(work: Workspace, done: Sequence[Run]) -> None:
    """Record the history of every model along its own epochs or penalties."""
    step = 0
    for run in done:
        history = pd.read_csv(work.dir / run.name / "history.tsv", sep="\t")
        model = f"{run.task}_{run.init}_{run.fraction:g}_seed{run.seed}"
        axis = "epoch" if "epoch" in history else str(history.columns[0])
        columns = [str(column) for column in history if column != axis]
        names = {axis: axis} | {column: f"{column}/{model}" for column in columns}
        work.tracker.axis([names[column] for column in columns], axis)
        for row in history.rename(columns=names).to_dict("records"):
            work.tracker.log({str(name): value for name, value in row.items()}, step=step)
            step += 1


def _key_of_model(folder: Path) -> str | None:
    """Return the hash of run.json, which is written last; None without it."""
    path = folder / "run.json"
    return hash_json(json.loads(path.read_text())) if path.exists() else None


def _write_ensembles(
    root: Path,
    ensembles: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Task | Segmentation],
) -> None:
    """Write the ensembles whose members are all here, and remove what is none any more."""
    for path in root.glob("*/*/*/*"):
        if path.is_file() and path.parent.relative_to(root).as_posix() not in ensembles:
            path.unlink()
    for group, members in ensembles.items():
        ensemble.write(root / group, members, tasks[Path(group).parts[0]])


def _remove_models_above(folders: Iterable[Path]) -> None:
    """Remove what an earlier run without folds has left in the folders of seeds."""
    for seed in {folder.parent for folder in folders}:
        for file in seed.glob("*"):
            if file.is_file():
                file.unlink()


def _remove_all_but(folders: Iterable[Path], root: Path) -> None:
    """Remove all folders below ``root`` but these and the ones they are in."""
    kept = {path for folder in folders for path in (folder, *folder.parents)}
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
