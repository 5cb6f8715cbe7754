"""The tables of a BIDS dataset, and which row of them is about which session.

- ``participants.tsv`` (or .csv), ``sessions.tsv`` at the root and ``phenotype/*.tsv`` have a row
  for every participant or, with a column of sessions, for every session of one.
- ``sub-*_sessions.tsv`` and ``*_scans.tsv`` have rows for one subject.
- **Data dictionaries**, inherited as in BIDS, say in which unit ages are and what codes mean
  (`Levels`).
- **Labels**: 1 and 1.0 in a table are the folder sub-01, ses-1 is ses-01, where nothing else could
  be meant. What meets no folder is noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neurofoundry.ingest import ages, delimited
from neurofoundry.ingest.columns import Cells
from neurofoundry.ingest.listing import read_json
from neurofoundry.ingest.matching import match, meant
from neurofoundry.ingest.params import Column, Dataset
from neurofoundry.ingest.scan import Findings, UnusableError
from neurofoundry.runtime.files import spelled

_SESSION = ("session_id", "session", "ses", "visit", "visit_id", "timepoint", "wave")
"""Columns that may say which session a row is about; the first that is there does."""


@dataclass(frozen=True)
class People:
    """What one table says about the subjects of a dataset."""

    path: Path
    rows: Mapping[str, delimited.Row] = field(default_factory=dict)
    """Of a table with one row a subject, by the label of the subject's folder."""
    visits: Mapping[str, Mapping[str, delimited.Row]] = field(default_factory=dict)
    """Of a table with one row a session: by subject, then as the table calls the session."""
    unmatched: Mapping[str, delimited.Row] = field(default_factory=dict)
    """Rows of subjects that have no folder."""


