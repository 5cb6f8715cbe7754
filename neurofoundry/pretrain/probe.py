"""A quick look at what the features know while the encoder trains; its weights never notice.

Linear models of the features of labelled `train` subjects are scored on `val` subjects. Nothing is
chosen by it, and the splits test and ood are not opened.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from neurofoundry.contracts.volumes import SLOPE, Grid, VolumeFolder
from neurofoundry.errors import UsageError
from neurofoundry.nn import seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.encoders import Encoder
from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity
from neurofoundry.pretrain.objective import draw_views
from neurofoundry.pretrain.params import Kind, ProbeParams

FEWEST = 10
"""Labelled subjects of a split below which a score would be noise."""

PENALTIES = np.logspace(0, 5, 11)
"""Of the squared weights of standardized features: the best in leave-one-out is taken."""

NAMES: dict[Kind, str] = {"classification": "{}_auc", "regression": "{}_r2"}


class Probe:
    """The subjects that are looked at, and how."""

    def __init__(
        self,
        table: pd.DataFrame,
        params: ProbeParams,
        *,
        volumes: Path,
        grid: Grid,
        views: AugmentParams,
        batch_size: int,
        seed: int,
    ) -> None:
        """Choose from ``table`` (cohort.VOLUMES). Raises UsageError for columns it has not."""
        if missing := sorted(params.columns.keys() - set(table.columns)):
            raise UsageError(
                f"pretrain.probe.columns: scans.tsv has no column {', '.join(missing)}. Name "
                "columns of ingest.columns, or age and sex."
            )
        self.volumes, self.grid, self.views = volumes, grid, views
        self.batch_size, self.seed = batch_size, seed
        self.train, self.val = (
            choose(table, split, most=params.subjects, seed=seed) for split in ("train", "val")
        )
        self.every = params.every
        self.columns: dict[str, Kind] = {}
        self.gaps: list[str] = []
        """Why columns are left out, in words."""
        for column, kind in params.columns.items():
            if why := gap(self.train[column], self.val[column], kind):
                self.gaps.append(f"pretrain.probe: {column} is left out, as {why}.")
            else:
                self.columns[column] = kind

    @property
    def scores(self) -> set[str]:
        """What `look` calls how well each column is told."""
        return {NAMES[kind].format(column) for column, kind in self.columns.items()}

    def look(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Alignment, uniformity and effective rank of the features of two views of the val
        subjects, and for each column how well the features tell it (`score`).

        The encoder runs in evaluation mode, and is as before afterwards.
        """
        training = encoder.training
        encoder.eval()
        with torch.no_grad():
            train = self._features(encoder, self.train, device)[0]
            val, *views = self._features(encoder, self.val, device, views=2)
        encoder.train(training)
        units = F.normalize(torch.stack(views), dim=2)
        found = {
            "alignment": alignment(units).item(),
            "uniformity": uniformity(units).item(),
            "effective_rank": effective_rank(units).item(),
        }
        x, x_val = (features.double().numpy() for features in (train, val))
        for column, kind in self.columns.items():
            found[NAMES[kind].format(column)] = score(
                x, self.train[column], x_val, self.val[column], kind
            )
        return found

    def _features(
        self, encoder: Encoder, scans: pd.DataFrame, device: torch.device, *, views: int = 0
    ) -> list[torch.Tensor]:
        """(scans, features) of the volumes, then of each of their views, on the CPU."""
        names = list(scans["scan_id"])
        parts = []
        for start in range(0, len(names), self.batch_size):
            some = names[start : start + self.batch_size]
            zscores = read_batch(VolumeFolder(self.volumes, self.grid), some).to(device) * SLOPE
            shown = [zscores]
            if views:  # the same every time: only the encoder changes from look to look
                shown += draw_views(zscores, some, self.views, self.seed, 0, views=views)
            # `forward`, as a compiled encoder would be compiled again for evaluation.
            parts.append(torch.stack([encoder.forward(each).cpu() for each in shown]))
        return list(torch.cat(parts, 1))


def choose(table: pd.DataFrame, split: str, *, most: int, seed: int) -> pd.DataFrame:
    """One usable scan of each subject of a split; of more subjects than ``most``, so many."""
    scans = table[table["usable"] & (table["split"] == split)].sort_values("scan_id")
    scans = scans.drop_duplicates("person")
    order = seeds.generator(seed, "probe", split).permutation(len(scans))[:most]
    return scans.iloc[np.sort(order)]


def gap(train: pd.Series, val: pd.Series, kind: Kind) -> str | None:
    """Why these labels cannot be probed, in words; None when they can."""
    for split, labels in (("train", train), ("val", val)):
        found = targets(labels, kind).dropna()
        if len(found) < FEWEST:
            return f"{len(found)} subjects of {split} have it, {FEWEST} are needed"
        if found.nunique() < 2:
            return f"all subjects of {split} have the same"
    if kind == "classification" and set(train.dropna()) != set(val.dropna()):
        return "train and val do not have the same classes"
    return None


def targets(labels: pd.Series, kind: Kind) -> pd.Series:
    """Classes as they are named, or values; missing where there is none."""
    return labels if kind == "classification" else pd.to_numeric(labels, errors="coerce")


def score(
    x: NDArray[np.float64],
    labels: pd.Series,
    x_val: NDArray[np.float64],
    labels_val: pd.Series,
    kind: Kind,
) -> float:
    """Of ridge regression of the labels on features (scans, features): the area under the ROC
    curve (the mean of each class against the others), or R² (0: no better than the mean).

    Not a number where a feature is none.
    """
    if not (np.isfinite(x).all() and np.isfinite(x_val).all()):
        return float("nan")
    x, y = known(x, targets(labels, kind))
    x_val, y_val = known(x_val, targets(labels_val, kind))
    if kind == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(x, y)
        return float(r2_score(y_val, model.predict(x_val)))
    classifier = RidgeClassifierCV(PENALTIES, class_weight="balanced")
    model = make_pipeline(StandardScaler(), classifier).fit(x, y)
    outputs = model.decision_function(x_val)
    if outputs.ndim == 1:  # of the second of two classes
        return float(roc_auc_score(y_val == model.classes_[1], outputs))
    areas = [
        roc_auc_score(y_val == name, output)
        for name, output in zip(model.classes_, outputs.T, strict=True)
    ]
    return float(np.mean(areas))


def known(
    x: NDArray[np.float64], labels: pd.Series
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rows that have a label, and the labels."""
    there = labels.notna().to_numpy()
    return x[there], labels[there].to_numpy()
