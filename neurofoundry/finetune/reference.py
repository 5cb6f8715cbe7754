"""What a model's users need beside its weights: how far to trust a prediction.

Fitted on training scans, and on the validation scans that chose the weights; never on test or ood.
As val was used to choose an epoch or a penalty, what is fitted on it is slightly too confident.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from neurofoundry.errors import DataError
from neurofoundry.tasks import Task

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
        distance: Values = np.sqrt(np.maximum(squares, 0))
        return distance


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
    - Uncertainty: a temperature or the half-width of an interval, as the task states it.
    """
    covariance = LedoitWolf().fit(learn.astype(np.float64))
    reference = Reference(
        mean=covariance.location_,
        precision=covariance.precision_,
        distance_limit=np.inf,
        **task.uncertainty(outputs.astype(np.float64), targets, COVERAGE),
    )
    limit = float(np.quantile(reference.distance(val), FAMILIAR, method="higher"))
    return replace(reference, distance_limit=limit)


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
