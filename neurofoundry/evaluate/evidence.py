"""The evidence of a task: its held-out scans, and what every model predicts for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import HELD_OUT, TESTED
from neurofoundry.contracts.models import DONE, ENSEMBLE, FITTED, PREDICTIONS, run_folder
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.stats import intervals
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task
from neurofoundry.tasks.base import BASELINE


@dataclass(frozen=True, eq=False)
class Model:
    """The predictions behind one row of a table: all seeds of an initialization, their ensemble, or
    a baseline."""

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
    members: int = 1
    """Trained models whose predictions are averaged behind each output for a new person."""

    @property
    def is_ensemble(self) -> bool:
        """Whether this is the ensemble of an initialization's models."""
        return self.name.endswith(ENSEMBLE)

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

        New sites have none of those whom the models of a cross-validation have learned from.
        """
        if self.fold_of is None or split == "ood":
            return 1.0
        return intervals.widening(len(np.unique(self.fold_of[0])))

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
        """The initializations, trained with all labels (``fraction``), and their ensembles."""
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
    largest = runs["fraction"].max()
    made: list[Model] = []
    for (init, fraction), rows in runs.groupby(["init", "fraction"], sort=False):
        model, read = _read_model(str(init), rows, evidence, models)
        made.append(model)
        if fraction == largest and (ensemble := _ensemble(model, read, evidence)):
            made.append(ensemble)
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


@dataclass(frozen=True, eq=False)
class _Seed:
    """What the models of one seed, of a cross-validation in one repeat, have left."""

    outputs: Values
    """(scans, …): of each scan the output of the model that `made_by` names."""
    elsewhere: Values
    """(folds, scans of ood, …): the outputs of all of them for new sites."""
    fitted: Mapping[int, tuple[Values, Values]]
    """As in Model."""


def _read_model(
    init: str, runs: pd.DataFrame, evidence: Evidence, models: Path
) -> tuple[Model, list[_Seed]]:
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
    model = Model(
        name=init,
        fraction=fraction,
        seeds=tuple(seed for seed, _ in seeds),
        outputs=np.array([each.outputs for each in of_seeds]),
        reason="" if seeds else str(reasons.iloc[0] if len(reasons) else "no run done"),
        fitted=tuple(each.fitted for each in of_seeds),
    )
    return model, of_seeds


def _ensemble(model: Model, read: Sequence[_Seed], evidence: Evidence) -> Model | None:
    """Return the models of all seeds and folds as one; None where there is one, or all agree.

    Each output averages those of the models that have not learned from the person: in a cross-
    validation the ones of a fold of every repeat, at new sites all.
    """
    members = sum(len(each.elsewhere) for each in read)
    agree = len(read) > 1 and (model.outputs == model.outputs[:1]).all()
    if members < 2 or (agree and evidence.fold_of is None):
        return None
    outputs = evidence.task.average(model.outputs).copy()
    outputs[evidence.inside("ood")] = evidence.task.average(
        np.concatenate([each.elsewhere for each in read])
    )
    return replace(
        model,
        name=f"{model.name}{ENSEMBLE}",
        seeds=model.seeds[:1],
        outputs=outputs[None],
        fitted=_fitted_together(evidence.task, model.fitted),
        members=members,
    )


def _fitted_together(
    task: Task, fitted: Sequence[Mapping[int, tuple[Values, Values]]]
) -> tuple[Mapping[int, tuple[Values, Values]], ...]:
    """Return ``fitted`` of an ensemble: averages, of models that have learned from the same scans;
    nothing where seeds have drawn other shares of the labels."""
    together = {}
    for fold, (labels, _) in fitted[0].items():
        same = [each[fold] for each in fitted if fold in each]
        if all(np.array_equal(each, labels) for each, _ in same):
            together[fold] = labels, task.average(np.array([outputs for _, outputs in same]))
    return (together,)


def _read_seed(
    init: str, fraction: float, seed: int, repeat: int, evidence: Evidence, models: Path
) -> _Seed:
    """Read the outputs of a seed, and what its models have been fitted to."""
    outputs: Values = np.empty(0)
    elsewhere, fitted = [], {}
    ood = evidence.inside("ood")
    for fold, made in evidence.by_fold(repeat):
        folder = models / run_folder(evidence.name, init, fraction, seed, fold)
        rows = made | ood
        values = _read_outputs(folder, evidence, rows)
        if not len(outputs):
            outputs = np.empty((len(rows), *values.shape[1:]))
        outputs[made] = values[made[rows]]
        elsewhere.append(values[ood[rows]])
        if "train" in evidence.task.corrected_on and (pair := _read_fitted(folder)):
            fitted[fold] = pair
    return _Seed(outputs, np.array(elsewhere), fitted)


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
