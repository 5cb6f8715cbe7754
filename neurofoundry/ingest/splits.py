"""Who is a person, and which split the person belongs to.

Out-of-distribution datasets and sites come first, then published splits, then the hash of (seed,
person). A person with one scan in an out-of-distribution dataset or site is kept apart whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from neurofoundry.contracts.cohort import SPLITS
from neurofoundry.errors import UsageError
from neurofoundry.ingest import labels
from neurofoundry.ingest.params import IngestParams
from neurofoundry.ingest.scan import Findings, Scan
from neurofoundry.tasks import Task


def name_persons(scans: Iterable[Scan], shared: Sequence[Sequence[str]]) -> list[Scan]:
    """Scans with their ``person``: 'DATASET/SUBJECT', where the datasets of a shared group go by
    the name of its first."""
    home = {dataset: group[0] for group in shared for dataset in group}
    return [
        replace(scan, person=f"{home.get(scan.dataset, scan.dataset)}/{scan.subject}")
        for scan in scans
    ]


def check_names(params: IngestParams, scans: Sequence[Scan], datasets: set[str]) -> None:
    """Raise UsageError when the parameters name a dataset, site or column that is not there."""
    datasets = datasets | {scan.dataset for scan in scans}
    named = {
        "ingest.splits.ood.dataset": (params.splits.ood.get("dataset", ()), datasets, "dataset"),
        "ingest.splits.ood.site": (
            params.splits.ood.get("site", ()),
            labels.sites(scans, params.columns),
            "site",
        ),
        "ingest.shared_subjects": (
            [name for group in params.shared_subjects for name in group],
            datasets,
            "dataset",
        ),
    }
    for key, (names, known, kind) in named.items():
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{key}: no {kind} is called '{name}'. Found: {_some(known)}. Correct the name "
                    "or take it out."
                )
    column = params.split_column
    if column and not any(name == column for scan in scans for row in scan.cells for name in row):
        raise UsageError(f"ingest.split_column: no table of any dataset has the column '{column}'.")


def without_unknown_splits(params: IngestParams, found: Findings) -> list[Scan]:
    """The scans of persons whose published split, if any, is one of ours."""
    unknown = {
        scan.person: value
        for scan in found.scans
        if (value := _published(scan, params)) is not None and value not in SPLITS
    }
    kept = []
    for scan in found.scans:
        if scan.person in unknown:
            found.exclude(
                scan.dataset,
                scan.origin,
                f"unknown split: '{params.split_column}' says '{unknown[scan.person]}' about this "
                f"person, expected one of {', '.join(SPLITS)}",
            )
        else:
            kept.append(scan)
    return kept


def deal(
    frame: pd.DataFrame, scans: Sequence[Scan], *, params: IngestParams, seed: int
) -> pd.Series:
    """The split of every row of ``frame``, whose rows are ``scans``."""
    apart = pd.Series(False, index=frame.index)
    for column, names in params.splits.ood.items():
        apart |= frame[column].isin(names)
    held_out = set(frame.loc[apart, "person"])
    published = {
        scan.person: value for scan in scans if (value := _published(scan, params)) is not None
    }
    dealt = []
    for scan in scans:
        if scan.person in held_out:
            dealt.append("ood")
        elif scan.person in published:
            # A person with two published splits keeps both, for the leakage guard to refuse.
            dealt.append(_published(scan, params) or published[scan.person])
        else:
            dealt.append(params.splits.assign(scan.person, seed=seed))
    return pd.Series(dealt, index=frame.index, dtype=object)


def balance(frame: pd.DataFrame, tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Persons and scans by split, site, and the value of every classification's label."""
    columns = dict.fromkeys(task.column for task in tasks.values() if task.classes)
    rows = []
    for (split, site), part in frame.groupby(["split", "site"]):
        groups = [("all", "all", part)] + [
            (column, str(value), group)
            for column in columns
            if column in frame
            for value, group in part.groupby(part[column].astype(object).fillna("n/a"))
        ]
        for column, value, group in groups:
            rows.append((split, site, column, value, group["person"].nunique(), len(group)))
    table = pd.DataFrame(rows, columns=["split", "site", "label", "value", "persons", "scans"])
    order = table["split"].map(SPLITS.index)
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _published(scan: Scan, params: IngestParams) -> str | None:
    value = labels.cell(scan, [params.split_column]) if params.split_column else None
    return value.strip().casefold() if value is not None else None


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:20]) + (" …" if len(ordered) > 20 else "") or "none"
