"""Which person a scan shows, and which split the person belongs to.

Out-of-distribution datasets and sites come first, then published splits, then the hash of (seed,
person). A person with one scan in an out-of-distribution dataset or site is held out whole.
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
    """Return the scans with their ``person``, 'DATASET/SUBJECT'.

    In a group of ``shared`` datasets, DATASET is the first of the group.
    """
    home = {dataset: group[0] for group in shared for dataset in group}
    return [
        replace(scan, person=f"{home.get(scan.dataset, scan.dataset)}/{scan.subject}")
        for scan in scans
    ]


def check_names(params: IngestParams, scans: Sequence[Scan], datasets: set[str]) -> None:
    """Raise UsageError when the parameters name a dataset, site or column that does not exist."""
    datasets = datasets | {scan.dataset for scan in scans}
    ood = params.splits.ood
    shared = [name for group in params.shared_subjects for name in group]
    _check_known("ingest.splits.ood.dataset", "dataset", ood.get("dataset", ()), datasets)
    _check_known(
        "ingest.splits.ood.site", "site", ood.get("site", ()), labels.sites(scans, params.columns)
    )
    _check_known("ingest.shared_subjects", "dataset", shared, datasets)
    column = params.split_column
    if column and not any(column in row for scan in scans for row in scan.rows):
        raise UsageError(f"ingest.split_column: no table of any dataset has the column '{column}'.")


def _check_known(key: str, kind: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"{key}: no {kind} is called '{name}'. Found: {_some(known)}. Correct the name or "
                "remove it."
            )


def exclude_unknown_splits(params: IngestParams, findings: Findings) -> list[Scan]:
    """Return the scans of persons whose published split, if any, is one of ours."""
    unknown = {
        scan.person: value
        for scan in findings.scans
        if (value := _published(scan, params)) is not None and value not in SPLITS
    }
    kept = []
    for scan in findings.scans:
        if scan.person in unknown:
            findings.exclude(
                scan.dataset,
                scan.origin,
                f"unknown split: '{params.split_column}' is '{unknown[scan.person]}' for this "
                f"person, expected one of {', '.join(SPLITS)}",
            )
        else:
            kept.append(scan)
    return kept


def assign(
    frame: pd.DataFrame, scans: Sequence[Scan], *, params: IngestParams, seed: int
) -> pd.Series:
    """Return the split of every row of ``frame``, whose rows are ``scans``."""
    held_out = pd.Series(False, index=frame.index)
    for column, names in params.splits.ood.items():
        held_out |= frame[column].isin(names)
    held_out_persons = set(frame.loc[held_out, "person"])
    published = {
        scan.person: value for scan in scans if (value := _published(scan, params)) is not None
    }
    assigned = []
    for scan in scans:
        if scan.person in held_out_persons:
            assigned.append("ood")
        elif scan.person in published:
            # A person with two published splits keeps both, for the leakage guard to refuse.
            assigned.append(_published(scan, params) or published[scan.person])
        else:
            assigned.append(params.splits.assign(scan.person, seed=seed))
    return pd.Series(assigned, index=frame.index, dtype=object)


def balance(frame: pd.DataFrame, tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Count persons and scans by split, site, and the value of every classification's label."""
    columns = dict.fromkeys(task.column for task in tasks.values() if task.classes)
    counts = []
    for (split, site), members in frame.groupby(["split", "site"]):
        groups = [("all", "all", members)] + [
            (column, str(value), group)
            for column in columns
            if column in frame
            for value, group in members.groupby(members[column].astype(object).fillna("n/a"))
        ]
        for column, value, group in groups:
            counts.append((split, site, column, value, group["person"].nunique(), len(group)))
    table = pd.DataFrame(counts, columns=["split", "site", "label", "value", "persons", "scans"])
    order = table["split"].map(SPLITS.index)
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _published(scan: Scan, params: IngestParams) -> str | None:
    """Return the split that the dataset's tables assign to a scan."""
    value = labels.cell(scan, [params.split_column]) if params.split_column else None
    return value.strip().casefold() if value is not None else None


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:20]) + (" …" if len(ordered) > 20 else "") or "none"
