"""What the earlier stages left, read and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import EXCLUDED, SCANS, is_phantom
from neurofoundry.contracts.encoder import (
    HISTORY,
    Plan,
    PretrainedOn,
    find_encoders,
    read_plan,
    read_pretrained,
)
from neurofoundry.contracts.models import RUNS, initialization_of
from neurofoundry.contracts.splits import guard_leaks
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import DataError
from neurofoundry.runtime.arrays import open_arrays
from neurofoundry.runtime.experiment import public
from neurofoundry.runtime.store import read_circumstances
from neurofoundry.stats.metrics import Values


@dataclass(frozen=True, eq=False)
class Pretrained:
    """An encoder, and how it was pretrained."""

    name: str
    folder: Path
    plan: Plan
    seen: PretrainedOn
    history: pd.DataFrame
    """history.tsv: a row an epoch; none for weights from elsewhere."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of scans under a frozen encoder: of training scans, too, or of held-out ones."""

    scan_ids: NDArray[np.str_]
    values: Values
    """(scans, features)."""

    def of(self, scan_ids: pd.Series) -> Values:
        """Return the features of these scans, in this order: (scans, features)."""
        rows: Values = self.values[self._place.reindex(scan_ids).to_numpy(int)]
        return rows

    @cached_property
    def _place(self) -> pd.Series[int]:
        return pd.Series(np.arange(len(self.scan_ids)), self.scan_ids)

    def without(self, scan_ids: pd.Series) -> Features:
        """Return the features of all but these scans."""
        kept = ~np.isin(self.scan_ids, scan_ids.to_numpy(str))
        return Features(self.scan_ids[kept], self.values[kept])


@dataclass(frozen=True, eq=False)
class Inputs:
    """The folders of the four earlier stages."""

    scans: pd.DataFrame
    """volumes/scans.tsv: the whole cohort, with ``usable`` and ``reason``."""
    excluded: pd.DataFrame
    encoders: tuple[Pretrained, ...]
    runs: pd.DataFrame
    records: Mapping[str, Mapping[str, Any]]
    """stage.json of each stage that has one; with several encoders, pretrain/NAME."""
    circumstances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By the same names when, where and how fast each was run, as far as that is known."""

    def train(self, fold: int = 0) -> pd.DataFrame:
        """The usable scans of the training split; of a cross-validation, that of a fold."""
        scans = folds.in_fold(self.scans, fold)
        return scans[scans["usable"] & (scans["split"] == "train")]

    @property
    def synthetic(self) -> bool:
        """Whether all scans are phantoms."""
        return all(map(is_phantom, self.scans["dataset"]))

    def starts_from(self, initialization: str) -> str | None:
        """Return the encoder of an initialization, or of an ensemble's; None where finetune has not
        recorded it."""
        try:
            declared = self.records["finetune"]["params"]["finetune"]["initializations"]
            return str(declared[initialization_of(initialization)]["encoder"])
        except (KeyError, TypeError):
            return None

    @property
    def pretrained_on(self) -> frozenset[str]:
        """Every person that an encoder is known to have seen."""
        return frozenset().union(*(each.seen.persons or () for each in self.encoders))

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return the code, data and parameters of each earlier stage, without paths."""
        names = ("package_version", "code_sha256", "data_version")
        return {
            stage: {name: record.get(name, "") for name in names}
            | {"params": public(record.get("params", {}))}
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
    encoders = tuple(_read_encoder(folder) for folder in find_encoders(encoder).values())
    for each in encoders:
        guard_leaks(scans, pretrained=each.seen)
    folders = {"ingest": cohort_dir, "preprocess": volumes.folder}
    folders |= {f"pretrain/{each.name}": each.folder for each in encoders} | {"finetune": models}
    return Inputs(
        scans=scans,
        excluded=read_table(cohort_dir / "excluded.tsv", EXCLUDED),
        encoders=encoders,
        runs=read_table(models / "runs.tsv", RUNS),
        records={
            name: _read_json(folder / "stage.json")
            for name, folder in folders.items()
            if (folder / "stage.json").exists()
        },
        circumstances={name: read_circumstances(folder) for name, folder in folders.items()},
    )


def read_features(models: Path) -> dict[str, Features]:
    """Read models/features: the features of each encoder; none where finetune has kept none.

    Raises DataError.
    """
    features = {}
    for path in sorted((models / "features").glob("*.npz")):
        try:
            with open_arrays(path) as content:
                values = content["features"].astype(np.float64)
                features[path.stem] = Features(content["scan_id"], values)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not features ({error}). Run finetune again.") from error
    return features


def site_of(scans: pd.DataFrame) -> NDArray[Any]:
    """Return the site of each scan; sites of one name in two datasets are different."""
    return (scans["dataset"] + "\0" + scans["site"]).to_numpy(str)


def _read_encoder(folder: Path) -> Pretrained:
    plan = read_plan(folder)
    history = _read_history(folder / "history.tsv")
    return Pretrained(plan.name, folder, plan, read_pretrained(folder), history)


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame({"epoch": [], "loss": []})  # weights from elsewhere
    history: pd.DataFrame = read_table(path, HISTORY).apply(pd.to_numeric, errors="coerce")
    return history.dropna(axis="columns", how="all")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}.")
    return content
