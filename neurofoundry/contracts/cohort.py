"""cohort/: the table of usable scans, and the table of the files that were not used.

A **person** is who was scanned; a **subject** is a label within a dataset. Whatever must not leak
(splits, intervals, overlap with pretraining) is decided by person.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from neurofoundry.contracts.tables import read_table

SPLITS = ("pretrain", "train", "val", "test", "ood")

T1W = "T1w"
"""The contrast that every session has; contrasts are called by their suffix in BIDS."""

FOLD = r"^[1-9][0-9]*/[1-9][0-9]*( [1-9][0-9]*/[1-9][0-9]*)*$"

SHA256 = pa.Check.str_matches(r"^[0-9a-f]{64}$")

SCANS = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(str, pa.Check.str_matches(r"^[A-Za-z0-9_-]+$"), unique=True),
        "dataset": pa.Column(str),
        "subject": pa.Column(str),
        "session": pa.Column(str),
        "person": pa.Column(str),
        "source": pa.Column(str, pa.Check.isin(["bids", "dicom", "table"])),
        "path": pa.Column(str),
        "sha256": pa.Column(str, SHA256),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "fold": pa.Column(str, pa.Check.str_matches(FOLD), nullable=True, required=False),
        "age": pa.Column(float, pa.Check.in_range(0, 120), nullable=True),
        "sex": pa.Column(str, pa.Check.isin(["F", "M"]), nullable=True),
        "site": pa.Column(str),
        "scanner": pa.Column(str, nullable=True),
        "field_strength": pa.Column(float, pa.Check.gt(0), nullable=True),
        "^sha256_[A-Za-z0-9]+$": pa.Column(str, SHA256, nullable=True, required=False, regex=True),
    },
    coerce=True,
    strict=False,  # the label columns that params.yaml declares follow
)
"""cohort/scans.tsv: one row per usable T1w scan. ``age`` in years, ``field_strength`` in tesla.
``path`` is relative to the data root, or to the cohort folder if ``source`` is dicom. Of every
further contrast there are ``path_CONTRAST`` and ``sha256_CONTRAST``."""

CONTRASTS = pa.DataFrameSchema(
    {
        "contrast": pa.Column(str, pa.Check.str_matches(r"^[A-Za-z0-9]+$"), unique=True),
        "required": pa.Column(str, pa.Check.isin(["yes", "no"])),
    },
    coerce=True,
)
"""cohort/contrasts.tsv: what sessions are scanned with, T1w first, and what none may lack."""

EXCLUDED = pa.DataFrameSchema(
    {"dataset": pa.Column(str), "path": pa.Column(str), "reason": pa.Column(str)}, coerce=True
)
"""cohort/excluded.tsv: every file that was not used, and why."""

ALTERNATES = pa.DataFrameSchema(
    {"scan_id": pa.Column(str), "path": pa.Column(str), "sha256": pa.Column(str, SHA256)},
    coerce=True,
)
"""cohort/alternates.tsv: other T1w images of a scan's session, the best first. One of them stands
in where the image of scans.tsv fails quality control."""


def read_alternates(cohort: Path) -> pd.DataFrame:
    """Return alternates.tsv; cohorts of earlier versions have none."""
    path = cohort / "alternates.tsv"
    if path.exists():
        return read_table(path, ALTERNATES)
    return pd.DataFrame(columns=list(ALTERNATES.columns), dtype=str)


def check_contrasts(contrasts: tuple[str, ...]) -> tuple[str, ...]:
    """Return contrasts as they are. Raises ValueError unless T1w is first, each is there once, and
    all are suffixes, which become parts of files, columns and expressions of MONAI."""
    if contrasts[:1] != (T1W,):
        raise ValueError("expected T1w first: it places the session's other contrasts")
    if len(set(contrasts)) < len(contrasts):
        raise ValueError("a contrast is listed twice")
    if odd := [name for name in contrasts if not (name.isascii() and name.isalnum())]:
        raise ValueError(f"expected suffixes of BIDS such as FLAIR, found {odd[0]!r}")
    return contrasts


def read_contrasts(cohort: Path) -> dict[str, bool]:
    """Return the contrasts of a cohort, T1w first, and whether every session has them; cohorts of
    earlier versions say none."""
    path = cohort / "contrasts.tsv"
    if not path.exists():
        return {T1W: True}
    table = read_table(path, CONTRASTS)
    return dict(zip(table["contrast"], table["required"] == "yes", strict=True))


def further(column: str, contrast: str) -> str:
    """Return the column of scans.tsv that says of a contrast what ``column`` does of T1w."""
    return column if contrast == T1W else f"{column}_{contrast}"


def scan_path(scan: Mapping[str, str], *, data: Path, cohort: Path, contrast: str = T1W) -> Path:
    """Return the path of the image of a row of scans.tsv, in a ``contrast`` that it has."""
    return (cohort if scan["source"] == "dicom" else data) / scan[further("path", contrast)]


def is_phantom(name: str) -> bool:
    """Return whether a dataset, or a person by the name of their dataset, is synthetic."""
    return name.startswith("phantom")


TESTED = ("test", "ood")
"""The splits that conclusions rest on: familiar and new sites."""

HELD_OUT = ("val", *TESTED)
"""The splits that models predict. val chooses the weights, so it is no evidence."""
