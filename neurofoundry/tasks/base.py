"""What every kind of task shares: which scans take part, and what a kind has to define.

A kind is one class in a file of its own. What all kinds share is `Labelled`: which scans take part.
Kinds that predict one label a scan are `Task`s, which define how labels become numbers, how a model
learns and outputs them, and how the outputs are evaluated; nothing else asks which kind such a task
is. Heavy packages (torch, scikit-learn, the statistics) are imported where they are used, as
parameters are checked before any of them is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from neurofoundry.errors import counted
from neurofoundry.params import MANY, Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurofoundry.stats.corrections import Correction

Values = NDArray[np.float64]

BASELINE = "baseline-"
"""Beginning of the names of baselines: what can be reached without a network."""


JUDGED = 5
"""Tested persons, of every class, from which on evaluate gives numbers by default."""


@dataclass(frozen=True)
class Uncertainty:
    """How sure the outputs of a model are, as its validation persons show."""

    temperature: float
    """The divisor of the logits of a classification; NaN for a regression."""
    limits: tuple[float, ...]
    """What the conformal score of the truth seldom exceeds: for each class, 1 less its probability;
    of a regression one, the absolute error. Infinite where validation persons are too few."""
    calibrated_on: tuple[int, ...]
    """The validation persons that each limit is of."""


class Condition(Section):
    """What a column must hold for a scan to take part; a missing value never qualifies."""

    min: float | None = None
    max: float | None = None
    one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Condition:
        numeric = self.min is not None or self.max is not None
        if numeric == (self.one_of is not None):
            raise ValueError("give either min and/or max, or one_of")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max, so no scan takes part")
        if self.one_of == ():
            raise ValueError("one_of is empty, so no scan takes part")
        return self

    def holds(self, values: pd.Series) -> pd.Series:
        """Return for each value whether it meets the condition."""
        if self.one_of is not None:
            return values.astype("string").isin(self.one_of)
        numbers = pd.to_numeric(values, errors="coerce")
        low = -np.inf if self.min is None else self.min
        return numbers.between(low, np.inf if self.max is None else self.max)


class Labelled(Section, ABC):
    """Something to predict from a scan: declared in params.yaml, never in code.

    It says which scans take part, and how labels are spread over splits, folds and fractions. A
    `Task` predicts one label a scan; a `Segmentation` (neurofoundry/tasks/segmentation.py) a class
    for every voxel.
    """

    kind: str
    column: str
    """The column of scans.tsv that holds the label."""
    classes: tuple[str, ...] = ()
    """Classification: the values of the column, the class of interest last. Segmentation: what is
    outlined, without the background."""
    eligible: dict[str, Condition] = Field(default_factory=dict)
    """Which scans take part: a condition for each named column."""
    min_subjects: int = Field(default=2, ge=1, le=MANY)
    """Subjects that each of train, val, test (and ood, if the cohort has one) must have; of
    every class, if there are classes. Where a class has too few for that, val may have fewer, one
    at least."""
    required: bool = True
    """Whether a cohort that cannot serve the task is refused (exit 3); else the task is reported
    as not estimable."""

    numeric_label: ClassVar[bool]
    """Whether the column of the label holds numbers."""

    @property
    def declared_columns(self) -> tuple[str, ...]:
        """The columns of the cohort that the task reads, which ingest.columns must declare."""
        return (self.column, *self.eligible)

    # Which scans

    def select(self, scans: pd.DataFrame) -> pd.DataFrame:
        """Return the scans that take part: eligible and labelled."""
        if not {self.column, *self.eligible} <= set(scans.columns):
            return scans.iloc[:0]
        chosen = self.numbers(scans[self.column]).notna()
        for column, condition in self.eligible.items():
            chosen &= condition.holds(scans[column])
        return scans[chosen]

    def targets(self, scans: pd.DataFrame) -> Values:
        """Return the labels of selected scans as numbers: the index of the class, or the value."""
        return self.numbers(scans[self.column]).to_numpy(np.float64)

    def gap(self, scans: pd.DataFrame, fewest: Mapping[str, int] | None = None) -> str | None:
        """Return why these scans cannot serve the task, in words; None if they can.

        ``fewest`` are the persons that splits must have (for classification, of every class); by
        default what `needs` says, and ``min_subjects`` in ood, if the cohort has one.
        """
        for column in (self.column, *self.eligible):
            if column not in scans:
                return f"no dataset has the column '{column}'"
        chosen = self.select(scans)
        outside = {"ood": self.min_subjects} if (scans["split"] == "ood").any() else {}
        for group, rows in (self.groups(chosen) or {"a label": chosen}).items():
            persons = rows.groupby("split")["person"].nunique()
            inside = int(persons.reindex(["train", "val", "test"]).sum())
            for split, least in (fewest or {**self.needs(inside), **outside}).items():
                subjects = int(persons.get(split, 0))
                if subjects < least:
                    need = f"{least} {'is' if least == 1 else 'are'} needed"
                    found = counted(subjects, "subject")
                    return f"split '{split}' has {found} with {group}, {need}"
        return None

    def needs(self, persons: int) -> dict[str, int]:
        """Return how many of so many persons of a class train, val and test must have.

        Val chooses the epoch by the loss over all classes, and the threshold. One person of a class
        can do that, badly, which the report says; none cannot. So of a class that has too few for
        all three, val goes short.
        """
        fewest = self.min_subjects
        left = max(1, min(fewest, persons - 2 * fewest))
        return {"train": fewest, "val": left, "test": fewest}

    def persons_per_class(
        self, persons: NDArray[Any], targets: Values, inside: NDArray[np.bool_]
    ) -> list[int]:
        """Return the numbers of persons per class among the scans ``inside``; without classes, the
        number of persons."""
        if not self.classes:
            return [len(set(persons[inside]))]
        return [
            len(set(persons[inside & (targets == index)])) for index in range(len(self.classes))
        ]

    def groups(self, scans: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Return selected scans by class, named as messages name them; nothing without classes."""
        return {f"{self.column}={name}": scans[scans[self.column] == name] for name in self.classes}

    @abstractmethod
    def numbers(self, labels: pd.Series) -> pd.Series:
        """Return labels as numbers, NaN for a missing one: the index of the class, or the value."""

    @abstractmethod
    def strata(self, persons: pd.Series[Any]) -> pd.Series:
        """Return the stratum of each person, from targets that are indexed by person."""

    @abstractmethod
    def shortage(self, strata: pd.Series, targets: pd.Series) -> str | None:
        """Return what training scans lack, in words; None if they suffice."""

    @property
    @abstractmethod
    def question(self) -> str:
        """The question that the task asks, as a sentence."""

    @abstractmethod
    def describe_labels(self, scans: pd.DataFrame) -> str:
        """Summarize the labels of selected scans for the cell of a table."""


