"""From cells as people write them to the columns of the cohort.

- A value that `ingest.columns` does not name becomes n/a; the scan stays, for pretraining and for
  other tasks, and notes.tsv says what was found.
- **Sex that contradicts itself** between the sessions of a person, or between tables, becomes n/a
  in all of them: there is no telling which is right.
- **Age that goes backwards** from one numbered session to the next becomes n/a in all sessions of
  that subject, for the same reason.
- Ages are years from 0 to 120, '18 months' too; '90+' counts as 90. Field strengths are tesla up to
  30. Labels that are numbers have the range and the codes for 'missing' that are declared; what
  lies far from all others is used and noted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from neurofoundry.errors import UsageError
from neurofoundry.ingest import ages, numbers
from neurofoundry.ingest.columns import Columns
from neurofoundry.ingest.delimited import is_missing
from neurofoundry.ingest.matching import meant
from neurofoundry.ingest.params import DESCRIBED, Column
from neurofoundry.ingest.scan import Findings, Scan, natural_key
from neurofoundry.tasks import Labelled

_IDENTITY = ("scan_id", "dataset", "subject", "session", "person", "source", "path", "sha256")
_TOLERANCE_YEARS = 0.1
_TWINS = 3
"""Fewer equal subjects of two datasets may be chance."""
LONGEST_CODE = 5
"""Characters of a number, such as -9999, that is shown: longer ones may be dates of birth."""
_RANGES = {"age": (0.0, 120.0), "field_strength": (0.001, 30.0)}


def check_classes(columns: Mapping[str, Column], tasks: Mapping[str, Labelled]) -> None:
    """Raise UsageError when a task has a class that its column can never hold, or a column a range
    that has no effect."""
    numeric = _numeric(tasks)
    for name, column in columns.items():
        if column.range and name not in numeric:
            raise UsageError(
                f"ingest.columns.{name}: `range` has no effect, as no task predicts {name} as a "
                "number. Remove it, or add a task of kind regression."
            )
    for name, task in tasks.items():
        declared = columns[task.column].values if task.column in columns else {}
        for label in task.classes:
            if declared and label not in declared:
                raise UsageError(
                    f"tasks.{name}: the class '{label}' is not a value of ingest.columns."
                    f"{task.column}. Declared: {', '.join(declared)}."
                )


def _numeric(tasks: Mapping[str, Labelled]) -> set[str]:
    """Return the columns that hold numbers."""
    return {"age", "field_strength"} | {t.column for t in tasks.values() if t.numeric_label}


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
    numeric = _numeric(tasks)
    tables = {row.columns for scan in scans for row in scan.rows}
    names = {name for columns in tables for name in columns.folded}
    labelled: dict[str, list[Any]] = {}
    for name in (*DESCRIBED, *(name for name in columns if name not in DESCRIBED)):
        column = columns.get(name) or Column.model_validate({"from": [name]})
        if name in DESCRIBED or {source.casefold() for source in column.from_} & names:
            reader = _Reader(name, column, numeric=name in numeric, scans=scans)
            labelled[name] = [reader.value(scan) for scan in scans]
            reader.note_unknown(findings)
            if name in numeric and name != "field_strength":
                _note_strays(name, scans, labelled[name], findings)
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
    reader = _Reader("site", columns["site"], numeric=False, scans=scans)
    return {str(reader.value(scan) or scan.dataset) for scan in scans}


def cell(scan: Scan, sources: Sequence[str], meaningful: Container[str] = ()) -> str | None:
    """Return what the tables say about a scan, the most specific table that says anything.

    ``sources`` are names of columns in order of preference, in any case. A word for nothing, such
    as 'none', is a value if it is ``meaningful``.
    """
    return next((value for _, value in _cells(scan, sources, meaningful)), None)


def _cells(
    scan: Scan, sources: Sequence[str], meaningful: Container[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield what each table says, and the column, as `cell` does."""
    for row in scan.rows:
        for source in sources:
            value = row.find(source)
            if value in meaningful or not is_missing(value):
                yield source, value
                break


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

    def __init__(self, name: str, column: Column, *, numeric: bool, scans: Sequence[Scan]) -> None:
        self.name, self.numeric = name, numeric
        self.sources, self.classes = column.from_, tuple(column.values)
        possible, declared = (
            (-math.inf, math.inf) if ends is None else ends
            for ends in (_RANGES.get(name), column.range)
        )
        self.low, self.high = max(possible[0], declared[0]), min(possible[1], declared[1])
        self.missing = {code.strip().casefold() for code in column.missing}
        self.missing_numbers = {numbers.read(code, None) for code in column.missing} - {None}
        self.meanings = {theirs: ours for ours, many in column.values.items() for theirs in many}
        self.unknown: Counter[tuple[str, str]] = Counter()
        """Dataset, what was found there: how often."""
        self.contradictory: Counter[str] = Counter()
        """Dataset: scans of which its tables say different sexes."""
        self.converted: dict[tuple[str, str], str] = {}
        """Dataset and column: the unit of ages that are not in years."""
        self._by_folded: dict[str, set[str]] = {}
        for theirs, ours in self.meanings.items():
            self._by_folded.setdefault(theirs.casefold(), set()).add(ours)
        self._commas = self._read_commas(scans) if numeric and name != "age" else {}
        self._mujeres = self._of_mujeres(scans) if name == "sex" else set()

    def value(self, scan: Scan) -> str | float | None:
        """Return the value of a scan; None where there is none, or one that is not understood."""
        if self.name == "sex" and self._contradicts(scan):
            self.contradictory[scan.dataset] += 1
            return None
        value = scan.header.get(self.name)
        if value is not None and (not isinstance(value, float) or self._in_range(value)):
            return value
        column, text = next(_cells(scan, self.sources, self.meanings), ("", None))
        if text is None or self._is_missing(text):
            return None
        if not (self.numeric or self.meanings):
            return text
        value = self._number(text, column, scan.dataset) if self.numeric else self._class(text)
        if text.casefold() == "m" and scan.dataset in self._mujeres:
            value, text = None, f"{text}, or mujer, as others are H"
        if value is None:
            # Tables of patients are not quoted: a cell may hold what belongs in another column.
            hidden = self.numeric or scan.source == "dicom"
            self.unknown[scan.dataset, _pattern(text) if hidden else f"'{text[:40]}'"] += 1
        return value

    def note_unknown(self, findings: Findings) -> None:
        """Record the values that were not understood."""
        expected = "a number" if self.numeric else f"one of {', '.join(self.classes)}"
        fix = (
            f". If it means one of them: ingest.columns.{self.name}.values" if self.classes else ""
        )
        if math.isfinite(self.high - self.low):
            expected = f"{self.low:g} to {self.high:g}"
        elif any(re.search(r"\d[.,]999\b", shown) for _, shown in self.unknown):
            expected += (
                " that cannot be another (1,234 may be 1.234, or 1234: write it without comma)"
            )
        for (dataset, shown), count in self.unknown.items():
            findings.note(
                dataset,
                dataset,
                f"{self.name} is {shown} in {count} scans, expected {expected}: set to n/a{fix}",
            )
        for dataset, count in self.contradictory.items():
            findings.note(
                dataset,
                dataset,
                f"{self.name} of {count} scans is F in one table and M in another: set to n/a",
            )
        for (dataset, column), unit in self.converted.items():
            findings.note(dataset, dataset, f"'{column}' is read as {unit}s: converted to years")

    def _contradicts(self, scan: Scan) -> bool:
        """Return whether the header of a scan and the tables say both sexes of it."""
        said = {self._class(text) for _, text in _cells(scan, self.sources, self.meanings)}
        return len((said | {scan.header.get(self.name)}) - {None}) > 1

    def _of_mujeres(self, scans: Sequence[Scan]) -> set[str]:
        """Return the datasets in which M may be mujer, as others are H, hombre, and nobody is F."""
        said: dict[str, set[str]] = {}
        for scan in scans:
            of_scan = (text.casefold() for _, text in _cells(scan, self.sources, self.meanings))
            said.setdefault(scan.dataset, set()).update(of_scan)
        return {
            dataset
            for dataset, words in said.items()
            if "h" in words
            and not self._class("h")
            and not any(self._class(word) == "F" for word in words)
        }

    def _read_commas(self, scans: Sequence[Scan]) -> dict[str, numbers.Comma | None]:
        """Return what commas stand for in the column, by dataset."""
        cells: dict[str, list[str]] = {}
        for scan in scans:
            cells.setdefault(scan.dataset, []).append(cell(scan, self.sources) or "")
        return {dataset: numbers.comma(texts) for dataset, texts in cells.items()}

    def _is_missing(self, text: str) -> bool:
        """Return whether a cell holds a code that was declared: -9 is -9.0, too."""
        if not self.missing:
            return False
        number = numbers.read(text, None)
        return text.strip().casefold() in self.missing or (
            number is not None and number in self.missing_numbers
        )

    def _number(self, text: str, column: str, dataset: str) -> float | None:
        """Read a number as tables have it: 45, 45.5, 45,5; ages also with a unit, and 90+."""
        if self.name == "age":
            unit = ages.named_unit(column) or "year"
            age = ages.in_years(text, unit)
            readings = set() if age is None else {age}
            if unit != "year" and ages.has_no_unit(text):
                self.converted[dataset, column] = unit
        else:
            readings = numbers.readings(text, self._commas.get(dataset))
        possible = [number for number in readings if self._in_range(number)]
        return possible[0] if len(possible) == 1 else None

    def _class(self, text: str) -> str | None:
        """Translate their value to ours: as spelled, else in any case if that is unambiguous."""
        text = text if text in self.meanings else text.removesuffix(".0")
        alike = self._by_folded.get(text.casefold(), set())
        return self.meanings.get(text, next(iter(alike)) if len(alike) == 1 else None)

    def _in_range(self, number: float) -> bool:
        return math.isfinite(number) and self.low <= number <= self.high


def _note_strays(
    name: str, scans: Sequence[Scan], values: Sequence[Any], findings: Findings
) -> None:
    """Record numbers that lie far from all others of a dataset: most likely codes."""
    by_dataset: dict[str, list[float]] = {}
    for scan, value in zip(scans, values, strict=True):
        if value is not None:
            by_dataset.setdefault(scan.dataset, []).append(float(value))
    for dataset, known in by_dataset.items():
        apart = numbers.strays(known)
        if apart:
            shown = ", ".join(f"{_short(value)} ({count})" for value, count in apart.items())
            findings.note(
                dataset,
                dataset,
                f"{name} is far from all other values in {sum(apart.values())} scans: {shown}. "
                f"They are used. If they are codes, list them in ingest.columns.{name}.missing; "
                f"if they are wrong, give ingest.columns.{name}.range",
            )


def _short(number: float) -> str:
    text = f"{number:.10g}"
    return text if len(text) <= LONGEST_CODE else _pattern(text)


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
