"""From cells as people write them to the columns of the cohort.

- A value that `ingest.columns` does not name becomes n/a; the scan stays, for pretraining and for
  other tasks, and notes.tsv says what was found.
- **Sex that contradicts itself** between the sessions of a person becomes n/a in all of them: there
  is no telling which is right.
- **Age that goes backwards** from one numbered session to the next becomes n/a in all sessions of
  that subject, for the same reason.
- Ages are years from 0 to 120, '18 months' too; '90+' counts as 90. Field strengths are tesla up to
  30.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from neurofoundry.errors import UsageError
from neurofoundry.ingest import ages
from neurofoundry.ingest.delimited import Columns, is_missing
from neurofoundry.ingest.matching import meant
from neurofoundry.ingest.params import DESCRIBED, Column
from neurofoundry.ingest.scan import Findings, Scan, natural_key
from neurofoundry.tasks import Labelled

_IDENTITY = ("scan_id", "dataset", "subject", "session", "person", "source", "path", "sha256")
_TOLERANCE_YEARS = 0.1
_TWINS = 3
"""Fewer equal subjects of two datasets may be chance."""
_RANGES = {"age": (0.0, 120.0), "field_strength": (0.001, 30.0)}


def check_classes(columns: Mapping[str, Column], tasks: Mapping[str, Labelled]) -> None:
    """Raise UsageError when a task has a class that its column can never hold."""
    for name, task in tasks.items():
        declared = columns[task.column].values if task.column in columns else {}
        for label in task.classes:
            if declared and label not in declared:
                raise UsageError(
                    f"tasks.{name}: the class '{label}' is not a value of ingest.columns."
                    f"{task.column}. Declared: {', '.join(declared)}."
                )


def tabulate(
    scans: Sequence[Scan],
    *,
    columns: Mapping[str, Column],
    tasks: Mapping[str, Labelled],
    findings: Findings,
) -> pd.DataFrame:
    """Return one row per scan, with all columns of the cohort but ``split``.

    A declared label column that no dataset has is left out.
    """
    numbers = {"age", "field_strength"} | {
        task.column for task in tasks.values() if task.numeric_label
    }
    tables = {row.columns for scan in scans for row in scan.rows}
    names = {name for columns in tables for name in columns.folded}
    labelled: dict[str, list[Any]] = {}
    for name in (*DESCRIBED, *(name for name in columns if name not in DESCRIBED)):
        column = columns.get(name) or Column.model_validate({"from": [name]})
        if name in DESCRIBED or {source.casefold() for source in column.from_} & names:
            reader = _Reader(name, column, numeric=name in numbers)
            labelled[name] = [reader.value(scan) for scan in scans]
            reader.note_unknown(findings)
    _note_misnamed(scans, columns, findings)
    labelled["site"] = [
        site or scan.dataset for site, scan in zip(labelled["site"], scans, strict=True)
    ]
    identity = {name: [getattr(scan, name) for scan in scans] for name in _IDENTITY}
    frame = pd.DataFrame({**identity, "split": None, **labelled})
    frame = frame.astype({"age": float, "field_strength": float})
    _drop_contradictory_sex(frame, findings)
    _drop_decreasing_ages(frame, findings)
    _note_twin_datasets(frame, findings)
    return frame


def sites(scans: Sequence[Scan], columns: Mapping[str, Column]) -> set[str]:
    """Return the sites of the scans; a scan without one has the name of its dataset as its site."""
    reader = _Reader("site", columns["site"], numeric=False)
    return {str(reader.value(scan) or scan.dataset) for scan in scans}


def cell(scan: Scan, sources: Sequence[str], meaningful: Container[str] = ()) -> str | None:
    """Return what the tables say about a scan, the most specific table that says anything.

    ``sources`` are names of columns in order of preference, in any case. A word for nothing, such
    as 'none', is a value if it is ``meaningful``.
    """
    for row in scan.rows:
        for source in sources:
            value = row.find(source)
            if value in meaningful or not is_missing(value):
                return value
    return None


def _note_misnamed(
    scans: Sequence[Scan], columns: Mapping[str, Column], findings: Findings
) -> None:
    """Record where a dataset lacks a column and has one that most likely is meant."""
    tables: dict[str, dict[Columns, None]] = {}
    for scan in scans:
        tables.setdefault(scan.dataset, {}).update(dict.fromkeys(row.columns for row in scan.rows))
    for dataset, of_dataset in tables.items():
        found = [name for table in of_dataset for name in table.places]
        for name, column in columns.items():
            alike = None if any(map(column.names, found)) else meant(column.from_[0], found)
            if alike and not any(other.names(alike) for other in columns.values()):
                findings.note(
                    dataset,
                    dataset,
                    f"no column '{column.from_[0]}': did you mean '{alike}'? Name it in "
                    f"ingest.columns.{name}.from",
                )


class _Reader:
    """Reads one column of the cohort from the tables and headers of the scans."""

    def __init__(self, name: str, column: Column, *, numeric: bool) -> None:
        self.name, self.numeric = name, numeric
        self.sources, self.classes = column.from_, tuple(column.values)
        self.low, self.high = _RANGES.get(name, (-math.inf, math.inf))
        self.meanings = {theirs: ours for ours, many in column.values.items() for theirs in many}
        self.unknown: Counter[tuple[str, str]] = Counter()
        """Dataset, what was found there: how often."""
        self._by_folded: dict[str, set[str]] = {}
        for theirs, ours in self.meanings.items():
            self._by_folded.setdefault(theirs.casefold(), set()).add(ours)

    def value(self, scan: Scan) -> str | float | None:
        """Return the value of a scan; None where there is none, or one that is not understood."""
        value = scan.header.get(self.name)
        if value is not None and (not isinstance(value, float) or self._in_range(value)):
            return value
        text = cell(scan, self.sources, self.meanings)
        if text is None or not (self.numeric or self.meanings):
            return text
        value = self._number(text) if self.numeric else self._class(text)
        if value is None:
            # Tables of patients are not quoted: a cell may hold what belongs in another column.
            hidden = self.numeric or scan.source == "dicom"
            self.unknown[scan.dataset, _pattern(text) if hidden else f"'{text[:40]}'"] += 1
        return value

    def note_unknown(self, findings: Findings) -> None:
        """Record the values that were not understood."""
        expected = "a number" if self.numeric else f"one of {', '.join(self.classes)}"
        if self.name in _RANGES:
            expected = f"{self.low:g} to {self.high:g}"
        for (dataset, shown), count in self.unknown.items():
            findings.note(
                dataset,
                dataset,
                f"{self.name} is {shown} in {count} scans, expected {expected}: set to n/a",
            )

    def _number(self, text: str) -> float | None:
        """Read a number as tables have it: 45, 45.5, 45,5; ages also with a unit, and 90+."""
        if self.name == "age":
            number = ages.in_years(text)
        else:
            match = re.fullmatch(r"-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?", text.strip(), re.IGNORECASE)
            number = float(match[0].replace(",", ".")) if match else None
        return number if number is not None and self._in_range(number) else None

    def _class(self, text: str) -> str | None:
        """Translate their value to ours: as spelled, else in any case if that is unambiguous."""
        text = text if text in self.meanings else text.removesuffix(".0")
        alike = self._by_folded.get(text.casefold(), set())
        return self.meanings.get(text, next(iter(alike)) if len(alike) == 1 else None)

    def _in_range(self, number: float) -> bool:
        return math.isfinite(number) and self.low <= number <= self.high


def _pattern(text: str) -> str:
    """Return the pattern of a text: a misplaced birth date must not be repeated in an output."""
    pattern = re.sub(r"\d", "9", re.sub(r"[^\W\d_]", "x", text))
    return f"of the form '{pattern[:20]}'"


def _drop_contradictory_sex(frame: pd.DataFrame, findings: Findings) -> None:
    counts = frame.groupby("person")["sex"].nunique()
    for person in counts.index[counts > 1]:
        rows = frame["person"] == person
        dataset = frame.loc[rows, "dataset"].iloc[0]
        findings.note(
            dataset,
            dataset,
            f"sex of {person} is F in one session and M in another: set to n/a in all of them",
        )
        frame.loc[rows, "sex"] = None


def _drop_decreasing_ages(frame: pd.DataFrame, findings: Findings) -> None:
    aged = frame.dropna(subset="age")
    for (dataset, subject), rows in aged.groupby(["dataset", "subject"]):
        # Only numbers order sessions for certain: ses-1 and ses-2, not ses-pre and ses-scan.
        if len(rows) < 2 or rows["session"].str.replace(r"\d+", "#", regex=True).nunique() > 1:
            continue
        rows = rows.loc[sorted(rows.index, key=lambda row: natural_key(rows["session"][row]))]
        if rows["age"].diff().min() < -_TOLERANCE_YEARS:
            ages = ", ".join(
                f"{age:g} in {session}"
                for session, age in zip(rows["session"], rows["age"], strict=True)
            )
            findings.note(
                str(dataset),
                str(dataset),
                f"age of {subject} goes backwards ({ages}): set to n/a in all of them",
            )
            frame.loc[rows.index, "age"] = float("nan")


def _note_twin_datasets(frame: pd.DataFrame, findings: Findings) -> None:
    """Record pairs of datasets whose subjects agree in label, age and sex: one may copy the other.

    Equal labels alone say nothing, as most studies have a sub-01.
    """
    known = frame.dropna(subset=["age", "sex"]).drop_duplicates(["dataset", "subject"])
    by_dataset = {str(name): rows for name, rows in known.groupby("dataset")}
    for one, other in combinations(sorted(by_dataset), 2):
        pairs = by_dataset[one].merge(by_dataset[other], on="subject", suffixes=("", "_other"))
        pairs = pairs[pairs["person"] != pairs["person_other"]]
        same = pairs["sex"].eq(pairs["sex_other"])
        same &= (pairs["age"] - pairs["age_other"]).abs() <= _TOLERANCE_YEARS
        if same.sum() >= _TWINS and same.mean() > 0.8:
            findings.note(
                other,
                other,
                f"{same.sum()} subjects have the label, age and sex of subjects of '{one}': is it "
                "a copy or a derivative? It counts as other people; remove one, or list both in "
                "ingest.shared_subjects",
            )
