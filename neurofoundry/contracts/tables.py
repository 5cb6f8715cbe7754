"""Contract tables: tab-separated, with a header, 'n/a' for missing values, checked both ways.

A text that a spreadsheet would run as a formula has an apostrophe before it (cells.py), in the
header, too: people name the columns of labels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from neurofoundry.errors import DataError
from neurofoundry.runtime.cells import guard_cell, read_cell
from neurofoundry.runtime.files import atomic, refuse_pipe


def read_table(path: Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Read and check a contract table; 'n/a' is a missing value, as in BIDS. Raises DataError."""
    try:
        refuse_pipe(path)
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the table cannot be read ({error}).") from error
    table = table.map(read_cell, na_action="ignore").rename(columns=read_cell)
    if "usable" in table:
        table["usable"] = table["usable"].map({"true": True, "false": False})
    return _check(table, schema, path)


def write_table(table: pd.DataFrame, path: Path, schema: pa.DataFrameSchema | None = None) -> None:
    """Check a table and write it as it was given, as a whole or not at all. Raises DataError."""
    checked = table if schema is None else _check(table, schema, path)
    for column in checked.columns[[dtype.kind == "b" for dtype in checked.dtypes]]:
        table = table.assign(**{column: table[column].map({True: "true", False: "false"})})
    table = guard_texts(table)
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.10g")


def guard_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with `guard_cell` of all its texts and names of columns."""
    for column in table.columns[[dtype.kind == "O" for dtype in table.dtypes]]:
        guarded = [guard_cell(cell) if isinstance(cell, str) else cell for cell in table[column]]
        table = table.assign(**{column: pd.Series(guarded, table.index, dtype=object)})
    return table.rename(columns=lambda name: guard_cell(str(name)))


def hash_table(table: pd.DataFrame) -> str:
    """Return the SHA-256 of the values of a table, in their order."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _check(table: pd.DataFrame, schema: pa.DataFrameSchema, path: Path) -> pd.DataFrame:
    try:
        return schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        first = error.failure_cases.iloc[0]
        if first["check"] == "column_in_dataframe":
            raise DataError(
                f"{path}: the column '{first['failure_case']}' is missing, as where an earlier "
                "version wrote the table. Run its stage again."
            ) from error
        raise DataError(
            f"{path}: {len(error.failure_cases)} values break the table's contract; the first: "
            f"column '{first['column']}', row {first['index']}, "
            f"found {first['failure_case']!r}, expected {first['check']}."
        ) from error
