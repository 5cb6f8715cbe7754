"""Classification: which class a scan belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import model_validator

from neurofoundry.errors import counted
from neurofoundry.tasks import conformal
from neurofoundry.tasks.base import BASELINE, Task, Uncertainty, Values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurofoundry.stats.corrections import Correction


class Classification(Task):
    """Predicts one of two or more classes; of two, the second is the class of interest."""

    kind: Literal["classification"] = "classification"

    primary: ClassVar[str] = "auc"
    curves: ClassVar[frozenset[str]] = frozenset({"roc", "confusion", "reliability"})
    corrected_on: ClassVar[tuple[str, ...]] = ("val",)
    constant_baseline: ClassVar[str] = f"{BASELINE}prevalence"
    numeric_label: ClassVar[bool] = False
    scoring: ClassVar[str] = "neg_log_loss"

    @model_validator(mode="after")
    def _two_classes_or_more(self) -> Self:
        if len(self.classes) < 2:
            raise ValueError("a classification needs at least two classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: duplicate among {', '.join(self.classes)}")
        if any(not name.strip() or not name.isprintable() for name in self.classes):
            raise ValueError("classes: a class without a name")
        return self

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return len(self.classes) == 2

    def numbers(self, labels: pd.Series) -> pd.Series:
        return labels.map({name: index for index, name in enumerate(self.classes)})

    def typed(self, targets: Values) -> NDArray[Any]:
        return targets.astype(int)

    @property
    def output_columns(self) -> tuple[str, ...]:
        return tuple(f"p_{name}" for name in self.classes)

    def columns(self, outputs: Tensor) -> dict[str, Values]:
        probabilities = outputs.double().softmax(1).numpy()
        return {name: probabilities[:, index] for index, name in enumerate(self.output_columns)}

    def network_outputs(self, predictions: Values) -> Values:
        logits: Values = np.log(np.maximum(predictions, np.finfo(float).tiny))
        return logits

    def average(self, predictions: Values) -> Values:
        """Return the mean of the log odds of every two classes, as probabilities: their geometric
        mean, scaled to sum to 1. It is no less certain than its members where they agree, while a
        mean of probabilities would be drawn to the middle."""
        from scipy.special import softmax

        if len(predictions) == 1:
            return np.asarray(predictions[0])
        probabilities: Values = softmax(self.network_outputs(predictions).mean(axis=0), axis=-1)
        return probabilities

    def strata(self, persons: pd.Series[Any]) -> pd.Series:
        """Return the class of each person; with scans of several classes, the last of them."""
        return persons.groupby(level=0).max()

    def shortage(self, strata: pd.Series, targets: pd.Series) -> str | None:
        for index, name in enumerate(self.classes):
            subjects = int((strata == index).sum())
            if subjects < 2:
                return f"{counted(subjects, 'subject')} with {self.column}={name}, 2 are needed"
        return None

    def max_folds(self, strata: pd.Series) -> int:
        return int(strata.value_counts().min())

    def standardization(self, targets: pd.Series[Any]) -> tuple[float, float]:
        return 0.0, 1.0

    def loss(self, targets: Values, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the cross-entropy, weighted so that classes are balanced."""
        import torch
        from sklearn.utils.class_weight import compute_class_weight
        from torch.nn import functional as F

        weights = compute_class_weight("balanced", classes=np.arange(len(self.classes)), y=targets)
        weight = torch.tensor(weights, dtype=torch.float32, device=device)
        return lambda outputs, target: F.cross_entropy(outputs, target.long(), weight)

    def linear_model(self, *, balanced: bool = False, iterations: int = 2000) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(
            class_weight="balanced" if balanced else None, max_iter=iterations
        )

    def penalties(self, values: Values) -> dict[str, Values]:
        return {"logisticregression__C": 1 / values}

    def coefficients(self, model: Any) -> tuple[Values, Values]:
        weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        if self.binary:
            # The one logit is that of the second class; the logit of the first is zero.
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        return weight, bias

    def score(self, outputs: Tensor) -> Tensor:
        """Return the log odds of the last class, which is the class of interest."""
        return outputs[:, -1] - outputs[:, :-1].logsumexp(dim=1)

    def uncertainty(self, outputs: Values, targets: Values, persons: NDArray[Any]) -> Uncertainty:
        """Return the temperature, and for each class the limit of 1 less its probability from those
        who have it, so that the promise holds for each class."""
        from scipy.special import softmax

        scores, of_class = 1 - softmax(outputs, axis=1), targets.astype(int)
        rows = [of_class == index for index in range(len(self.classes))]
        return Uncertainty(
            self._temperature(outputs, of_class),
            tuple(conformal.limit(scores[each, k], persons[each]) for k, each in enumerate(rows)),
            tuple(len(np.unique(persons[each])) for each in rows),
        )

    def _temperature(self, outputs: Values, classes: NDArray[np.int64]) -> float:
        """Return the temperature that minimizes the cross-entropy (Guo et al. 2017)."""
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax

        rows = np.arange(len(classes))

        def loss(log_temperature: float) -> float:
            scaled = log_softmax(outputs / np.exp(log_temperature), axis=1)
            return float(-scaled[rows, classes].mean())

        # Classes that are separated without error would want 0, and random ones infinity.
        best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
        return float(np.exp(best.x))

    def state(self, outputs: Tensor, known: Uncertainty) -> dict[str, Any]:
        """Return ``prediction``, ``p_CLASS``, ``calibrated_p_CLASS``, and ``entropy`` of the
        latter (0 certain, 1 undecided); and ``set``, the classes that cannot be ruled out, with the
        persons that the smallest class of it is ``calibrated_on``."""
        calibrated = self.columns(outputs / known.temperature)
        probabilities = np.stack(list(calibrated.values()), axis=1)
        entropy = -(probabilities * np.log(np.clip(probabilities, 1e-300, 1))).sum(axis=1)
        return {
            "prediction": [self.classes[index] for index in probabilities.argmax(axis=1)],
            **self.columns(outputs),
            **{f"calibrated_{name}": values for name, values in calibrated.items()},
            "entropy": entropy / np.log(len(self.classes)),
            "set": self._sets(np.stack(list(self.columns(outputs).values()), axis=1), known),
            "calibrated_on": min(known.calibrated_on),
        }

    def _sets(self, probabilities: Values, known: Uncertainty) -> list[str | None]:
        """Return the set of each scan, its classes joined by '|'; None where validation persons are
        too few to rule a class out."""
        if not np.isfinite(known.limits).all():
            return [None] * len(probabilities)
        names = np.array(self.classes)
        inside = conformal.sets(probabilities, np.array(known.limits))
        return ["|".join(names[each]) for each in inside]

    @property
    def metric_names(self) -> tuple[str, ...]:
        of_two = ("sensitivity", "specificity") if self.binary else ()
        return ("auc", "balanced_accuracy", *of_two, "f1", "average_precision", "brier", "ece")

    def measure(
        self,
        labels: NDArray[Any],
        outputs: Values,
        weights: Values,
        threshold: Values | None = None,
    ) -> dict[str, Values]:
        from neurofoundry.stats import metrics

        return metrics.classification(labels, outputs, weights, threshold=threshold)

    def threshold(self, targets: Values, outputs: Values) -> float | None:
        """Return the threshold of the largest sensitivity + specificity, for two classes."""
        from neurofoundry.stats import metrics

        return metrics.youden_threshold(targets == 1, outputs[:, 1]) if self.binary else None

    def calibration_error(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> Values | None:
        """Of two classes of the second's probability, of more of that of the call."""
        from neurofoundry.stats import metrics

        right, confidence = labels == 1, outputs[:, 1]
        if not self.binary:
            right, confidence = labels == outputs.argmax(axis=1), outputs.max(axis=1)
        return np.stack(metrics.calibration_error(right, confidence, weights))

    def primary_with_error(
        self, labels: NDArray[Any], outputs: Values, persons: NDArray[Any]
    ) -> tuple[float, float]:
        from neurofoundry.stats.comparisons import auc_covariance

        areas, covariance = auc_covariance(labels, outputs, persons)
        return float(areas.mean()), float(np.sqrt(max(0, covariance.mean())))

    def persons_to_count(self, targets: pd.Series[Any]) -> list[int]:
        persons = targets.groupby(level=0)
        of_one_class = persons.min()[persons.min() == persons.max()]
        return [max(1, int((of_one_class == index).sum())) for index in range(len(self.classes))]

    def on_one_scale(self, outputs: Values) -> Values:
        """Return the mean over seeds of the log odds of the second class."""
        from scipy import special

        odds: Values = special.logit(np.clip(outputs[:, :, 1], 1e-6, 1 - 1e-6)).mean(axis=0)
        return odds

    @property
    def calibration_names(self) -> tuple[str, ...]:
        of_two = ("calibration_slope", "calibration_intercept") if self.binary else ()
        return ("brier", "ece", *of_two)

    def calibration(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> dict[str, Values]:
        from neurofoundry.stats import metrics

        found = {
            "brier": metrics.brier(labels, outputs, weights),
            "brier_spread": np.full(len(weights), metrics.brier_spread(outputs)),
        }
        if self.binary:
            intercept, slope = metrics.calibration_line(labels == 1, outputs[:, 1], weights)
            found |= {"calibration_slope": slope, "calibration_intercept": intercept}
        return found

    def correction(self, labels: NDArray[Any], outputs: Values, where: str) -> Correction | str:
        """Learn Platt scaling for two classes, a temperature for more."""
        from neurofoundry.stats import corrections

        if len(np.unique(labels)) < len(self.classes):
            return f"{where} lacks a class to learn a correction from"
        if self.binary:
            return corrections.platt(labels, outputs, where)
        return corrections.temperature(labels, outputs)

    def constant(self, targets: Values, count: int) -> Values | str:
        counts = np.bincount(targets.astype(int), minlength=len(self.classes))
        if not counts.all():
            return "no training scan of some class"
        return np.tile(counts / counts.sum(), (count, 1))

    def predict(self, model: Any, features: Values) -> Values:
        probabilities: Values = model.predict_proba(features)
        return probabilities

    def splitter(self, folds: int) -> Any:
        from neurofoundry.stats.person_folds import PersonFolds

        return PersonFolds(folds)

    def fault(self, outputs: Values, scan_ids: Sequence[str]) -> str | None:
        invalid = (outputs < 0).any(axis=1) | (np.abs(outputs.sum(axis=1) - 1) > 1e-3)
        if not invalid.any():
            return None
        first = int(invalid.argmax())
        return (
            f"the probabilities of {scan_ids[first]} are {outputs[first].tolist()}; expected "
            "numbers of 0 or more that sum to 1"
        )

    @property
    def question(self) -> str:
        if self.binary:
            return f"Can a model tell {self.column} {self.classes[1]} from {self.classes[0]}?"
        return f"Can a model tell {self.column} apart: {', '.join(self.classes)}?"

    def describe_labels(self, scans: pd.DataFrame) -> str:
        """Return the numbers of persons per class, in words."""
        counts = (
            f"{scans[scans[self.column] == name]['person'].nunique()} {name}"
            for name in self.classes
        )
        return ", ".join(counts)

    def explained_unit(self, unit: str) -> str:
        return f"log odds of {self.classes[-1]}"
