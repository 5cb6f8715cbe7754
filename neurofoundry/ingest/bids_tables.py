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
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neurofoundry.ingest import ages, delimited
from neurofoundry.ingest.columns import NO_CELLS, Cells
from neurofoundry.ingest.listing import read_json, visible
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

    def each(self) -> Iterator[tuple[str, str, delimited.Row]]:
        """Yield subject, session ('' for all) and row."""
        yield from ((subject, "", row) for subject, row in self.rows.items())
        for subject, visits in self.visits.items():
            yield from ((subject, session, row) for session, row in visits.items())

    def without(self, cells: Container[tuple[str, str, str]]) -> People:
        """Return the table with n/a in ``cells``: subject, session, column in lower case."""

        def emptied(subject: str, session: str, row: delimited.Row) -> delimited.Row:
            names = (name for name in row.cells if (subject, session, name.casefold()) in cells)
            return replace(row, cells=row.cells.change(dict.fromkeys(names, "n/a")))

        rows = {subject: emptied(subject, "", row) for subject, row in self.rows.items()}
        visits = {
            subject: {session: emptied(subject, session, row) for session, row in of_one.items()}
            for subject, of_one in self.visits.items()
        }
        return replace(self, rows=rows, visits=visits)


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

    @cached_property
    def participants_file(self) -> Path:
        """What `participants_file` finds, which lists the root: once, not for every session."""
        return participants_file(self.root)

    def participants(self, subjects: Sequence[str]) -> People:
        """Return what participants.tsv says. Raises UnusableError where it cannot be read."""
        return self._people(self.participants_file, subjects)

    def others(self, subjects: Sequence[str]) -> list[People]:
        """Return what phenotype/*.tsv says, and sessions.tsv at the root; the latter last."""
        phenotype = visible(self.root / "phenotype")
        found = self._others([file for file in phenotype if delimited.is_table(file)], subjects)
        self._drop_contradictions(found)
        for file in phenotype:
            if not delimited.is_table(file) and file.suffix != ".json":
                self.note(file, "not read: expected a .tsv or .csv. Save it as one")
        return found + self._others([self.root / "sessions.tsv"], subjects)

    def _others(self, paths: Iterable[Path], subjects: Sequence[str]) -> list[People]:
        found = []
        for path in paths:
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

    def _drop_contradictions(self, tables: list[People]) -> None:
        """Set to n/a what tables of one rank say differently of one session, or of one subject.

        Two tables may each be about a visit, and not say so; which comes last by name is chance.
        """
        used = {name.casefold() for column in self.columns.values() for name in column.from_}
        said: dict[tuple[str, str, str], dict[Path, str]] = {}
        for table in tables:
            for subject, session, row in table.each():
                for column in used & row.cells.columns.folded.keys():
                    if not delimited.is_missing(value := row.cells.find(column)):
                        said.setdefault((subject, session, column), {})[table.path] = value
        doubtful = {
            key for key, values in said.items() if len(set(map(_same, values.values()))) > 1
        }
        for column in sorted({column for _, _, column in doubtful}):
            keys = [key for key in doubtful if key[2] == column]
            first, *others = sorted({path for key in keys for path in said[key]})
            self.note(
                first,
                f"'{column}' of {len(keys)} subjects or sessions is another in "
                f"{', '.join(other.name for other in others)}: set to n/a. If each table is about "
                "one session, give them a column session_id",
            )
        for place, table in enumerate(tables if doubtful else ()):
            tables[place] = table.without(doubtful)

    def sessions(self, folder: Path, labels: Sequence[str]) -> dict[str, delimited.Row]:
        """Return the rows of a subject's sessions.tsv by session. Raises UnusableError."""
        path = spelled(folder, f"{folder.name}_sessions.tsv")
        dictionaries = (self.root / "sessions.json", path.with_suffix(".json"))
        rows = self._table(path, "session_id")
        rows = self._understood(rows, self.root / "participants.json", *dictionaries)
        return self.matched(rows, labels, path)

    def scans(self, path: Path) -> dict[str, delimited.Row]:
        """Return the rows of a scans.tsv by file name. Raises UnusableError."""
        dictionaries = (self.root / "scans.json", path.with_suffix(".json"))
        rows = self._table(path, "filename")
        return self._understood(rows, self.root / "participants.json", *dictionaries)

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
                self.participants_file,
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
            absent = file.is_symlink() and not file.exists()
            why = (
                "a link to nothing: fetch it (`datalad get`)"
                if absent
                else "not valid JSON, or not readable"
            )
            self.note(file, f"{why}: not used")
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
        for nobody in [key for key in rows if delimited.is_missing(key)]:
            del rows[nobody]
            self.note(path, "lines without a participant_id are not used")
        for note in (*table.notes, *(notes if session is None else ())):
            self.note(path, note)
        keys = match(subjects, rows, "sub-")
        self._note_spellings(path, keys)
        dictionaries = self.root / "participants.json", path.with_suffix(".json")
        own = {subject: rows[key] for subject, key in keys.items()}
        left = {_prefixed(key, "sub-"): rows[key] for key in rows.keys() - keys.values()}
        if session is None:
            return People(path, self._understood(own, *dictionaries, units=table.units), {}, left)
        whole, by_session = self._visits(table, session, path)
        visits = {
            subject: self._understood(by_session.get(key, {}), *dictionaries, units=table.units)
            for subject, key in keys.items()
        }
        own = {subject: whole[key] for subject, key in keys.items() if key in whole}
        return People(path, self._understood(own, *dictionaries, units=table.units), visits, left)

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
        self, rows: Mapping[str, delimited.Row], *inherited: Path, units: Cells = NO_CELLS
    ) -> dict[str, delimited.Row]:
        """Return rows with ages in years and codes in words, where data dictionaries say so.

        The last of the ``inherited`` dictionaries is the most specific; ``units`` is a line of the
        table that says them. An age in a unit that is not understood becomes n/a.
        """
        described: dict[str, tuple[Path, Any]] = {}
        for dictionary in dict.fromkeys(inherited):
            if rows and _is_there(dictionary):
                entries = self.json(dictionary).items()
                described |= {name.casefold(): (dictionary, entry) for name, entry in entries}
        tables = {row.cells.columns for row in rows.values()}
        columns = {column for table in tables for column in table.places}
        stated, words = {}, {}
        for column in sorted(columns, key=str.casefold):
            file, entry = described.get(column.casefold(), (self.root, None))
            if column.casefold() in self.ages:
                stated[column] = self._unit(column, entry or {"Units": units.find(column)}, file)
            elif isinstance(entry, Mapping) and (coded := self._words(column, entry, file)):
                words[column] = coded
        return {
            key: replace(row, cells=_translated(row.cells, stated, words))
            for key, row in rows.items()
        }

    def _unit(self, column: str, entry: Any, file: Path) -> str | None:
        """Return the unit of a column of ages, as `declared_unit` does; note what is not years."""
        unit, said = ages.declared_unit(column, entry)
        if unit is None:
            self.note(file, f"'{column}' is in {said}, no known unit: set to n/a")
        elif unit != "year" and unit != ages.named_unit(column):  # else its reader says it
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


def participants_file(root: Path) -> Path:
    """Return participants.tsv, in any case, or participants.csv in its place."""
    names = {file.name.casefold(): file for file in reversed(visible(root))}
    found = (names.get(name) for name in ("participants.tsv", "participants.csv"))
    return next(filter(None, found), root / "participants.tsv")


def _same(value: str) -> str:
    """Return what is the same in values that a program or a person spells otherwise: 1 and 1.0."""
    return value.casefold().removesuffix(".0")


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
        elif unit != (ages.named_unit(column) or "year"):
            changed[column] = ages.with_unit(cells[column], unit)
    for column in words.keys() & cells.keys():
        code = cells[column].removesuffix(".0")
        changed[column] = words[column].get(code, cells[column])
    return cells.change(changed)
