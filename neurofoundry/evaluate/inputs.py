"""What the earlier stages left, read and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurofoundry.contracts.cohort import EXCLUDED, HELD_OUT, SCANS
from neurofoundry.contracts.encoder import (
    HISTORY,
    Plan,
    PretrainedOn,
    find_encoders,
    read_plan,
    read_pretrained,
)
from neurofoundry.contracts.models import FITTED, PREDICTIONS, RUNS
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import DataError
from neurofoundry.runtime import tracking
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task


@dataclass(frozen=True, eq=False)
class Model:
    """What one row of a table predicts: the seeds of an initialization, or a floor."""

    name: str
    fraction: float
    seeds: tuple[int, ...]
    outputs: Values
    """(seeds, scans, classes) probabilities, or (seeds, scans) values; scans as in Evidence."""
    reason: str = ""
    """Why there is no output; then ``seeds`` is empty."""
    fitted: tuple[tuple[Values, Values] | None, ...] = ()
    """Of each seed of a regression the labels and outputs (scans,) of those that it has learned
    from; None where finetune has not kept them."""

    @property
    def is_floor(self) -> bool:
        return self.name.startswith("floor-")


@dataclass(frozen=True, eq=False)
class Evidence:
    """A task, everybody held out of training who can be judged, and what the models say."""

    name: str
    task: Task
    scans: pd.DataFrame
    """Rows of volumes/scans.tsv in val, test and ood, by scan_id."""
    targets: Values
    """(scans,): index of the class, or the value."""
    models: tuple[Model, ...]

    @property
    def labels(self) -> Any:
        """``targets`` as the metrics take them."""
        return self.task.typed(self.targets)

    @property
    def fraction(self) -> float:
        """The largest share of the labels that models learned from: the one that is reported."""
        return max((m.fraction for m in self.models if not m.is_floor), default=1.0)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What is known of an encoder."""

    name: str
    folder: Path
    plan: Plan
    seen: PretrainedOn
    history: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Inputs:
    """The folders of the four earlier stages."""

    scans: pd.DataFrame
    """volumes/scans.tsv: the whole cohort, with ``usable`` and ``reason``."""
    excluded: pd.DataFrame
    encoders: tuple[Pretrained, ...]
    runs: pd.DataFrame
    records: Mapping[str, Mapping[str, Any]]
    """stage.json of each stage that has one; several encoders: pretrain/NAME."""

    def starts_from(self, initialization: str) -> str | None:
        """The encoder of an initialization, as far as finetune has recorded it."""
        try:
            declared = self.records["finetune"]["params"]["finetune"]["initializations"]
            return str(declared[initialization]["encoder"])
        except (KeyError, TypeError):
            return None

    @property
    def pretrained_on(self) -> frozenset[str]:
        """Every person that an encoder is known to have seen."""
        return frozenset().union(*(each.seen.persons or () for each in self.encoders))

    def provenance(self) -> dict[str, dict[str, Any]]:
        """With what each earlier stage ran: its code, its data and its parameters, without paths
        and dates."""
        names = ("package_version", "git_commit", "code_sha256", "data_version")
        return {
            stage: {name: record.get(name, "") for name in names}
            | {"params": tracking.public(record.get("params", {}))}
            for stage, record in self.records.items()
        }


def read(*, cohort_dir: Path, volumes: Volumes, encoder: Sequence[Path], models: Path) -> Inputs:
    """Read the tables. Raises DataError on a broken contract, and on leakage."""
    scans = volumes.scans
    listed = read_table(cohort_dir / "scans.tsv", SCANS)
    if set(listed["scan_id"]) != set(scans["scan_id"]):
        raise DataError(
            f"{volumes.folder / 'scans.tsv'}: {len(scans)} scans, but the cohort "
            f"({cohort_dir / 'scans.tsv'}) has {len(listed)} or others. Run preprocess again."
        )
    found = tuple(_read_encoder(folder) for folder in find_encoders(encoder).values())
    for each in found:
        guard_leaks(scans, pretrained=each.seen)
    folders = {"ingest": cohort_dir, "preprocess": volumes.folder}
    folders |= {f"pretrain/{each.name}": each.folder for each in found} | {"finetune": models}
    return Inputs(
        scans=scans,
        excluded=read_table(cohort_dir / "excluded.tsv", EXCLUDED),
        encoders=found,
        runs=read_table(models / "runs.tsv", RUNS),
        records={
            name: _read_json(folder / "stage.json")
            for name, folder in folders.items()
            if (folder / "stage.json").exists()
        },
    )