@dataclass(frozen=True)
class Tables:
    """Reads the tables of one dataset."""

    dataset: Dataset
    findings: Findings
    columns: Mapping[str, Column]
    """The columns of the cohort."""

    @property
    def root(self) -> Path:
        return self.findings.data / self.dataset.path

    @property
    def ages(self) -> set[str]:
        """Columns that hold ages, in lower case."""
        age = self.columns.get("age")
        return {source.casefold() for source in age.from_} if age else set()

    def participants_file(self) -> Path:
        """Return participants.tsv, or what stands in its place."""
        expected = self.root / "participants.tsv"
        others = (self.root / name for name in ("participants.csv", "Participants.tsv"))
        return next((file for file in (expected, *others) if _is_there(file)), expected)

    def participants(self, subjects: Sequence[str]) -> People:
        """Return what participants.tsv says. Raises UnusableError where it cannot be read."""
        return self._people(self.participants_file(), subjects)

    def others(self, subjects: Sequence[str]) -> list[People]:
        """Return what sessions.tsv at the root says, and phenotype/*.tsv; the former first."""
        found = []
        for path in (self.root / "sessions.tsv", *sorted((self.root / "phenotype").glob("*.tsv"))):
            if not _is_there(path):
                continue
            try:
                people = self._people(path, subjects)
            except UnusableError as reason:
                self.note(path, f"not read: {reason}")
                continue
            broken = [row for row in people.rows.values() if row.problem]
            for row in broken:
                self.note(path, f"{row.problem}: not used")
            whole = {subject: row for subject, row in people.rows.items() if row not in broken}
            found.append(replace(people, rows=whole))
            if people.unmatched:
                self.note(path, f"{len(people.unmatched)} subjects have no folder: not used")
        return found

    def sessions(self, folder: Path, labels: Sequence[str]) -> dict[str, delimited.Row]:
        """Return the rows of a subject's sessions.tsv by session. Raises UnusableError."""
        path = spelled(folder, f"{folder.name}_sessions.tsv")
        dictionaries = (self.root / "sessions.json", path.with_suffix(".json"))
        rows = self._table(path, "session_id")
        rows = self._understood(rows, self.root / "participants.json", *dictionaries)
        return self.matched(rows, labels, path)

    def scans(self, path: Path) -> dict[str, delimited.Row]:
        """Return the rows of a scans.tsv by file name. Raises UnusableError."""
        return self._table(path, "filename")

    def matched(
        self, rows: Mapping[str, delimited.Row], labels: Sequence[str], table: Path
    ) -> dict[str, delimited.Row]:
        """Return rows by the labels of the session folders; note rows and folders without."""
        keys = match(labels, rows, "ses-")
        if left := sorted(set(rows) - set(keys.values())):
            named = ", ".join(_prefixed(key, "ses-") for key in left)
            self.note(table, f"no such session folder, so not used: {named}")
        if rows and len(keys) < len(labels):
            without = ", ".join(label for label in labels if label not in keys)
            self.note(table, f"sessions without a row: {without}")
        return {label: rows[key] for label, key in keys.items()}

    def without_ages(
        self, rows: tuple[delimited.Row, ...], own: Iterable[delimited.Row | None]
    ) -> tuple[delimited.Row, ...]:
        """Return the rows of a subject without ages: they are those of the first session.

        ``own`` are the rows of the later session, which may have an age of its own.
        """
        aged = {name for row in rows for name in self._aged(row)}
        if aged and not any(self._aged(row) for row in own if row):
            self.note(
                self.participants_file(),
                "the age of a subject is used for the first session alone: later ones need a row "
                "in sessions.tsv, or are n/a",
            )
        return tuple(
            replace(row, cells=row.cells.change(dict.fromkeys(aged & row.cells.keys(), "n/a")))
            for row in rows
        )

    def json(self, file: Path) -> Mapping[str, Any]:
        """Return what a JSON object holds; nothing, with a note, where it cannot be read."""
        content = read_json(file)
        if content is None:
            self.note(file, "not valid JSON, or not readable: not used")
            return {}
        self.findings.remember(file)
        return content if isinstance(content, dict) else {}

    def note(self, path: Path, note: str) -> None:
        """Record what is worth knowing about a file of the dataset."""
        self.findings.note(self.dataset.name, path, note)

    def _people(self, path: Path, subjects: Sequence[str]) -> People:
        if not _is_there(path):
            return People(path)
        table = delimited.read(path, key="participant_id")
        self.findings.remember(path)
        session = _session_column(table)
        rows, notes = table.index_by("participant_id")
        for note in (*table.notes, *(notes if session is None else ())):
            self.note(path, note)
        keys = match(subjects, rows, "sub-")
        self._note_spellings(path, keys)
        dictionaries = self.root / "participants.json", path.with_suffix(".json")
        own = {subject: rows[key] for subject, key in keys.items()}
        left = {_prefixed(key, "sub-"): rows[key] for key in rows.keys() - keys.values()}
        if session is None:
            return People(path, self._understood(own, *dictionaries), {}, left)
        whole, by_session = self._visits(table, session, path)
        visits = {
            subject: self._understood(by_session.get(key, {}), *dictionaries)
            for subject, key in keys.items()
        }
        own = {subject: whole[key] for subject, key in keys.items() if key in whole}
        return People(path, self._understood(own, *dictionaries), visits, left)

    def _visits(
        self, table: delimited.Table, session: str, path: Path
    ) -> tuple[dict[str, delimited.Row], dict[str, dict[str, delimited.Row]]]:
        """Return rows without a session by subject, the others by subject and session."""
        whole: dict[str, delimited.Row] = {}
        visits: dict[str, dict[str, delimited.Row]] = {}
        position = table.columns.index("participant_id")
        for row in table.rows:
            subject = row.fields[position] if position < len(row.fields) else ""
            label = row.cells.find(session)
            known = whole if delimited.is_missing(label) else visits.setdefault(subject, {})
            first = known.setdefault(subject if known is whole else label, row)
            if first is not row and first.fields != row.fields:
                self.note(
                    path,
                    f"lines {first.line} and {row.line} are about the same session and disagree: "
                    "the first is used",
                )
        return whole, visits

    def _note_spellings(self, path: Path, keys: Mapping[str, str]) -> None:
        apart = [
            (key, subject) for subject, key in keys.items() if _prefixed(key, "sub-") != subject
        ]
        if apart:
            key, subject = apart[0]
            self.note(
                path,
                f"{len(apart)} labels are spelled otherwise than their folders, as '{key}' for "
                f"{subject}: matched all the same",
            )

    def _table(self, path: Path, key: str) -> dict[str, delimited.Row]:
        """Return rows by ``key``; none when there is no such table. Raises UnusableError."""
        if not _is_there(path):
            return {}
        table = delimited.read(path, key=key)
        self.findings.remember(path)
        rows, notes = table.index_by(key)
        for note in (*table.notes, *notes):
            self.note(path, note)
        return rows

    def _understood(
        self, rows: Mapping[str, delimited.Row], *inherited: Path
    ) -> dict[str, delimited.Row]:
        """Return rows with ages in years and codes in words, where data dictionaries say so.

        The last of the ``inherited`` dictionaries is the most specific. An age in a unit that is
        not understood becomes n/a.
        """
        described: dict[str, tuple[Path, Any]] = {}
        for dictionary in dict.fromkeys(inherited):
            if rows and dictionary.exists():
                entries = self.json(dictionary).items()
                described |= {name.casefold(): (dictionary, entry) for name, entry in entries}
        tables = {row.cells.columns for row in rows.values()}
        columns = {column for table in tables for column in table.places}
        units, words = {}, {}
        for column in sorted(columns, key=str.casefold):
            file, entry = described.get(column.casefold(), (self.root, None))
            if column.casefold() in self.ages:
                units[column] = self._unit(column, entry, file)
            elif isinstance(entry, Mapping) and (coded := self._words(column, entry, file)):
                words[column] = coded
        return {
            key: replace(row, cells=_translated(row.cells, units, words))
            for key, row in rows.items()
        }

    def _unit(self, column: str, entry: Any, file: Path) -> str | None:
        """Return the unit of a column of ages, as `declared_unit` does; note what is not years."""
        unit, said = ages.declared_unit(column, entry)
        if unit is None:
            self.note(file, f"'{column}' is in {said}, no known unit: set to n/a")
        elif unit != "year":
            self.note(file, f"'{column}' is in {said}: converted to years")
        return unit

    def _words(self, column: str, entry: Mapping[str, Any], file: Path) -> dict[str, str]:
        """Return what the codes of a column mean, by its `Levels`, in words that are declared."""
        declared = [one for one in self.columns.values() if one.names(column) and one.values]
        if not declared:
            return {}
        known = {theirs.casefold() for many in declared[0].values.values() for theirs in many}
        entry = {str(name).casefold(): value for name, value in entry.items()}
        levels = entry.get("levels")
        words = {}
        for code, level in levels.items() if isinstance(levels, Mapping) else ():
            text = level.get("Description", "") if isinstance(level, Mapping) else level
            said = [str(text).strip(), *re.findall(r"[^\W\d_]+", str(text))[:1]]
            word = next((word for word in said if word.casefold() in known), None)
            if word and str(code).casefold() not in known:
                words[str(code)] = word
        if words:
            shown = ", ".join(f"{code} is {word}" for code, word in words.items())
            self.note(file, f"codes of '{column}' are read by its Levels: {shown}")
        return words

    def _aged(self, row: delimited.Row) -> set[str]:
        """Return the columns of a row that hold an age."""
        folded = row.cells.columns.folded
        columns = (name for age in self.ages for name in folded.get(age, ()))
        return {name for name in columns if not delimited.is_missing(row.cells[name])}


