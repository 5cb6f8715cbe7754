"""What a model's users need beside its weights: how far to trust a prediction.

Fitted on training scans, and on the validation scans that chose the weights; never on test or ood.
As val was used to choose an epoch or a penalty, what is fitted on it is slightly too confident.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.covariance import LedoitWolf

from neurofoundry.errors import DataError
from neurofoundry.tasks.base import Task

COVERAGE = 0.9
"""Of the interval of a regression."""
FAMILIAR = 0.975
"""Share of the validation scans that count as familiar."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reference:
    """What new scans are compared with."""

    mean: Values
    """(features,) of the training scans."""
    precision: Values
    """(features, features): the inverse of their covariance."""
    distance_limit: float
    """The `distance` that ``FAMILIAR`` of the validation scans do not exceed."""
    temperature: float
    """Classification: what logits are divided by; NaN for a regression."""
    half_width: float
    """Regression: of the interval, in the label's unit; NaN for a classification, infinite when
    val has too few scans to say."""

    def distance(self, features: NDArray[np.floating]) -> Values:
        """Mahalanobis distance of scans (scans, features) to the training scans."""
        away = features.astype(np.float64) - self.mean
        squares = np.einsum("si,ij,sj->s", away, self.precision, away)
        return np.sqrt(np.maximum(squares, 0))


def fit(
    learn: NDArray[np.floating],
    val: NDArray[np.floating],
    outputs: NDArray[np.floating],
    targets: Values,
    task: Task,
) -> Reference:
    """From features (scans, features) of train and val, and outputs and targets of val.

    - Familiarity: Mahalanobis distance under the covariance of Ledoit and Wolf (2004), which can
      be inverted for fewer scans than features (Lee et al. 2018 detect foreign inputs by it).
    - Classification: the temperature of Guo et al. (2017), which minimizes the cross-entropy.
    - Regression: split conformal prediction (Lei et al. 2018): the ⌈(n + 1) · ``COVERAGE``⌉-th
      smallest absolute residual.
    """
    covariance = LedoitWolf().fit(learn.astype(np.float64))
    reference = Reference(
        mean=covariance.location_,
        precision=covariance.precision_,
        distance_limit=np.inf,
        temperature=np.nan,
        half_width=np.nan,
    )
    found = asdict(reference)
    found["distance_limit"] = float(np.quantile(reference.distance(val), FAMILIAR, method="higher"))
    if task.kind == "classification":
        found["temperature"] = _temperature(outputs.astype(np.float64), targets.astype(int))
    else:
        residuals = np.sort(np.abs(outputs[:, 0].astype(np.float64) - targets))
        rank = int(np.ceil((len(residuals) + 1) * COVERAGE))
        found["half_width"] = float(residuals[rank - 1]) if rank <= len(residuals) else np.inf
    return Reference(**found)


def _temperature(logits: Values, targets: NDArray[np.int64]) -> float:
    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(targets)), targets].mean())

    # A val that is told apart without error would like it 0, and one without sense infinite.
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def write(path: Path, reference: Reference) -> None:
    """Write reference.npz."""
    np.savez(path, **asdict(reference))


def read(path: Path) -> Reference:
    """Read reference.npz. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as found:
            values = {name: found[name] for name in found.files}
        scalars = ("distance_limit", "temperature", "half_width")
        return Reference(
            mean=values["mean"],
            precision=values["precision"],
            **{name: float(values[name]) for name in scalars},
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: says how far to trust the model, and cannot be read ({error}). Run finetune "
            "again."
        ) from error