def read_evidence(name: str, task: Task, inputs: Inputs, models: Path) -> Evidence:
    """The held-out scans of a task and the predictions of all its runs.

    Raises DataError when predictions are not about exactly these scans, or are not numbers.
    """
    usable = inputs.scans[inputs.scans["usable"]]
    chosen = task.select(usable[usable["split"].isin(HELD_OUT)]).sort_values("scan_id")
    evidence = Evidence(name, task, chosen, task.targets(chosen), ())
    runs = inputs.runs[inputs.runs["task"] == name]
    found = []
    for names, rows in runs.groupby(["init", "fraction"], sort=False):
        init, fraction = str(names[0]), float(rows["fraction"].iloc[0])
        if init.startswith("floor-"):
            raise DataError(
                f"{models / 'runs.tsv'}: '{init}': names that begin with 'floor-' are taken by "
                "the floors. Name the initialization differently."
            )
        done = rows[rows["status"] == "done"].sort_values("seed")
        made = [models / name / init / str(fraction) / str(seed) for seed in done["seed"]]
        outputs = [_read_outputs(folder, evidence) for folder in made]
        reasons = rows["reason"].dropna()
        found.append(
            Model(
                name=init,
                fraction=fraction,
                seeds=tuple(int(seed) for seed in done["seed"]),
                outputs=np.array(outputs),
                reason="" if outputs else str(reasons.iloc[0] if len(reasons) else "no run done"),
                fitted=tuple(_read_fitted(folder) for folder in made)
                if "train" in task.corrected_on
                else (),
            )
        )
    return Evidence(name, task, chosen, evidence.targets, tuple(found))


def _read_outputs(folder: Path, evidence: Evidence) -> Values:
    path = folder / "predictions.tsv"
    task, scans = evidence.task, evidence.scans
    table = read_table(path, PREDICTIONS)
    columns = list(task.output_columns)
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}. "
            "The models belong to other parameters: run finetune again."
        )
    table = table.set_index("scan_id")
    absent, surplus = scans["scan_id"][~scans["scan_id"].isin(table.index)], len(table) - len(scans)
    if len(absent) or surplus:
        raise DataError(
            f"{path}: {len(table)} scans, but {len(scans)} usable scans of val, test and ood have "
            f"a label and are eligible; {len(absent)} of these are missing"
            + (f", such as {absent.iloc[0]}" if len(absent) else "")
            + ". Models are only comparable on the same scans: run finetune again."
        )
    table = table.loc[scans["scan_id"]]
    for column in ("person", "split"):
        differs = table[column].to_numpy() != scans[column].to_numpy()
        if differs.any():
            first = table.index[differs][0]
            raise DataError(
                f"{path}: {column} of {first} is '{table[column][first]}', but not in "
                "volumes/scans.tsv. The models belong to another cohort: run finetune again."
            )
    labels = table["label"]
    truth = task.numbers(labels).to_numpy(np.float64)
    differs = ~np.isclose(truth, evidence.targets, rtol=1e-6, atol=1e-6)
    if differs.any():
        first = table.index[differs][0]
        raise DataError(
            f"{path}: the label of {first} is '{labels[first]}', but not in volumes/scans.tsv. "
            "The models belong to another cohort: run finetune again."
        )
    outputs = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    broken = ~np.isfinite(outputs).all(axis=1)
    if broken.any():
        raise DataError(
            f"{path}: {broken.sum()} of {len(outputs)} predictions are not numbers, the first for "
            f"{table.index[broken][0]}. Training has diverged: lower finetune.learning_rate, or "
            "leave this run out."
        )
    if fault := task.fault(outputs, list(table.index)):
        raise DataError(f"{path}: {fault}.")
    return outputs[:, 0] if len(columns) == 1 else outputs


def _read_fitted(folder: Path) -> tuple[Values, Values] | None:
    path = folder / "fitted.tsv"
    if not path.exists():
        return None
    table = read_table(path, FITTED)
    return table["label"].to_numpy(np.float64), table["output"].to_numpy(np.float64)


def _read_encoder(folder: Path) -> Pretrained:
    plan = read_plan(folder)
    history = _read_history(folder / "history.tsv")
    return Pretrained(plan.name, folder, plan, read_pretrained(folder), history)


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame({"epoch": [], "loss": []})  # weights from elsewhere
    history = read_table(path, HISTORY)
    return history.apply(pd.to_numeric, errors="coerce").dropna(axis="columns", how="all")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}.")
    return content
