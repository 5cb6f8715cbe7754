"""models/: the declared runs, what each model is, and what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pandera.pandas as pa
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.documents import read_document, write_document
from neurofoundry.contracts.encoder import Plan
from neurofoundry.contracts.recipe import Recipe
from neurofoundry.contracts.volumes import check_described
from neurofoundry.params import Section
from neurofoundry.runtime.links import check_links
from neurofoundry.tasks import Segmentation, Task, parse_task

DONE, NOT_ESTIMABLE = "done", "not estimable"

RUNS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "init": pa.Column(str),
        "fraction": pa.Column(float, [pa.Check.gt(0), pa.Check.le(1)]),
        "seed": pa.Column(int),
        "fold": pa.Column(int, pa.Check.ge(1), required=False),
        "status": pa.Column(str, pa.Check.isin([DONE, NOT_ESTIMABLE])),
        "reason": pa.Column(str, nullable=True),
    },
    pa.Check(lambda table: not table.duplicated(_run_columns(table)).any(), error="a run twice"),
    coerce=True,
)
"""models/runs.tsv: one row per declared run; ``reason`` says why one is not estimable. ``fold`` is
there in a cross-validation: the number of a fold of all repeats, from 1."""


def _run_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in ("task", "init", "fraction", "seed", "fold") if name in table]


FILES = ("model.safetensors", "plan.json", "trust.npz")
"""The files that a prediction is made of; that of a segmentation is made of the first two."""


def run_folder(task: str, init: str, fraction: float, seed: int, fold: int = 0) -> Path:
    """Return the folder of a model within models/; ``fold`` is 0 without cross-validation."""
    folder = group_folder(task, init, fraction) / str(seed)
    return folder / f"fold-{fold}" if fold else folder


def group_folder(task: str, init: str, fraction: float) -> Path:
    """Return the folder of the models of all seeds and folds within models/."""
    return Path(task, init, str(fraction))


ENSEMBLE = "-ensemble"
"""End of the names of ensembles, after that of the initialization of their models."""


def initialization_of(name: str) -> str:
    """Return the initialization of the models of an ensemble, or of a single one."""
    return name.removesuffix(ENSEMBLE)


def counterpart(name: str, reference: str) -> str:
    """Return what a model is compared with: with the reference, or an ensemble with the reference's
    ensemble, which is averaged over as many."""
    return f"{reference}{ENSEMBLE}" if name.endswith(ENSEMBLE) else reference


def ensembles(runs: pd.DataFrame) -> list[str]:
    """Return the names of the ensembles that the rows of runs.tsv can make: of each initialization
    that has models of several seeds or folds."""
    made = [name for name in ("seed", "fold") if name in runs]
    counts = runs.drop_duplicates(["init", *made])["init"].value_counts(sort=False)
    return [f"{init}{ENSEMBLE}" for init in dict.fromkeys(runs["init"]) if counts[init] > 1]


def files_of(folder: Path) -> tuple[str, ...]:
    """Return the files that make a model, or an ensemble of models, by their path in ``folder``.

    Raises DataError.
    """
    together = read_ensemble(folder)
    if together is None:
        return _made_of(folder)
    members = (
        f"{member}/{name}" for member in together.members for name in _made_of(folder / member)
    )
    return ("ensemble.json", *members)


def _made_of(folder: Path) -> tuple[str, ...]:
    """Return the files of a single model."""
    outlines = (folder / "plan.json").exists() and isinstance(
        read_model_plan(folder).predicts, Segmentation
    )
    return FILES[:2] if outlines else FILES


DESCRIBED = ("scan_id", "dataset", "person", "session", "split", "site", "label")
"""Columns of predictions.tsv that precede those of the output."""

PREDICTIONS = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(str, unique=True),
        "person": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(HELD_OUT)),
        "label": pa.Column(str),
    },
    coerce=True,
    strict=False,  # further columns describe the scan, and the outputs follow
)
"""predictions.tsv: one row per scan of val, test and ood."""

FITTED = pa.DataFrameSchema(
    {"label": pa.Column(float), "output": pa.Column(float)}, coerce=True, strict=False
)
"""fitted.tsv of a regression: one row per scan that it has learned from."""


class Start(Section):
    """Where a model starts from, and how much of it learns."""

    name: str
    """Its name in finetune.initializations."""
    encoder: str
    mode: Literal["finetune", "probe"]


class LearnedFrom(Section):
    """The labelled scans that a model has learned from."""

    persons: int
    scans: int
    scan_ids_sha256: str


class ModelVolumes(Section):
    """The volumes that a model was trained on, so that new scans can be preprocessed alike."""

    grid: dict[str, Any]
    preprocess: Recipe

    @field_validator("grid")
    @classmethod
    def _a_grid(cls, described: dict[str, Any]) -> dict[str, Any]:
        return check_described(described)


class ModelPlan(Section):
    """plan.json of a model: all that a user must know about the weights beside it."""

    schema_version: Literal[1] = 1
    task: dict[str, Any]
    """The task as it was declared, with its ``name``."""
    initialization: Start
    fraction: float
    seed: int
    fold: int = 0
    """Of a cross-validation, from 1."""
    learned_from: LearnedFrom
    encoder: Plan
    volumes: ModelVolumes
    test_time_augmentation: Literal["none", "mirror"] = "none"
    """mirror: predictions are those for a scan and for its mirror image, averaged."""
    patch: int | None = None
    """The edge in voxels of the windows by which a segmentation outlines a scan; left out where it
    sees the whole volume."""

    @model_serializer(mode="wrap")
    def _without_windows(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.patch is None:
            values.pop("patch", None)
        return values

    @field_validator("task")
    @classmethod
    def _a_named_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("name"):
            raise ValueError("the task has no name")
        _task(values)
        return values

    @property
    def predicts(self) -> Task | Segmentation:
        """The task as an object."""
        return _task(self.task)

    @property
    def weights(self) -> Plan:
        """The plan of the encoder, with the grid of the model's own volumes."""
        return self.encoder.model_copy(update={"grid": self.volumes.grid})


