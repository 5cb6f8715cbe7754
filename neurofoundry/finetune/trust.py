"""What users need beside a model's weights to know how far to trust a prediction.

It is fitted on training and validation scans, never on test or ood. As val has also chosen the
epoch, what is fitted on it is slightly overconfident.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from neurofoundry.errors import DataError
from neurofoundry.runtime.arrays import open_arrays
from neurofoundry.runtime.files import atomic
from neurofoundry.tasks import Task
from neurofoundry.tasks.base import Uncertainty

FAMILIAR = 0.975
"""Share of the validation scans that count as familiar."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trust:
    """How far to trust what a model says of a new scan."""

    mean: Values
    """The mean of the training scans, (features,)."""
    precision: Values
    """The inverse of their covariance, (features, features)."""
    distance_limit: float
    """The `distance` that a share ``FAMILIAR`` of the validation scans does not exceed."""
    uncertainty: Uncertainty
    """How sure its outputs are."""
    val_distance: Values
    """(scans,): the distances of the validation scans, in the order of predictions.tsv, from which
    an ensemble has its limit."""

    def distance(self, features: NDArray[np.floating]) -> Values:
        """Return the Mahalanobis distance of scans (scans, features) to the training scans."""
        deviation = features.astype(np.float64) - self.mean
        squares = np.einsum("si,ij,sj->s", deviation, self.precision, deviation)
        distance: Values = np.sqrt(np.maximum(squares, 0))
        return distance


def fit(
    learn: NDArray[np.floating],
    val: NDArray[np.floating],
    outputs: NDArray[np.floating],
    targets: Values,
    persons: NDArray[Any],
    task: Task,
) -> Trust:
    """Fit to features (scans, features) of train and val, and to outputs, targets and persons of
    val.

    - Familiarity: the Mahalanobis distance (Lee et al. 2018) under the covariance of Ledoit and
      Wolf (2004), which can be inverted even for fewer scans than features.
    - Uncertainty: a temperature, and limits of conformal prediction, as the task defines them.
    """
    covariance = LedoitWolf().fit(learn.astype(np.float64))
    trust = Trust(
        mean=covariance.location_,
        precision=covariance.precision_,
        distance_limit=np.inf,
        uncertainty=task.uncertainty(outputs.astype(np.float64), targets, persons),
        val_distance=np.empty(0),
    )
    distance = trust.distance(val)
    return replace(trust, val_distance=distance, distance_limit=distance_limit(distance))


def distance_limit(distance: Values) -> float:
    """Return the distance that a share ``FAMILIAR`` of validation scans do not exceed."""
    return float(np.quantile(distance, FAMILIAR, method="higher"))


def write(path: Path, trust: Trust) -> None:
    """Write trust.npz, as a whole or not at all."""
    values = {name: value for name, value in asdict(trust).items() if name != "uncertainty"}
    with atomic(path) as temporary:
        np.savez(temporary, **values, **asdict(trust.uncertainty))


def read(path: Path) -> Trust:
    """Read trust.npz. Raises DataError."""
    try:
        with open_arrays(path) as content:
            values = {name: content[name] for name in content}
        mean, precision = values["mean"], values["precision"]
        if mean.ndim != 1 or precision.shape != (len(mean), len(mean)):
            raise ValueError(f"mean is {mean.shape}, precision {precision.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(precision).all()):
            raise ValueError("mean or precision is not finite")
        return Trust(
            mean,
            precision,
            distance_limit=float(values["distance_limit"]),
            uncertainty=Uncertainty(
                temperature=float(values["temperature"]),
                limits=tuple(values["limits"].tolist()),
                calibrated_on=tuple(values["calibrated_on"].tolist()),
            ),
            val_distance=values["val_distance"],
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), and says how far to trust the model. Run finetune "
            "again."
        ) from error
