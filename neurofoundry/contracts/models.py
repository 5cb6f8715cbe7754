"""models/: the declared runs, what each model is, and what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pandera.pandas as pa
from pydantic import field_validator

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.documents import read_document, write_document
from neurofoundry.contracts.encoder import Plan
from neurofoundry.contracts.recipe import Recipe
from neurofoundry.contracts.volumes import check_described
from neurofoundry.params import Section
from neurofoundry.runtime.links import check_links
from neurofoundry.tasks import Task, parse_task

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


def run_folder(task: str, init: str, fraction: float, seed: int, fold: int = 0) -> Path:
    """Return the folder of a model within models/; ``fold`` is 0 without cross-validation."""
    folder = Path(task, init, str(fraction), str(seed))
    return folder / f"fold-{fold}" if fold else folder


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
    learned_from: LearnedFrom
    encoder: Plan
    volumes: ModelVolumes

    @field_validator("task")
    @classmethod
    def _a_named_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("name"):
            raise ValueError("the task has no name")
        _task(values)
        return values

    @property
    def predicts(self) -> Task:
        """The task as an object."""
        return _task(self.task)

    @property
    def weights(self) -> Plan:
        """The plan of the encoder, with the grid of the model's own volumes."""
        return self.encoder.model_copy(update={"grid": self.volumes.grid})


def _task(values: dict[str, Any]) -> Task:
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
        remedy="Give a folder models/TASK/INIT/FRACTION/SEED or an output of promote; if it is "
        "older, run finetune again",
    )


def write_model_plan(folder: Path, plan: ModelPlan) -> None:
    """Write plan.json into the folder of a model."""
    write_document(folder / "plan.json", plan, ModelPlan)