def _session_column(table: delimited.Table) -> str | None:
    """Return the column that says which session a row is about, if the table has one a session.

    A column such as 'visit' of a table with one row a subject does not tell sessions apart.
    """
    by_name = {name.casefold(): name for name in table.columns if name}
    found = next((by_name[name] for name in _SESSION if name in by_name), None)
    if found is None:
        found = meant("session_id", by_name.values())
    if found is None or found.casefold() == "session_id":
        return found
    position = table.columns.index("participant_id")
    subjects = [row.fields[position] for row in table.rows if position < len(row.fields)]
    return found if len(set(subjects)) < len(subjects) else None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _prefixed(label: str, prefix: str) -> str:
    return label if label.startswith(prefix) else prefix + label


def _translated(
    cells: Cells,
    units: Mapping[str, str | None],
    words: Mapping[str, Mapping[str, str]],
) -> Cells:
    """Return cells with ages in years and words for codes.

    ``units`` has the unit of every column of ages, ``words`` the words for codes by column.
    """
    changed = {}
    for column in units.keys() & cells.keys():
        unit = units[column]
        if unit is None:
            changed[column] = "n/a"
        elif unit != "year" and (years := ages.in_years(cells[column], unit)) is not None:
            changed[column] = f"{years:.2f}"
    for column in words.keys() & cells.keys():
        code = cells[column].removesuffix(".0")
        changed[column] = words[column].get(code, cells[column])
    return cells.change(changed)
