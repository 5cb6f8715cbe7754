"""params.yaml as a whole: one section a stage, and what several stages must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import PrivateAttr, model_validator

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.encoder import read_plan, shipped
from neurofoundry.contracts.models import initialization_of
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.ingest.params import IngestParams
from neurofoundry.params import Section, Seed
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.runtime.experiment import Experiment, TrackingParams
from neurofoundry.runtime.files import hash_json
from neurofoundry.tasks import Tasks, of_one_label


class StageSections(Section):
    """The sections that a stage reads: it runs again when one of them changes, and only then."""

    tracking: TrackingParams = TrackingParams()
    """Read by every stage, and nothing runs again for it."""

    _settings: str = PrivateAttr("")

    def belongs_to(self, params: Mapping[str, Any]) -> None:
        """Note the parameters of all stages, by which a pipeline run is told from others."""
        decide = {name: value for name, value in params.items() if name != "tracking"}
        self._settings = hash_json(decide)

    @property
    def experiment(self) -> Experiment:
        """What the stage is recorded as a part of."""
        return Experiment(self.tracking, self._settings)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the sections that decide the output."""
        return tuple(name for name in cls.model_fields if name != "tracking")

    def deciding(self) -> dict[str, Any]:
        """Return the sections that decide the output, as JSON has them."""
        return self.model_dump(mode="json", by_alias=True, exclude={"tracking"})


class IngestSections(StageSections):
    """What ingest reads."""

    ingest: IngestParams
    tasks: Tasks
    seed: Seed

    @model_validator(mode="after")
    def _tasks_have_columns(self) -> IngestSections:
        _check_tasks(self.tasks, self.ingest)
        return self


class PreprocessSections(StageSections):
    """What preprocess reads."""

    preprocess: PreprocessParams


class PretrainSections(StageSections):
    """What pretrain reads."""

    pretrain: PretrainParams
    seed: Seed


class FinetuneSections(StageSections):
    """What finetune reads."""

    finetune: FinetuneParams
    tasks: Tasks
    seed: Seed

    @model_validator(mode="after")
    def _agree(self) -> FinetuneSections:
        _check_finetune(self.tasks, self.finetune)
        return self


class EvaluateSections(StageSections):
    """What evaluate reads."""

    evaluate: EvaluateParams
    tasks: Tasks
    seed: Seed


SECTIONS: dict[str, type[StageSections]] = {
    "ingest": IngestSections,
    "preprocess": PreprocessSections,
    "pretrain": PretrainSections,
    "finetune": FinetuneSections,
    "evaluate": EvaluateSections,
}

Sections = TypeVar("Sections", bound=StageSections)


AUTOMATIC_SHARDS = 16
"""Shards of fine-tuning at most where none are asked for: each is a step of the pipeline, and a
cluster keeps the status of only so many (pipelines/size.py)."""


