"""The evidence of a task: its held-out scans, and what every model predicts for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.models import DONE, FITTED, PREDICTIONS
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task
from neurofoundry.tasks.base import BASELINE

TESTED = ("test", "ood")
"""The splits that conclusions rest on: familiar and new sites."""


@dataclass(frozen=True, eq=False)
class Model:
    """The predictions behind one row of a table: all seeds of an initialization, or a baseline."""

    name: str
    fraction: float
    """Share of the labels that it has learned from."""
    seeds: tuple[int, ...]
    outputs: Values
    """(seeds, scans, classes) probabilities, or (seeds, scans) values; scans as in Evidence."""
    reason: str = ""
    """Why there is no output; then ``seeds`` is empty."""
    fitted: tuple[tuple[Values, Values] | None, ...] = ()
    """For each seed of a regression the labels and outputs (scans,) of the scans that it has
    learned from; None where finetune has not kept them."""

    @property
    def is_baseline(self) -> bool:
        """Whether this is a baseline: fitted here, without a network."""
        return self.name.startswith(BASELINE)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A task, the scans held out of training that can serve it, and the models' predictions."""

    name: str
    task: Task
    scans: pd.DataFrame
    """Rows of volumes/scans.tsv in val, test and ood, by scan_id."""
    targets: Values
    """(scans,): index of the class, or the value."""
    models: tuple[Model, ...]

    @property
    def labels(self) -> NDArray[Any]:
        """``targets`` as the metrics take them."""
        return self.task.typed(self.targets)

    @property
    def persons(self) -> NDArray[Any]:
        """(scans,): whose each scan is."""
        return self.scans["person"].to_numpy()

    def inside(self, split: str) -> NDArray[np.bool_]:
        """(scans,): whether each is in a split."""
        return (self.scans["split"] == split).to_numpy(bool)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of ``TESTED`` that have scans."""
        return tuple(split for split in TESTED if self.inside(split).any())

    @property
    def fraction(self) -> float:
        """The largest share of the labels that models learned from: the one that is reported."""
        return max((m.fraction for m in self.models if not m.is_baseline), default=1.0)

    @property
    def trained(self) -> tuple[Model, ...]:
        """The initializations, trained with all labels (``fraction``)."""
        return tuple(m for m in self.models if not m.is_baseline and m.fraction == self.fraction)


def read_evidence(name: str, task: Task, inputs: Inputs, models: Path) -> Evidence:
    """Read the predictions of all runs of a task for its held-out scans.

    Raises DataError when predictions are not about exactly these scans, or are not numbers.
    """
    usable = inputs.scans[inputs.scans["usable"]]
    scans = task.select(usable[usable["split"].isin(HELD_OUT)]).sort_values("scan_id")
    evidence = Evidence(name, task, scans, task.targets(scans), ())
    runs = inputs.runs[inputs.runs["task"] == name]
    made = [
        _read_model(str(names[0]), rows, evidence, models)
        for names, rows in runs.groupby(["init", "fraction"], sort=False)
    ]
    return Evidence(name, task, scans, evidence.targets, tuple(made))


def _read_model(init: str, runs: pd.DataFrame, evidence: Evidence, models: Path) -> Model:
    """Read the seeds of an initialization with one share of the labels."""
    if init.startswith(BASELINE):
        raise DataError(
            f"{models / 'runs.tsv'}: '{init}': names that begin with '{BASELINE}' are reserved for "
            "the baselines. Name the initialization differently."
        )
    fraction = float(runs["fraction"].iloc[0])
    done = runs[runs["status"] == DONE].sort_values("seed")
    folders = [models / evidence.name / init / str(fraction) / str(seed) for seed in done["seed"]]
    outputs = [_read_outputs(folder, evidence) for folder in folders]
    reasons = runs["reason"].dropna()
    keeps_fitted = "train" in evidence.task.corrected_on
    return Model(
        name=init,
        fraction=fraction,
        seeds=tuple(int(seed) for seed in done["seed"]),
        outputs=np.array(outputs),
        reason="" if outputs else str(reasons.iloc[0] if len(reasons) else "no run done"),
        fitted=tuple(_read_fitted(folder) for folder in folders) if keeps_fitted else (),
    )


def _read_outputs(folder: Path, evidence: Evidence) -> Values:
    """Read predictions.tsv of a run: (scans, classes) probabilities, or (scans,) values."""
    path = folder / "predictions.tsv"
    table = _align(read_table(path, PREDICTIONS), evidence, path)
    _check_cohort(table, evidence, path)
    columns = list(evidence.task.output_columns)
    outputs = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    broken = ~np.isfinite(outputs).all(axis=1)
    if broken.any():
        raise DataError(
            f"{path}: {broken.sum()} of {len(outputs)} predictions are not numbers, the first for "
            f"{table.index[broken][0]}. Training has diverged: lower finetune.learning_rate, or "
            "leave this run out."
        )
    if fault := evidence.task.fault(outputs, list(table.index)):
        raise DataError(f"{path}: {fault}.")
    shaped: Values = outputs[:, 0] if len(columns) == 1 else outputs
    return shaped


def _align(table: pd.DataFrame, evidence: Evidence, path: Path) -> pd.DataFrame:
    """Return predictions by scan_id in the order of the evidence, if they are for its scans."""
    scan_ids = evidence.scans["scan_id"]
    missing = [column for column in evidence.task.output_columns if column not in table]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}. "
            "The models belong to other parameters: run finetune again."
        )
    table = table.set_index("scan_id")
    absent, surplus = scan_ids[~scan_ids.isin(table.index)], len(table) - len(scan_ids)
    if len(absent) or surplus:
        raise DataError(
            f"{path}: {len(table)} scans, but {len(scan_ids)} usable scans of val, test and ood "
            f"have a label and are eligible; {len(absent)} of these are missing"
            + (f", such as {absent.iloc[0]}" if len(absent) else "")
            + ". Models are only comparable on the same scans: run finetune again."
        )
    return table.loc[scan_ids]


def _check_cohort(table: pd.DataFrame, evidence: Evidence, path: Path) -> None:
    """Refuse predictions whose persons, splits or labels are not those of the cohort."""
    again = "The models belong to another cohort: run finetune again."
    for column in ("person", "split"):
        differs = table[column].to_numpy() != evidence.scans[column].to_numpy()
        if differs.any():
            first = table.index[differs][0]
            raise DataError(
                f"{path}: {column} of {first} is '{table[column][first]}', but not in "
                f"volumes/scans.tsv. {again}"
            )
    labels: Values = evidence.task.numbers(table["label"]).to_numpy(np.float64)
    differs = ~np.isclose(labels, evidence.targets, rtol=1e-6, atol=1e-6)
    if differs.any():
        first = table.index[differs][0]
        raise DataError(
            f"{path}: the label of {first} is '{table['label'][first]}', but not in "
            f"volumes/scans.tsv. {again}"
        )


def _read_fitted(folder: Path) -> tuple[Values, Values] | None:
    """Read fitted.tsv of a run: labels and outputs of the scans that it has learned from."""
    path = folder / "fitted.tsv"
    if not path.exists():
        return None
    table = read_table(path, FITTED)
    return table["label"].to_numpy(np.float64), table["output"].to_numpy(np.float64)