def _task(values: dict[str, Any]) -> Task | Segmentation:
    return parse_task({name: value for name, value in values.items() if name != "name"})


def read_model_plan(folder: Path) -> ModelPlan:
    """Read plan.json in the folder of a model.

    Raises DataError, also where something in the folder is a link out of it.
    """
    if (folder / "plan.json").exists():
        check_links(folder)
    return read_document(
        folder / "plan.json",
        ModelPlan,
        what="the plan of a model",
        remedy="Give a folder models/TASK/INIT/FRACTION/SEED (of a cross-validation, a fold in "
        "it), models/TASK/INIT/FRACTION for all of its models as one, or an output of promote; if "
        "it is older, run finetune again",
    )


class EnsemblePlan(Section):
    """ensemble.json: the models of all seeds and folds as one, whose predictions are averaged."""

    schema_version: Literal[1] = 1
    members: tuple[Annotated[str, Field(pattern=r"^[0-9]+(/fold-[0-9]+)?$")], ...] = Field(
        min_length=2
    )
    """The folders of its models, within that of ensemble.json."""
    temperature: float | None
    """As in trust.npz of a model, of the averaged predictions for the validation scans; null where
    there is none."""
    limits: tuple[float | None, ...] = ()
    calibrated_on: tuple[int, ...] = ()
    """As in trust.npz: limits of 90 % sets or intervals, and how many persons each rests on."""
    distance_limit: float | None
    """null of a segmentation, which has no measure of distance."""


def read_ensemble(folder: Path) -> EnsemblePlan | None:
    """Read ensemble.json; None where the folder is that of a single model. Raises DataError."""
    if not (folder / "ensemble.json").exists():
        return None
    check_links(folder)
    return read_document(
        folder / "ensemble.json",
        EnsemblePlan,
        what="an ensemble of models",
        remedy="Give a folder models/TASK/INIT/FRACTION or an output of promote",
    )


def write_ensemble(folder: Path, plan: EnsemblePlan) -> None:
    """Write ensemble.json into the folder of a share of the labels."""
    write_document(folder / "ensemble.json", plan, EnsemblePlan)


def write_model_plan(folder: Path, plan: ModelPlan) -> None:
    """Write plan.json into the folder of a model."""
    write_document(folder / "plan.json", plan, ModelPlan)