class Params(Section):
    """Everything that params.yaml holds."""

    seed: Seed
    """Every random draw of every stage derives from it."""
    tasks: Tasks
    """Name (of a folder and in every table) to what is predicted. A cohort may have none: then
    only pretraining is evaluated."""
    ingest: IngestParams
    preprocess: PreprocessParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        _check_tasks(self.tasks, self.ingest)
        _check_finetune(self.tasks, self.finetune)
        splits = self.ingest.splits
        learned_from = {"pretrain", *(["train"] if splits.mode != "folds" else [])}
        empty = set() if splits.pretrain or splits.mode == "published" else {"pretrain"}
        if self.pretrain.methods and not learned_from & set(self.pretrain.splits) - empty:
            raise ValueError(
                f"pretrain.splits: ingest.splits gives nobody to {', '.join(self.pretrain.splits)} "
                "to pretrain on. Set ingest.splits.pretrain, such as 0.2"
                + ("" if splits.mode == "folds" else ", or pretrain.splits to [train]")
                + ", or pretrain.methods to [] where weights come from elsewhere (--encoder)"
            )
        if self.evaluate.reference not in self.finetune.initializations:
            raise ValueError(
                f"evaluate.reference: '{self.evaluate.reference}' is not one of "
                f"finetune.initializations ({', '.join(self.finetune.initializations)})"
            )
        single = of_one_label(self.tasks)
        for name in self.evaluate.prevalence:
            if name not in single or len(single[name].classes) != 2:
                raise ValueError(f"evaluate.prevalence.{name}: not one of the two-class tasks")
        promotion = self.evaluate.promotion
        if promotion and promotion.task not in single:
            raise ValueError(
                f"evaluate.promotion.task: no task '{promotion.task}' of one label a scan; there "
                f"is {', '.join(single) or 'none'}. Name one of them, or remove evaluate.promotion"
            )
        if promotion:
            self._check_promoted(promotion.initialization)
        self._check_shipped()
        return self

    def _check_shipped(self) -> None:
        """Raise ValueError where an encoder of the package does not know the grid of volumes."""
        for name, start in self.finetune.initializations.items():
            if not (folder := shipped(start.encoder)):
                continue
            spacing = read_plan(folder).grid["spacing_mm"]
            if spacing != self.preprocess.grid.spacing:
                raise ValueError(
                    f"finetune.initializations.{name}: the encoder '{start.encoder}' knows volumes "
                    f"of {spacing:g} mm only, and preprocess.grid.spacing is "
                    f"{self.preprocess.grid.spacing:g}. Remove {name}, also from "
                    "finetune.explain and evaluate.promotion"
                )

    def _check_promoted(self, name: str) -> None:
        """Raise ValueError unless finetune makes what is to be promoted."""
        if initialization_of(name) not in self.finetune.initializations:
            raise ValueError(f"evaluate.promotion: no initialization '{name}'")
        members = len(self.finetune.seeds) * self.ingest.splits.rounds
        if initialization_of(name) != name and members < 2:
            raise ValueError(
                f"evaluate.promotion: {name} would be one model. Give several finetune.seeds, such "
                "as [0, 1, 2], or folds (ingest.splits)"
            )

    def read_by(self, sections: type[Sections]) -> Sections:
        """Return only what a stage reads."""
        return sections.model_validate(
            {name: getattr(self, name) for name in sections.model_fields}
        )

    def finetune_shards(self, asked: int) -> int:
        """Return the number of shards of the models to make: ``asked``, or a few if that is 0."""
        most = self.finetune.most_shards(len(self.tasks), folds=self.ingest.splits.rounds)
        return max(1, asked or min(most, AUTOMATIC_SHARDS))


def _check_folders(section: str, names: Iterable[str]) -> None:
    """Raise ValueError where names differ in case alone: on many a disk their folders are one."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"{section}: '{other}' and '{name}' differ in case alone, and on disks of Macs and "
                "of Windows their folders would be one. Rename one of them"
            )


def _check_finetune(tasks: Tasks, finetune: FinetuneParams) -> None:
    """Raise ValueError where initializations cannot be told apart on a disk, or when nothing learns
    from the patches that are asked for."""
    _check_folders("finetune.initializations", finetune.initializations)
    if finetune.patch and len(of_one_label(tasks)) == len(tasks):
        raise ValueError("finetune.patch: no effect, as no task is a segmentation. Remove it")


def _check_tasks(tasks: Tasks, ingest: IngestParams) -> None:
    """Raise ValueError when tasks cannot be told apart on a disk, or one needs a column that the
    cohort will not have."""
    _check_folders("tasks", tasks)
    known = {*SCANS.columns, *ingest.columns}
    for name, task in tasks.items():
        if task.column not in task.declared_columns and (task.column != name or name in known):
            raise ValueError(
                f"tasks.{name}: the column of label images has the name of their task, which no "
                "other column may have. Rename the task, and leave out its 'column'"
            )
        for column in task.declared_columns:
            if column not in known:
                raise ValueError(
                    f"tasks.{name}: no column '{column}'; ingest.columns declares "
                    f"{', '.join(sorted(ingest.columns))}"
                )
