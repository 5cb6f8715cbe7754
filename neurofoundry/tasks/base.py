"""What every kind of task shares: which scans take part, and what a kind has to define.

A kind is one class in a file of its own. It says how labels become numbers, how a network learns
and states them, and how it is judged. Nothing else in the package asks of which kind a task is.
What is heavy (torch, scikit-learn, the statistics) is imported where it is used, as parameters are
checked before any of it is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from neurofoundry.params import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Values = NDArray[np.float64]

Correction = Callable[[Values], Values]
"""From the outputs of a model to better calibrated ones."""


class Condition(Section):
    """What a column must hold for a scan to take part. A missing value never does."""

    min: float | None = None
    max: float | None = None
    one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Condition:
        numeric = self.min is not None or self.max is not None
        if numeric == (self.one_of is not None):
            raise ValueError("give either min and/or max, or one_of")
        return self

    def holds(self, values: pd.Series) -> pd.Series:
        """For each value whether it meets the condition."""
        if self.one_of is not None:
            return values.astype("string").isin(self.one_of)
        numbers = pd.to_numeric(values, errors="coerce")
        low = -np.inf if self.min is None else self.min
        return numbers.between(low, np.inf if self.max is None else self.max)


class Task(Section, ABC):
    """Something to predict from a scan: declared in params.yaml, never in code."""

    kind: str
    column: str
    """The column of scans.tsv that holds the label."""
    classes: tuple[str, ...] = ()
    """Classification: the values of the column, the one of interest last."""
    eligible: dict[str, Condition] = Field(default_factory=dict)
    """Column to condition: which scans take part."""
    min_subjects: int = Field(default=2, ge=1)
    """Subjects that each of train, val, test (and ood, if the cohort has one) must have; for
    classification, of every class."""
    required: bool = True
    """Refuse a cohort that cannot serve the task (exit 3), or report it as not estimable."""

    primary: ClassVar[str]
    """The metric that models are judged by."""
    curves: ClassVar[frozenset[str]]
    """What is drawn of predictions: of roc, confusion, reliability and predicted_vs_true."""
    corrected_on: ClassVar[tuple[str, ...]]
    """The splits that a correction of calibration can be learned from."""
    constant_baseline: ClassVar[str]
    """The name of the baseline that says the same of everybody."""
    numeric_label: ClassVar[bool]
    """Whether the column of the label holds numbers."""

    # Which scans

    def select(self, scans: pd.DataFrame) -> pd.DataFrame:
        """The scans that take part: eligible and labelled."""
        if not {self.column, *self.eligible} <= set(scans.columns):
            return scans.iloc[:0]
        chosen = self.numbers(scans[self.column]).notna()
        for column, condition in self.eligible.items():
            chosen &= condition.holds(scans[column])
        return scans[chosen]

    def targets(self, scans: pd.DataFrame) -> Values:
        """What stands for the labels of selected scans: the index of the class, or the value."""
        return self.numbers(scans[self.column]).to_numpy(np.float64)

    def gap(self, scans: pd.DataFrame) -> str | None:
        """Why these scans cannot serve the task, in words; None when they can."""
        for column in (self.column, *self.eligible):
            if column not in scans:
                return f"no dataset has the column '{column}'"
        chosen = self.select(scans)
        needed = ["train", "val", "test"] + (["ood"] if (scans["split"] == "ood").any() else [])
        for split in needed:
            inside = chosen[chosen["split"] == split]
            groups = {
                f"{self.column}={name}": inside[inside[self.column] == name]
                for name in self.classes
            }
            for group, rows in (groups or {"a label": inside}).items():
                subjects = rows["person"].nunique()
                if subjects < self.min_subjects:
                    return (
                        f"split '{split}' has {subjects} subjects with {group}, "
                        f"{self.min_subjects} are needed"
                    )
        return None

    def persons_per_class(
        self, persons: NDArray[Any], targets: Values, inside: NDArray[np.bool_]
    ) -> list[int]:
        """How many persons each class has among the scans ``inside``; without classes, how many
        there are."""
        if not self.classes:
            return [len(set(persons[inside]))]
        return [
            len(set(persons[inside & (targets == index)])) for index in range(len(self.classes))
        ]

    # Labels

    @abstractmethod
    def numbers(self, labels: pd.Series) -> pd.Series:
        """Labels as numbers, NaN where there is none: the index of the class, or the value."""

    @abstractmethod
    def typed(self, targets: Values) -> NDArray[Any]:
        """``targets`` as the metrics take them."""

    # Learning

    @property
    @abstractmethod
    def output_columns(self) -> tuple[str, ...]:
        """Columns of predictions.tsv that hold what a model says."""

    @abstractmethod
    def columns(self, outputs: Tensor) -> dict[str, Values]:
        """Outputs of a network (scans, outputs) as ``output_columns``."""

    @abstractmethod
    def strata(self, persons: pd.Series[Any]) -> pd.Series:
        """The stratum of each person, from targets that are indexed by person."""

    @abstractmethod
    def shortage(self, strata: pd.Series, targets: pd.Series) -> str | None:
        """What training scans have too little of, in words; None when there is enough."""

    @abstractmethod
    def most_folds(self, strata: pd.Series) -> int:
        """Into how many folds persons can be dealt so that each holds every class."""

    @abstractmethod
    def standardization(self, targets: pd.Series[Any]) -> tuple[float, float]:
        """Centre and scale of the targets while a network learns."""

    @abstractmethod
    def loss(self, targets: Values, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of outputs (batch, outputs) and standardized targets (batch,), for a training
        set of these ``targets``."""

    @abstractmethod
    def linear_model(self, *, balanced: bool = False, iterations: int = 2000) -> Any:
        """A penalized linear model of scikit-learn, for standardized features."""

    @abstractmethod
    def penalties(self, values: Values) -> dict[str, Values]:
        """The parameter of ``linear_model`` in a pipeline that penalizes the squared weights, and
        its values for these penalties."""

    scoring: ClassVar[str]
    """How scikit-learn scores ``linear_model`` in cross-validation."""

    @abstractmethod
    def coefficients(self, model: Any) -> tuple[Values, Values]:
        """Weights (outputs, features) and biases (outputs,) of a fitted ``linear_model``."""

    @abstractmethod
    def score(self, outputs: Tensor) -> Tensor:
        """What is explained of outputs, (batch,)."""

    @abstractmethod
    def uncertainty(self, outputs: Values, targets: Values, coverage: float) -> dict[str, float]:
        """What `predict` needs to state how sure a model is, fitted on outputs (scans, outputs) of
        the network and targets of val: ``temperature`` or ``half_width``."""

    @abstractmethod
    def state(self, outputs: Tensor, *, temperature: float, half_width: float) -> dict[str, Any]:
        """Outputs of a network as columns of a table for people: ``prediction``, and how sure it
        is."""

    # Judging

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task, by their names in stats.metrics."""

    @abstractmethod
    def measure(
        self, labels: NDArray[Any], outputs: Values, weights: Values, threshold: float | None = None
    ) -> dict[str, Values]:
        """All metrics in every resample (stats.metrics), of typed labels and outputs of scans."""

    @abstractmethod
    def threshold(self, targets: Values, outputs: Values) -> float | None:
        """The threshold that outputs on val suggest; None where there is none."""

    @abstractmethod
    def primary_covariance(
        self, labels: NDArray[Any], outputs: Values, persons: NDArray[Any]
    ) -> Values | None:
        """Covariance (models, models) of the primary metric of models, by a formula; None where
        only resampling tells. ``outputs`` are (models, scans, …)."""

    @abstractmethod
    def primary_with_error(
        self, labels: NDArray[Any], outputs: Values, persons: NDArray[Any]
    ) -> tuple[float, float]:
        """The primary metric and its standard error by a formula, as a mean over seeds;
        ``outputs`` are (seeds, scans, …)."""

    @abstractmethod
    def persons_to_count(self, targets: pd.Series[Any]) -> list[int]:
        """Persons of every class, from targets indexed by person; who has scans of several counts
        for none, being no whole pair."""

    @abstractmethod
    def on_one_scale(self, outputs: Values) -> Values:
        """Outputs (seeds, scans, …) as one number a scan, on which scans of a person can agree."""

    @property
    @abstractmethod
    def calibration_names(self) -> tuple[str, ...]:
        """The metrics of calibration."""

    @abstractmethod
    def calibration(self, labels: NDArray[Any], outputs: Values, weights: Values) -> Values:
        """``calibration_names`` in every resample, (metrics, resamples); a further row is the
        calibration error by chance, where there is one."""

    @abstractmethod
    def correction(self, labels: NDArray[Any], outputs: Values, where: str) -> Correction | str:
        """A function of outputs that is learned from these, or the reason why there is none;
        ``where`` names the scans."""

    @abstractmethod
    def constant(self, targets: Values, count: int) -> Values | str:
        """The same prediction for ``count`` scans, from the targets of training; or why there is
        none."""

    @abstractmethod
    def predict(self, model: Any, features: Values) -> Values:
        """What a fitted ``linear_model`` says of features (scans, features)."""

    @abstractmethod
    def splitter(self, folds: int) -> Any:
        """Folds of scikit-learn that keep persons together."""

    @abstractmethod
    def fault(self, outputs: Values, scan_ids: Sequence[str]) -> str | None:
        """Why these columns of predictions.tsv cannot be outputs; None when they can."""

    # Words

    @property
    @abstractmethod
    def question(self) -> str:
        """What the task asks, in a sentence."""

    @abstractmethod
    def describe_labels(self, scans: pd.DataFrame) -> str:
        """The labels of selected scans, in a cell of a table."""

    @abstractmethod
    def explained_unit(self, unit: str) -> str:
        """In what ``score`` is measured, where the label has this ``unit``."""
