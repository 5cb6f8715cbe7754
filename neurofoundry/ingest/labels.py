"""From cells as people write them to the columns of the cohort.

- A value that `ingest.columns` does not name becomes n/a; the scan stays, for pretraining and for
  other tasks, and notes.tsv says what was found.
- **Sex that contradicts itself** between the sessions of a person becomes n/a in all of them:
  nobody can know which is true.
- **Age that goes backwards** from one numbered session to the next becomes n/a in all sessions of
  that subject, for the same reason.
- Ages are years from 0 to 120; '90+' counts as 90. Field strengths are tesla up to 30.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import pandas as pd

from neurofoundry.errors import UsageError
from neurofoundry.ingest.delimited import is_missing
from neurofoundry.ingest.params import DESCRIBED, Column
from neurofoundry.ingest.scan import Findings, Scan, natural
from neurofoundry.tasks import Task

_TOLERANCE_YEARS = 0.1
_RANGES = {"age": (0.0, 120.0), "field_strength": (0.001, 30.0)}


def check_classes(columns: Mapping[str, Column], tasks: Mapping[str, Task]) -> None:
    """Raise UsageError when a task has a class that its column can never hold."""
    for name, task in tasks.items():
        declared = columns[task.column].values if task.column in columns else {}
        for label in task.classes:
            if declared and label not in declared:
                raise UsageError(
                    f"tasks.{name}: the class '{label}' is no value of ingest.columns."
                    f"{task.column}. Declared: {', '.join(declared)}."
                )


def table(
    scans: Sequence[Scan],
    *,
    columns: Mapping[str, Column],
    tasks: Mapping[str, Task],
    found: Findings,
) -> pd.DataFrame:
    """One row a scan: all columns of the cohort but ``split``.

    A declared label column that no dataset has is left out.
    """
    numbers = {"age", "field_strength"} | {
        task.column for task in tasks.values() if task.numeric_label
    }
    heads = {name.casefold() for scan in scans for row in scan.cells for name in row}
    unknown: Counter[tuple[str, str, str]] = Counter()
    labelled: dict[str, list[Any]] = {}
    for name in (*DESCRIBED, *(name for name in columns if name not in DESCRIBED)):
        column = columns.get(name) or Column.model_validate({"from": [name]})
        if name not in DESCRIBED and not {source.casefold() for source in column.from_} & heads:
            continue
        labelled[name] = _read_column(name, column, scans, unknown, numeric=name in numbers)
    for (dataset, name, shown), count in sorted(unknown.items()):
        expected = "a number" if name in numbers else f"one of {', '.join(columns[name].values)}"
        if name in _RANGES:
            expected = "{:g} to {:g}".format(*_RANGES[name])
        found.note(
            dataset, dataset, f"{name} is {shown} in {count} scans, expected {expected}: set to n/a"
        )
    labelled["site"] = [
        site or scan.dataset for site, scan in zip(labelled["site"], scans, strict=True)
    ]
    frame = pd.DataFrame(
        {
            "scan_id": [scan.scan_id for scan in scans],
            "dataset": [scan.dataset for scan in scans],
            "subject": [scan.subject for scan in scans],
            "session": [scan.session for scan in scans],
            "person": [scan.person for scan in scans],
            "source": [scan.source for scan in scans],
            "path": [scan.path for scan in scans],
            "sha256": [scan.sha256 for scan in scans],
            "split": None,
            **labelled,
        }
    )
    frame = frame.astype({"age": float, "field_strength": float})
    _agree_on_sex(frame, found)
    _grow_older(frame, found)
    return frame


def sites(scans: Sequence[Scan], columns: Mapping[str, Column]) -> set[str]:
    """The sites of scans; a scan that has none is of the site called like its dataset."""
    named = _read_column("site", columns["site"], scans, Counter(), numeric=False)
    return {str(site or scan.dataset) for site, scan in zip(named, scans, strict=True)}


def cell(scan: Scan, sources: Sequence[str], meaningful: Container[str] = ()) -> str | None:
    """What the tables say about a scan; the most specific table that says anything."""
    for row in scan.cells:
        by_name = {name.casefold(): value for name, value in row.items()}
        for source in sources:
            value = row.get(source, by_name.get(source.casefold(), ""))
            if value in meaningful or not is_missing(value):
                return value
    return None


def _read_column(
    name: str,
    column: Column,
    scans: Sequence[Scan],
    unknown: Counter[tuple[str, str, str]],
    *,
    numeric: bool,
) -> list[str | float | None]:
    meanings = {theirs: ours for ours, many in column.values.items() for theirs in many}
    folded: dict[str, set[str]] = {}
    for theirs, ours in meanings.items():
        folded.setdefault(theirs.casefold(), set()).add(ours)
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    values: list[str | float | None] = []
    for scan in scans:
        value = scan.header.get(name)
        if isinstance(value, float) and not low <= value <= high:
            value = None
        text = cell(scan, column.from_, meanings) if value is None else None
        if text is not None and numeric:
            value = _number(text, is_age=name == "age")
            value = value if value is not None and low <= value <= high else None
            if value is None:
                # A misplaced birth date must not be repeated in an output: its pattern will do.
                pattern = re.sub(r"\d", "9", re.sub(r"[^\W\d_]", "x", text))
                unknown[scan.dataset, name, f"like '{pattern[:20]}'"] += 1
        elif text is not None and meanings:
            text = text if text in meanings else text.removesuffix(".0")
            same = folded.get(text.casefold(), set())
            value = meanings.get(text, next(iter(same)) if len(same) == 1 else None)
            if value is None:
                unknown[scan.dataset, name, f"'{text[:40]}'"] += 1
        elif text is not None:
            value = text
        values.append(value)
    return values


def _number(text: str, *, is_age: bool) -> float | None:
    """A number as tables have it: 45, 45.5, 45,5; for ages also 90+ and 45 years."""
    pattern = r"(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*(\+|y|years?)?"
    found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if not found or (found[2] and not is_age):
        return None
    return float(found[1].replace(",", "."))


def _agree_on_sex(frame: pd.DataFrame, found: Findings) -> None:
    counts = frame.groupby("person")["sex"].nunique()
    for person in counts.index[counts > 1]:
        rows = frame["person"] == person
        dataset = frame.loc[rows, "dataset"].iloc[0]
        found.note(
            dataset,
            dataset,
            f"sex of {person} is F in one session and M in another: set to n/a in all of them",
        )
        frame.loc[rows, "sex"] = None


def _grow_older(frame: pd.DataFrame, found: Findings) -> None:
    aged = frame.dropna(subset="age")
    for (dataset, subject), rows in aged.groupby(["dataset", "subject"]):
        # Only numbers order sessions for certain: ses-1 and ses-2, not ses-pre and ses-scan.
        if len(rows) < 2 or rows["session"].str.replace(r"\d+", "#", regex=True).nunique() > 1:
            continue
        rows = rows.loc[sorted(rows.index, key=lambda row: natural(rows["session"][row]))]
        if rows["age"].diff().min() < -_TOLERANCE_YEARS:
            ages = ", ".join(
                f"{age:g} in {session}"
                for session, age in zip(rows["session"], rows["age"], strict=True)
            )
            found.note(
                str(dataset),
                str(dataset),
                f"age of {subject} goes backwards ({ages}): set to n/a in all",
            )
            frame.loc[rows.index, "age"] = float("nan")
