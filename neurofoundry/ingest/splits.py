"""Which person a scan shows, and which split the person belongs to.

Out-of-distribution datasets and sites come first, in every mode; a person with one scan in one of
them is held out whole. Then come published splits, and then what the mode says: the hash of (seed,
person), or dealing by strata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from neurofoundry.contracts.cohort import SPLITS
from neurofoundry.contracts.splits import Splits
from neurofoundry.errors import UsageError
from neurofoundry.ingest import labels, published, stratified
from neurofoundry.ingest.matching import meaning
from neurofoundry.ingest.params import IngestParams
from neurofoundry.ingest.scan import Findings, Scan
from neurofoundry.tasks import Labelled
from neurofoundry.tasks.base import JUDGED

_ALIKE = 5
"""Groups of labels that a note shows."""


def name_persons(scans: Iterable[Scan], shared: Sequence[Sequence[str]]) -> list[Scan]:
    """Return the scans with their ``person``, 'DATASET/SUBJECT'.

    In a group of ``shared`` datasets, DATASET is the first of the group.
    """
    home = {dataset: group[0] for group in shared for dataset in group}
    return [
        replace(scan, person=f"{home.get(scan.dataset, scan.dataset)}/{scan.subject}")
        for scan in scans
    ]


def note_alike(findings: Findings) -> None:
    """Record persons whose labels are nearly alike, as P01 and p-1: they may be one."""
    alike: dict[tuple[str, str], dict[str, Scan]] = {}
    for scan in findings.scans:
        of = scan.person.removesuffix(scan.subject)
        key = of, meaning(scan.subject, "sub-")
        alike.setdefault(key, {}).setdefault(scan.person, scan)
    groups: dict[str, list[list[str]]] = {}
    for persons in alike.values():
        if len(persons) > 1:
            dataset = next(iter(persons.values())).dataset
            groups.setdefault(dataset, []).append(sorted(persons))
    for dataset, several in groups.items():
        shown = "; ".join(" and ".join(persons) for persons in several[:_ALIKE])
        findings.note(
            dataset,
            dataset,
            f"{shown}{' …' if len(several) > _ALIKE else ''}: the labels are nearly alike, and "
            f"count as {sum(map(len, several))} persons, who may be in train and in test. Call "
            "those alike who are one",
        )


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


def _check_known(key: str, kind: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"{key}: no {kind} is called '{name}'. Found: {_some(known)}. Correct the name or "
                "remove it."
            )


def exclude_unknown_splits(params: IngestParams, findings: Findings) -> list[Scan]:
    """Return the scans of persons whose published split, if any, is one of ours."""
    marked = published.mark(findings.scans, params.splits, findings)
    unknown = {
        scan.person: scan.published
        for scan in marked
        if scan.published is not None and scan.published not in SPLITS
    }
    kept = []
    for scan in marked:
        if scan.person in unknown:
            findings.exclude(
                scan.dataset,
                scan.origin,
                f"unknown split: '{unknown[scan.person]}' for this person, expected one of "
                f"{', '.join(SPLITS)}. Say in ingest.splits.values which it is",
            )
        else:
            kept.append(scan)
    return kept


def assign(
    rows: pd.DataFrame,
    params: Splits,
    tasks: Mapping[str, Labelled],
    *,
    seed: int,
    came_with: Sequence[str | None] = (),
) -> pd.DataFrame:
    """Return the rows of the cohort with ``split``, and with ``fold`` if params ask for folds.

    ``came_with`` has the published split of each row, if any.
    """
    held_out = pd.Series(False, index=rows.index)
    for column, names in params.ood.items():
        held_out |= rows[column].isin(names)
    outside = set(rows.loc[held_out, "person"])
    inside = rows[~rows["person"].isin(outside)]
    if params.mode == "folds":
        return _in_folds(rows, outside, params, tasks, seed=seed)
    if params.mode == "stratified":
        groups = stratified.groups(inside, tasks)
        dealt = stratified.deal(
            set(inside["person"]),
            params.shares,
            groups,
            key=f"{seed} splits",
            wished=[
                [_demanding(group, WISHES[first:]) for group in groups]
                for first in range(len(WISHES))
            ],
        )
        split = inside["person"].map(dealt)
    else:
        known = pd.Series(list(came_with) or None, rows.index, dtype=object)
        split = _published_or_hashed(inside["person"], known[inside.index], params, seed=seed)
    return rows.assign(split=split.reindex(rows.index).fillna("ood"))


WISHES = ((1, JUDGED + 1), (0, JUDGED + 1), (0, JUDGED), (1, 0))
"""Persons of every class to ask for, as long as there are so many: beyond those that each split
needs, and tested. Quality control may lose one, which costs the numbers of a test set without one
to spare."""


def _demanding(group: stratified.Group, wishes: Sequence[tuple[int, int]]) -> stratified.Group:
    """Return a class with the first of these wishes for which it has enough persons."""
    for more, tested in wishes if group.needs else ():
        needs = {split: fewest + more for split, fewest in group.needs.items()}
        needs["test"] = max(needs["test"], tested)
        if sum(needs.values()) <= len(group.persons):
            return replace(group, needs=needs)
    return group


def _published_or_hashed(
    persons: pd.Series, known: pd.Series, params: Splits, *, seed: int
) -> pd.Series:
    """Return the published split of each row, ``known``, else that of the person's hash."""
    of_person = known.groupby(persons).last()
    # A person with two published splits keeps both, for the leakage guard to refuse.
    split = known.fillna(persons.map(of_person))
    if params.mode == "published" and not params.dealt:
        return split.fillna("pretrain")
    return split.fillna(persons.map(lambda person: params.assign(person, seed=seed)))


def _in_folds(
    rows: pd.DataFrame,
    outside: set[str],
    params: Splits,
    tasks: Mapping[str, Labelled],
    *,
    seed: int,
) -> pd.DataFrame:
    """Return the rows with ``split`` and ``fold`` (contracts/folds.py)."""
    persons = rows["person"]
    held_out = persons.isin(outside)
    folds = [name for name in params.shares if name != "pretrain"]
    groups = [
        replace(group, needs=dict.fromkeys(folds, 1) if group.needs else {})
        for group in stratified.groups(rows[~held_out], tasks)
    ]
    deal = partial(stratified.deal, among=groups)
    first = deal(set(persons) - outside, params.shares, key=f"{seed} folds 1")
    alone = {person for person, place in first.items() if place == "pretrain"}
    tested, equal = first.keys() - alone, dict.fromkeys(folds, 1.0)
    repeats = [first] + [
        deal(tested, equal, key=f"{seed} folds {repeat}")
        for repeat in range(2, (params.repeats or 1) + 1)
    ]
    groups = [replace(group, needs={}) for group in stratified.groups(rows[held_out], tasks)]
    for repeat, dealt in enumerate(repeats, 1):
        dealt |= stratified.deal(outside, equal, groups, key=f"{seed} ood {repeat}")
    fold = {
        person: " ".join(f"{dealt[person]}/{params.folds}" for dealt in repeats)
        for person in tested | outside
    }
    split = np.select([held_out, persons.isin(alone)], ["ood", "pretrain"], "test")
    made = rows.assign(split=split)
    made.insert(list(made.columns).index("split") + 1, "fold", persons.map(fold))
    return made


def balance(frame: pd.DataFrame, tasks: Mapping[str, Labelled]) -> pd.DataFrame:
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


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:20]) + (" …" if len(ordered) > 20 else "") or "none"