class Task(Labelled):
    """Predicts one label a scan: a class or a value."""

    primary: ClassVar[str]
    """The metric by which models are compared."""
    curves: ClassVar[frozenset[str]]
    """The plots of predictions: some of roc, confusion, reliability and predicted_vs_true."""
    corrected_on: ClassVar[tuple[str, ...]]
    """The splits from which a correction of calibration can be learned."""
    constant_baseline: ClassVar[str]
    """The name of the baseline that predicts the same for everyone."""

    # Labels

    @abstractmethod
    def typed(self, targets: Values) -> NDArray[Any]:
        """Return ``targets`` in the type that the metrics take."""

    # Learning

    @abstractmethod
    def max_folds(self, strata: pd.Series) -> int:
        """Return the largest number of folds of persons in which each fold has every class."""

    @property
    @abstractmethod
    def output_columns(self) -> tuple[str, ...]:
        """The columns of predictions.tsv that hold the outputs of a model."""

    @abstractmethod
    def columns(self, outputs: Tensor) -> dict[str, Values]:
        """Return the outputs of a network (scans, outputs) as ``output_columns``."""

    @abstractmethod
    def network_outputs(self, predictions: Values) -> Values:
        """Return outputs (scans, outputs) of a network whose `columns` are these predictions."""

    @abstractmethod
    def average(self, predictions: Values) -> Values:
        """Return what an ensemble predicts (scans, …), from what its members do (members, scans,
        …), as probabilities or values."""

    @abstractmethod
    def standardization(self, targets: pd.Series[Any]) -> tuple[float, float]:
        """Return the centre and the scale by which targets are standardized for a network."""

    @abstractmethod
    def loss(self, targets: Values, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss of outputs (batch, outputs) and standardized targets (batch,), for a
        training set with these ``targets``."""

    @abstractmethod
    def linear_model(self, *, balanced: bool = False, iterations: int = 2000) -> Any:
        """Return a penalized linear model of scikit-learn, for standardized features."""

    @abstractmethod
    def penalties(self, values: Values) -> dict[str, Values]:
        """Return the parameter of ``linear_model`` that penalizes the squared weights, by its name
        in a pipeline, with its values for these penalties."""

    scoring: ClassVar[str]
    """The scoring of scikit-learn by which ``linear_model`` is chosen in cross-validation."""

    @abstractmethod
    def coefficients(self, model: Any) -> tuple[Values, Values]:
        """Return weights (outputs, features) and biases (outputs,) of a fitted ``linear_model``."""

    @abstractmethod
    def score(self, outputs: Tensor) -> Tensor:
        """Return the one number per scan that explanations explain, (batch,)."""

    @abstractmethod
    def uncertainty(self, outputs: Values, targets: Values, persons: NDArray[Any]) -> Uncertainty:
        """Return what `neurofoundry predict` needs to state the uncertainty, fitted on outputs
        (scans, outputs) of the network, targets and persons of val."""

    @abstractmethod
    def state(self, outputs: Tensor, known: Uncertainty) -> dict[str, Any]:
        """Return the outputs of a network as columns for people: ``prediction`` and how certain
        it is."""

    # Evaluation

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The names of the task's metrics in stats.metrics."""

    @abstractmethod
    def measure(
        self,
        labels: NDArray[Any],
        outputs: Values,
        weights: Values,
        threshold: Values | None = None,
    ) -> dict[str, Values]:
        """Return all metrics in every resample (stats.metrics), of `typed` labels and outputs, two
        classes at a ``threshold`` a scan."""

    @abstractmethod
    def threshold(self, targets: Values, outputs: Values) -> float | None:
        """Return the decision threshold that suits the outputs on val; None if there is none."""

    @abstractmethod
    def calibration_error(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> Values | None:
        """Return the calibration error in every resample and the one by chance, (2, resamples);
        None where the task states no probabilities."""

    @abstractmethod
    def primary_with_error(
        self, labels: NDArray[Any], outputs: Values, persons: NDArray[Any]
    ) -> tuple[float, float]:
        """Return the mean of the primary metric over seeds and its standard error by a formula.
        ``outputs`` are (seeds, scans, …)."""

    @abstractmethod
    def persons_to_count(self, targets: pd.Series[Any]) -> list[int]:
        """Return the numbers of persons per class, from targets indexed by person. A person with
        scans of several classes counts for none."""

    @abstractmethod
    def on_one_scale(self, outputs: Values) -> Values:
        """Return outputs (seeds, scans, …) as one number per scan, to compare scans of a person."""

    @property
    @abstractmethod
    def calibration_names(self) -> tuple[str, ...]:
        """The names of the metrics of calibration."""

    @abstractmethod
    def calibration(
        self, labels: NDArray[Any], outputs: Values, weights: Values
    ) -> dict[str, Values]:
        """Return ``calibration_names`` but "ece" in every sample, by name, and what their intervals
        need (see `stats.metrics.classification`)."""

    @abstractmethod
    def correction(self, labels: NDArray[Any], outputs: Values, where: str) -> Correction | str:
        """Learn a correction from these outputs; return it, or the reason why there is none.
        ``where`` names the scans."""

    @abstractmethod
    def constant(self, targets: Values, count: int) -> Values | str:
        """Return the same prediction for ``count`` scans, from the targets of training, or the
        reason why there is none."""

    @abstractmethod
    def predict(self, model: Any, features: Values) -> Values:
        """Return the outputs of a fitted ``linear_model`` for features (scans, features)."""

    @abstractmethod
    def splitter(self, folds: int) -> Any:
        """Return folds of scikit-learn that keep persons together."""

    @abstractmethod
    def fault(self, outputs: Values, scan_ids: Sequence[str]) -> str | None:
        """Return why these columns of predictions.tsv cannot be outputs; None if they can."""

    # Words

    @abstractmethod
    def explained_unit(self, unit: str) -> str:
        """Return the unit of ``score``, if the label has this ``unit``."""
