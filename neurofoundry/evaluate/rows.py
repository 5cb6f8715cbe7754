"""Rows of the tables of an evaluation: made into a table, and found in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurofoundry.stats.intervals import Estimate

ENDS = ("value", "low", "high")
"""An estimate and its 95 % interval, as columns."""

STATES = ("as_is", "harmonized", "difference")

NUMBERS = frozenset(
    {
        *("fraction", "versus_fraction", "value", "low", "high", "seed_sd", "p", "p_holm"),
        *("shots", "draw_sd", "draws"),
        *("prevalence", "chance", "from_age_sex_labels", "from", "to", "observed", "by_chance"),
        *("true_low", "true_high", "known"),
        *(f"{s}_{e}" for s in STATES for e in ENDS),
    }
)
"""Columns that are numbers even where all of them are missing."""


def table_of(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table of ``columns``, those in ``NUMBERS`` as floats."""
    numbers = NUMBERS & set(columns)
    return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(numbers, float))


def cells(estimate: Estimate) -> dict[str, object]:
    """Return an estimate as cells of a row: value, low, high and reason."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "reason": estimate.reason,
    }


def find_row(table: pd.DataFrame, **where: object) -> Mapping[str, Any] | None:
    """Return the first row in which every column holds the given value; missing cells are None."""
    chosen = np.ones(len(table), bool)
    for column, value in where.items():
        chosen &= table[column].to_numpy() == value
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return None
    values = {str(column): table[column].to_numpy()[rows[0]] for column in table}
    return {key: None if pd.isna(value) else value for key, value in values.items()}
