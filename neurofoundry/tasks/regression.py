"""Regression: which value a scan has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import field_validator

from neurofoundry.errors import counted
from neurofoundry.tasks import conformal
from neurofoundry.tasks.base import BASELINE, Task, Uncertainty, Values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurofoundry.stats.corrections import Correction

QUANTILES = 4
"""Number of strata, by quantiles of the values."""


class Regression(Task):
    """Predicts a number, in the unit of its column."""

    kind: Literal["regression"] = "regression"

    primary: ClassVar[str] = "mae"
    curves: ClassVar[frozenset[str]] = frozenset({"predicted_vs_true"})
    corrected_on: ClassVar[tuple[str, ...]] = ("val", "train")
    constant_baseline: ClassVar[str] = f"{BASELINE}mean"
    numeric_label: ClassVar[bool] = True
    scoring: ClassVar[str] = "neg_mean_squared_error"

    @field_validator("classes")
    @classmethod
    def _none(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes:
            raise ValueError("a regression has no classes")
        return classes

    def numbers(self, labels: pd.Series) -> pd.Series:
        return pd.to_numeric(labels, errors="coerce")

    def typed(self, targets: Values) -> NDArray[Any]:
        return targets

    @property
    def output_columns(self) -> tuple[str, ...]:
        return ("output",)

    def columns(self, outputs: Tensor) -> dict[str, Values]:
        return {"output": outputs[:, 0].double().numpy()}

    def network_outputs(self, predictions: Values) -> Values:
        return predictions.reshape(-1, 1)

    def average(self, predictions: Values) -> Values:
        mean: Values = predictions.mean(axis=0)
        return mean

    def strata(self, persons: pd.Series[Any]) -> pd.Series:
        """Return the quarter that each person's mean value lies in."""
        means = persons.groupby(level=0).mean()
        return (means.rank(method="first", pct=True) * QUANTILES).apply(np.ceil)

    def shortage(self, strata: pd.Series, targets: pd.Series) -> str | None:
        if len(strata) < 2:
            return f"{counted(len(strata), 'subject')}, 2 are needed"
        if targets.nunique() < 2:
            value = targets.iloc[0]
            return f"one value of {self.column}, {value:g}, in all {len(targets)} scans"
        return None

    def max_folds(self, strata: pd.Series) -> int:
        return len(strata)

    def standardization(self, targets: pd.Series[Any]) -> tuple[float, float]:
        return float(targets.mean()), float(targets.std(ddof=0))

    def loss(self, targets: Values, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the mean squared error."""
        from torch.nn import functional as F

        return lambda outputs, target: F.mse_loss(outputs[:, 0], target)

    def linear_model(self, *, balanced: bool = False, iterations: int = 2000) -> Any:
        from sklearn.linear_model import Ridge

        return Ridge()

    def penalties(self, values: Values) -> dict[str, Values]:
        return {"ridge__alpha": values}

    def coefficients(self, model: Any) -> tuple[Values, Values]:
        return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)

    def score(self, outputs: Tensor) -> Tensor:
        """Return the value."""
        return outputs[:, 0]

    def uncertainty(self, outputs: Values, targets: Values, persons: NDArray[Any]) -> Uncertainty:
        """Return the half-width of the interval that `conformal.limit` gives."""
        half = conformal.limit(np.abs(outputs[:, 0] - targets), persons)
        return Uncertainty(np.nan, (half,), (len(np.unique(persons)),))

    def state(self, outputs: Tensor, known: Uncertainty) -> dict[str, Any]:
        """Return ``prediction`` with the ends of its interval, ``low`` and ``high``, and the number
        of persons that it is ``calibrated_on``."""
        value = self.columns(outputs)["output"]
        # With too few persons of val: no interval rather than an infinite one.
        half = known.limits[0] if np.isfinite(known.limits[0]) else np.nan
        return {
            "prediction": value,
            "low": value - half,
            "high": value + half,
            "calibrated_on": known.calibrated_on[0],
        }

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("mae", "rmse", "r2", "correlation")

    def measure(
        self,
        labels: NDArray[Any],
        outputs: Values,
        weights: Values,
        threshold: Values | None = None,
    ) -> dict[str, Values]:
        from neurofoundry.stats import metrics

        return metrics.regression(labels, outputs, weights)

    def threshold(self, targets: Values, outputs: Values) -> float | None:
        return None

    def calibration_error(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> Values | None:
        return None

    def primary_with_error(
        self, labels: NDArray[Any], outputs: Values, persons: NDArray[Any]
    ) -> tuple[float, float]:
        from neurofoundry.stats.intervals import mean_with_error

        mean, error = mean_with_error(np.abs(outputs - labels).mean(axis=0), persons)
        return float(mean), float(error)

    def persons_to_count(self, targets: pd.Series[Any]) -> list[int]:
        return [max(1, targets.index.nunique())]

    def on_one_scale(self, outputs: Values) -> Values:
        """Return the mean over seeds."""
        mean: Values = outputs.mean(axis=0)
        return mean

    @property
    def calibration_names(self) -> tuple[str, ...]:
        return ("mae", "bias_slope")

    def calibration(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> dict[str, Values]:
        from neurofoundry.stats import metrics

        mae = (weights @ np.abs(outputs - labels)) / weights.sum(axis=1)
        return {"mae": mae, "bias_slope": metrics.bias_slope(labels, outputs, weights)}

    def correction(self, labels: NDArray[Any], outputs: Values, where: str) -> Correction | str:
        """Learn the inverse of the line by which outputs depend on the label."""
        from neurofoundry.stats import corrections

        return corrections.line(labels, outputs, where)

    def constant(self, targets: Values, count: int) -> Values | str:
        if len(targets) < 2:
            return "fewer than two training scans"
        return np.full(count, targets.mean())

    def predict(self, model: Any, features: Values) -> Values:
        predicted: Values = model.predict(features)
        return predicted

    def splitter(self, folds: int) -> Any:
        from sklearn.model_selection import GroupKFold

        return GroupKFold(folds, shuffle=True, random_state=0)

    def fault(self, outputs: Values, scan_ids: Sequence[str]) -> str | None:
        return None

    @property
    def question(self) -> str:
        return f"How close to the true {self.column} does a model come from the scan alone?"

    def describe_labels(self, scans: pd.DataFrame) -> str:
        """Return the mean and the standard deviation, in words."""
        values = self.targets(scans)
        return f"{values.mean():.3g} ± {values.std():.2g}" if len(values) else "–"

    def explained_unit(self, unit: str) -> str:
        return f"{self.column},{unit or ' in its unit'}"
