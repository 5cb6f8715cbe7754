"""Rows of the table of scans."""

from __future__ import annotations

from typing import Any

import pandas as pd


def scans(**columns: list[Any]) -> pd.DataFrame:
    """A table of scans, one a person, but for the columns given."""
    count = max((len(values) for values in columns.values()), default=2)
    table = pd.DataFrame(
        {
            "scan_id": [f"a_sub-{i:02d}_ses-1" for i in range(count)],
            "dataset": "a",
            "subject": [f"sub-{i:02d}" for i in range(count)],
            "session": "ses-1",
            "person": [f"a/sub-{i:02d}" for i in range(count)],
            "source": "bids",
            "path": [f"a/sub-{i:02d}.nii.gz" for i in range(count)],
            "sha256": [f"{i:064x}" for i in range(count)],
            "split": "train",
            "age": 60.5,
            "sex": "F",
            "site": "a",
            "scanner": None,
            "field_strength": 3.0,
        }
    )
    return table.assign(**columns)
