"""The evidence of a task: its held-out scans, and what every model predicts for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.models import DONE, FITTED, PREDICTIONS, run_folder
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
    """In a repeated cross-validation each seed as often as there are repeats."""
    outputs: Values
    """(seeds, scans, classes) probabilities, or (seeds, scans) values; scans as in Evidence."""
    reason: str = ""
    """Why there is no output; then ``seeds`` is empty."""
    fitted: tuple[Mapping[int, tuple[Values, Values]], ...] = ()
    """For each seed of a regression, by the fold of its models (0: no cross-validation), the labels
    and outputs (scans,) of the scans learned from; nothing where finetune has not kept them."""

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
    """Rows of volumes/scans.tsv in val, test and ood, by scan_id. In a cross-validation everybody
    is tested by the models of one fold and validates those of another: two rows a scan."""
    targets: Values
    """(scans,): index of the class, or the value."""
    models: tuple[Model, ...]
    fold_of: NDArray[np.int64] | None = None
    """(repeats, scans): the fold of a cross-validation whose model has made the output."""

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
    def made_by(self) -> NDArray[np.int64]:
        """``fold_of``; without cross-validation zeros, (1, scans)."""
        none = np.zeros((1, len(self.targets)), np.int64)
        return none if self.fold_of is None else self.fold_of

    def by_fold(self, number: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield the folds of the ``number``-th of a model's ``seeds``, each with the scans (scans,)
        whose outputs its model has made; without cross-validation one, with all scans."""
        made_by = self.made_by[number % len(self.made_by)]
        for fold in np.unique(made_by):
            yield int(fold), made_by == fold

    def widening(self, split: str) -> float:
        """Return by how much an interval of a split is wider than its persons alone would make it.

        Models of different folds share persons whom they have learned from, and differ by these as
        much as by those whom they are tested on (Nadeau & Bengio, Machine Learning 52, 2003). A
        cross-validation counts as if as many persons were tested as each model has learned from:
        k − 2 of k folds. benchmarks/cross_validation.py has the coverage.
        """
        if self.fold_of is None or split == "ood":
            return 1.0
        count = len(np.unique(self.fold_of[0]))
        return math.sqrt(count / (count - 2))

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
    fold_of = None
    if folds.count(inputs.scans):
        scans, fold_of = _judged_by_fold(scans)
    evidence = Evidence(name, task, scans, task.targets(scans), (), fold_of)
    runs = inputs.runs[inputs.runs["task"] == name]
    made = [
        _read_model(str(names[0]), rows, evidence, models)
        for names, rows in runs.groupby(["init", "fraction"], sort=False)
    ]
    return replace(evidence, models=tuple(made))


def _judged_by_fold(scans: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the scans as tested and, once more, as validating, with ``fold_of`` of Evidence."""
    validating = scans["split"] == "test"
    place, count = folds.places(scans)
    own = place + count * np.arange(place.shape[1])
    # The fold before the one in which somebody is tested: in it, they validate.
    before = (place - 2) % count + 1 + count * np.arange(place.shape[1])
    both = pd.concat([scans, scans[validating].assign(split="val")])
    return both, np.concatenate([own, before[validating]]).T


def _read_model(init: str, runs: pd.DataFrame, evidence: Evidence, models: Path) -> Model:
    """Read the seeds of an initialization with one share of the labels."""
    if init.startswith(BASELINE):
        raise DataError(
            f"{models / 'runs.tsv'}: '{init}': names that begin with '{BASELINE}' are reserved for "
            "the baselines. Name the initialization differently."
        )
    fraction = float(runs["fraction"].iloc[0])
    done = runs[runs["status"] == DONE]
    seeds = [
        (int(seed), repeat)
        for seed in sorted(set(done["seed"]))
        for repeat in range(len(evidence.made_by))
    ]
    of_seeds = [
        _read_seed(init, fraction, seed, repeat, evidence, models) for seed, repeat in seeds
    ]
    reasons = runs["reason"].dropna()
    return Model(
        name=init,
        fraction=fraction,
        seeds=tuple(seed for seed, _ in seeds),
        outputs=np.array([outputs for outputs, _ in of_seeds]),
        reason="" if seeds else str(reasons.iloc[0] if len(reasons) else "no run done"),
        fitted=tuple(fitted for _, fitted in of_seeds),
    )


def _read_seed(
    init: str, fraction: float, seed: int, repeat: int, evidence: Evidence, models: Path
) -> tuple[Values, Mapping[int, tuple[Values, Values]]]:
    """Read the outputs of a seed for all scans, each from the model that `made_by` names, and what
    these models have been fitted to."""
    outputs: Values = np.empty(0)
    fitted = {}
    for fold, rows in evidence.by_fold(repeat):
        folder = models / run_folder(evidence.name, init, fraction, seed, fold)
        values = _read_outputs(folder, evidence, rows)
        if not len(outputs):
            outputs = np.empty((len(rows), *values.shape[1:]))
        outputs[rows] = values
        if "train" in evidence.task.corrected_on and (pair := _read_fitted(folder)):
            fitted[fold] = pair
    return outputs, fitted


def _read_outputs(folder: Path, evidence: Evidence, rows: NDArray[np.bool_]) -> Values:
    """Read predictions.tsv of a run for some scans of the evidence: (scans, classes) probabilities,
    or (scans,) values."""
    path = folder / "predictions.tsv"
    table = _align(read_table(path, PREDICTIONS), evidence, rows, path)
    _check_cohort(table, evidence, rows, path)
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


def _align(
    table: pd.DataFrame, evidence: Evidence, rows: NDArray[np.bool_], path: Path
) -> pd.DataFrame:
    """Return predictions by scan_id in the order of the evidence, if they are for its scans."""
    scan_ids = evidence.scans["scan_id"][rows]
    missing = [column for column in evidence.task.output_columns if column not in table]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}. "
            "The models belong to other parameters: run finetune again."
        )
    table = table.set_index("scan_id")
    if evidence.fold_of is not None:  # models of every fold predict all out-of-distribution scans
        table = table[(table["split"] != "ood") | table.index.isin(scan_ids)]
    absent, surplus = scan_ids[~scan_ids.isin(table.index)], len(table) - len(scan_ids)
    if len(absent) or surplus:
        raise DataError(
            f"{path}: {len(table)} scans, but {len(scan_ids)} usable scans of val, test and ood "
            f"have a label and are eligible; {len(absent)} of these are missing"
            + (f", such as {absent.iloc[0]}" if len(absent) else "")
            + ". Models are only comparable on the same scans: run finetune again."
        )
    return table.loc[scan_ids]


def _check_cohort(
    table: pd.DataFrame, evidence: Evidence, rows: NDArray[np.bool_], path: Path
) -> None:
    """Refuse predictions whose persons, splits or labels are not those of the cohort."""
    again = "The models belong to another cohort: run finetune again."
    for column in ("person", "split"):
        differs = table[column].to_numpy() != evidence.scans[column][rows].to_numpy()
        if differs.any():
            first = table.index[differs][0]
            raise DataError(
                f"{path}: {column} of {first} is '{table[column][first]}', but not in "
                f"volumes/scans.tsv. {again}"
            )
    labels: Values = evidence.task.numbers(table["label"]).to_numpy(np.float64)
    differs = ~np.isclose(labels, evidence.targets[rows], rtol=1e-6, atol=1e-6)
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
