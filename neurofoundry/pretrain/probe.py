"""A quick evaluation of the features while the encoder trains, which leaves its weights alone.

Linear models of the features of labelled `train` subjects are scored on `val` subjects. Nothing is
chosen by these scores, and the splits test and ood are not opened.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from neurofoundry.contracts.volumes import SLOPE, Volumes
from neurofoundry.errors import UsageError
from neurofoundry.nn import seeds
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.encoders import Encoder
from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity
from neurofoundry.pretrain.objective import draw_views
from neurofoundry.pretrain.params import LabelKind, ProbeParams

FEWEST = 10
"""Labelled subjects of a split below which a score would be noise."""

PENALTIES = np.logspace(0, 5, 11)
"""Of the squared weights of standardized features: the best in leave-one-out is taken."""

NAMES: dict[LabelKind, str] = {"classification": "{}_auc", "regression": "{}_r2"}
"""Of the score of a column: the area under the ROC curve, or R²."""


class Probe:
    """Which subjects and columns features are evaluated on."""

    def __init__(
        self,
        volumes: Volumes,
        params: ProbeParams,
        *,
        views: AugmentParams,
        batch_size: int,
        seed: int,
    ) -> None:
        """Choose subjects of ``volumes``. Raises UsageError for columns that they do not have."""
        table = volumes.scans
        if missing := sorted(params.columns.keys() - set(table.columns)):
            raise UsageError(
                f"pretrain.probe.columns: scans.tsv has no column {', '.join(missing)}. Name "
                "columns of ingest.columns, or age and sex."
            )
        self.volumes, self.views = volumes, views
        self.batch_size, self.seed = batch_size, seed
        self.train, self.val = (
            choose(table, split, most=params.subjects, seed=seed) for split in ("train", "val")
        )
        self.every = params.every
        self.columns: dict[str, LabelKind] = {}
        self.gaps: list[str] = []
        """Why columns are left out, in words."""
        for column, kind in params.columns.items():
            if why := gap(self.train[column], self.val[column], kind):
                self.gaps.append(f"pretrain.probe: {column} is left out, as {why}.")
            else:
                self.columns[column] = kind

    @property
    def scores(self) -> set[str]:
        """The names that `evaluate` gives to the scores of columns."""
        return {NAMES[kind].format(column) for column, kind in self.columns.items()}

    def evaluate(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Return alignment, uniformity and effective rank of the features of two views of the val
        subjects, and for each column how well the features predict it (`score`).

        The encoder runs in evaluation mode; afterwards it is as it was before.
        """
        training = encoder.training
        encoder.eval()
        with torch.no_grad():
            train = self._features(encoder, self.train, device)[0]
            val, *views = self._features(encoder, self.val, device, views=2)
        encoder.train(training)
        units = F.normalize(torch.stack(views), dim=2)
        values = {
            "alignment": alignment(units).item(),
            "uniformity": uniformity(units).item(),
            "effective_rank": effective_rank(units).item(),
        }
        x, x_val = (features.double().numpy() for features in (train, val))
        for column, kind in self.columns.items():
            values[NAMES[kind].format(column)] = score(
                x, self.train[column], x_val, self.val[column], kind
            )
        return values

    def _features(
        self, encoder: Encoder, scans: pd.DataFrame, device: torch.device, *, views: int = 0
    ) -> list[torch.Tensor]:
        """Features (scans, features) of the volumes, then of each of their views, on the CPU."""
        names = list(scans["scan_id"])
        batches = []
        for start in range(0, len(names), self.batch_size):
            some = names[start : start + self.batch_size]
            zscores = read_batch(self.volumes, some).to(device) * SLOPE
            shown = [zscores]
            if views:  # the same every time: only the encoder changes between evaluations
                shown += draw_views(zscores, some, self.views, self.seed, 0, views=views)
            # `forward`: called as a module, a compiled encoder would be compiled again.
            batches.append(torch.stack([encoder.forward(each).cpu() for each in shown]))
        return list(torch.cat(batches, 1))


def choose(table: pd.DataFrame, split: str, *, most: int, seed: int) -> pd.DataFrame:
    """Return one usable scan of each subject of a split, of at most ``most`` subjects."""
    scans = table[table["usable"] & (table["split"] == split)].sort_values("scan_id")
    scans = scans.drop_duplicates("person")
    order = seeds.generator(seed, "probe", split).permutation(len(scans))[:most]
    return scans.iloc[np.sort(order)]


def gap(train: pd.Series, val: pd.Series, kind: LabelKind) -> str | None:
    """Say why these labels cannot be probed; None when they can."""
    for split, labels in (("train", train), ("val", val)):
        known = targets(labels, kind).dropna()
        if len(known) < FEWEST:
            return f"{len(known)} subjects of {split} have it, {FEWEST} are needed"
        if known.nunique() < 2:
            return f"all subjects of {split} have the same"
    if kind == "classification" and set(train.dropna()) != set(val.dropna()):
        return "train and val do not have the same classes"
    return None


def targets(labels: pd.Series, kind: LabelKind) -> pd.Series:
    """Return names of classes, or numbers; missing where there is no label."""
    return labels if kind == "classification" else pd.to_numeric(labels, errors="coerce")


def score(
    x: NDArray[np.float64],
    labels: pd.Series,
    x_val: NDArray[np.float64],
    labels_val: pd.Series,
    kind: LabelKind,
) -> float:
    """Score a ridge regression of labels on features ``x`` (scans, features), on those of ``_val``.

    Returns the area under the ROC curve (the mean of each class against the others), or R² (0: no
    better than the mean); NaN where a feature is not finite.
    """
    if not (np.isfinite(x).all() and np.isfinite(x_val).all()):
        return float("nan")
    x, y = labelled(x, targets(labels, kind))
    x_val, y_val = labelled(x_val, targets(labels_val, kind))
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


def labelled(
    x: NDArray[np.float64], labels: pd.Series
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows that have a label, and the labels."""
    there = labels.notna().to_numpy()
    return x[there], labels[there].to_numpy()
