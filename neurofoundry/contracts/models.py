"""models/: the runs of fine-tuning and what each model predicts."""

from __future__ import annotations

import pandera.pandas as pa

from neurofoundry.contracts.cohort import HELD_OUT

RUNS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "init": pa.Column(str),
        "fraction": pa.Column(float, [pa.Check.gt(0), pa.Check.le(1)]),
        "seed": pa.Column(int),
        "status": pa.Column(str, pa.Check.isin(["done", "not estimable"])),
        "reason": pa.Column(str, nullable=True),
    },
    coerce=True,
    unique=["task", "init", "fraction", "seed"],
)
"""models/runs.tsv: one row a declared run."""

PREDICTIONS = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(str, unique=True),
        "person": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(HELD_OUT)),
        "label": pa.Column(str),
    },
    coerce=True,
    strict=False,  # the outputs follow
)
"""predictions.tsv: one row a scan of val, test and ood."""

FITTED = pa.DataFrameSchema(
    {"label": pa.Column(float), "output": pa.Column(float)}, coerce=True, strict=False
)
"""fitted.tsv of a regression: one row a scan that it has learned from."""
