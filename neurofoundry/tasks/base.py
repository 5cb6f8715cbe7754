"""What every kind of task shares: which scans take part, and whether a cohort can serve it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from neurofoundry.params import Section


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
        if self.one_of is not None:
            return values.astype("string").isin(self.one_of)
        numbers = pd.to_numeric(values, errors="coerce")
        low = -np.inf if self.min is None else self.min
        return numbers.between(low, np.inf if self.max is None else self.max)


class Task(Section):
    """Something to predict from a scan: declared in params.yaml, never in code."""

    kind: Literal["classification", "regression"]
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

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("a class stands twice")
        return classes

    @model_validator(mode="after")
    def _kind_and_classes_agree(self) -> Task:
        if self.kind == "classification" and len(self.classes) < 2:
            raise ValueError("a classification needs at least two classes")
        if self.kind == "regression" and self.classes:
            raise ValueError("a regression has no classes")
        return self

    def select(self, scans: pd.DataFrame) -> pd.DataFrame:
        """The scans that take part: eligible and labelled."""
        missing = sorted({self.column, *self.eligible} - set(scans.columns))
        if missing:
            return scans.iloc[:0]
        chosen = self._labels(scans).notna()
        for column, condition in self.eligible.items():
            chosen &= condition.holds(scans[column])
        return scans[chosen]

    def targets(self, scans: pd.DataFrame) -> NDArray[np.float64]:
        """Labels of selected scans: the index of the class, or the value."""
        return self._labels(scans).to_numpy(np.float64)

    def _labels(self, scans: pd.DataFrame) -> pd.Series:
        values = scans[self.column]
        if self.kind == "regression":
            return pd.to_numeric(values, errors="coerce")
        return values.map({name: index for index, name in enumerate(self.classes)})

    def gap(self, scans: pd.DataFrame) -> str | None:
        """Why these scans cannot serve the task, in words; None when they can."""
        for column in (self.column, *self.eligible):
            if column not in scans:
                return f"no dataset has the column '{column}'"
        chosen = self.select(scans)
        needed = ["train", "val", "test"] + (["ood"] if (scans["split"] == "ood").any() else [])
        for split in needed:
            part = chosen[chosen["split"] == split]
            groups = {
                f"{self.column}={name}": part[part[self.column] == name] for name in self.classes
            }
            for group, rows in (groups or {"a label": part}).items():
                found = rows["person"].nunique()
                if found < self.min_subjects:
                    return (
                        f"split '{split}' has {found} subjects with {group}, "
                        f"{self.min_subjects} are needed"
                    )
        return None
