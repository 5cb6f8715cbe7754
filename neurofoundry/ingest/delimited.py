"""Reads tables as people save them: any usual separator, encoding and line ending."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neurofoundry.ingest.columns import NO_CELLS, Cells, Columns
from neurofoundry.ingest.matching import meant
from neurofoundry.ingest.scan import UnusableError, as_reason
from neurofoundry.params import MOST_BYTES
from neurofoundry.runtime import machine

_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces"}
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
"""Characters that copying from a web page or a word processor leaves."""
_SHOWN = 12
"""Columns that a message names."""
_MEMORY = 10
"""Bytes of memory that a byte of a table takes: 5 to 10 were measured for 1,000 columns."""
_EXPECTED = {".tsv": "\t", ".csv": ","}
"""The separator that the name of a file promises."""


class MisnamedColumnError(UnusableError):
    """A table lacks the column that it is read by, and has one that most likely is meant."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    line: int
    fields: tuple[str, ...]
    problem: str | None
    """Why its cells cannot be trusted."""
    cells: Cells
    """Column to value; empty when there is a problem."""


@dataclass(frozen=True)
class Table:
    """A text table, and how it differed from a clean one."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def index_by(self, key: str) -> tuple[dict[str, Row], list[str]]:
        """Return the rows by their value in column ``key``, and notes about duplicate values.

        Where two rows with the same value disagree, the cells that differ become n/a.
        """
        position = self.columns.index(key)
        rows: dict[str, Row] = {}
        notes = []
        for row in self.rows:
            value = row.fields[position] if position < len(row.fields) else ""
            first = rows.setdefault(value, row)
            if first is row or row.fields == first.fields:
                continue
            problem = first.problem or row.problem
            differing = sorted(c for c in first.cells if first.cells[c] != row.cells.get(c))
            cells = first.cells.change(dict.fromkeys(differing, "n/a"))
            rows[value] = Row(first.line, first.fields, problem, NO_CELLS if problem else cells)
            shown = ", ".join(differing[:_SHOWN]) + (", …" if len(differing) > _SHOWN else "")
            notes.append(
                f"lines {first.line} and {row.line} have the same {key} and disagree"
                + (f" in {shown}: set to n/a" if differing else "")
            )
        return rows, notes


def read(path: Path, *, key: str) -> Table:
    """Read the table at ``path``, which must have the column ``key``.

    Raises UnusableError when nothing in it can be trusted. A row with more or fewer fields than the
    header has a problem of its own: there is no telling which value belongs to which column. All
    text is in one Unicode form (NFC), so that labels which look alike are equal.
    """
    with as_reason("unreadable table"):
        if path.exists() and not path.is_file():  # reading a pipe or a device would never end
            raise UnusableError("unreadable table: not a file")
        _check_size(path.stat().st_size)
        text, notes = _decode(path.read_bytes())
    lines = _lines(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)))
    if lines and "\0" in lines[0][1]:
        raise UnusableError(
            "unreadable table: not text (a spreadsheet? save it as tab-separated text)"
        )
    if lines and re.fullmatch(r"sep=.", lines[0][1].strip(), re.IGNORECASE):  # for a spreadsheet
        lines = lines[1:]
    if not lines:
        raise UnusableError("unreadable table: it is empty")
    header = lines[0][1]
    separator = _separator(header, key)
    columns = _columns(header, separator, key)
    if len(columns) > 1:
        notes += _separator_notes(separator, path.suffix)
    names, seen = Columns(columns), dict[str, str]()
    rows = [_row(*line, columns, names, separator, path.name, seen) for line in lines[1:]]
    if rows and (surplus := _trailing(rows, len(columns))):
        columns = (*columns, *[""] * surplus)
        rows = [_row(*line, columns, names, separator, path.name, seen) for line in lines[1:]]
    notes += _notes(columns, rows)
    if rows and all(row.problem for row in rows):
        raise UnusableError(
            f"unreadable table: the header has {len(columns)} fields, no other line has as many"
        )
    return Table(columns, tuple(rows), tuple(notes))


def _check_size(size: int) -> None:
    """Raise UnusableError where a table would need more memory than there is."""
    if size > MOST_BYTES and size * _MEMORY > (free := machine.memory()):
        needed, there = (f"{value / 1e9:.1f} GB" for value in (size * _MEMORY, free))
        raise UnusableError(
            f"unreadable table: {size / 1e9:.1f} GB, which take about {needed} of memory to read, "
            f"and {there} are free. Keep the columns that are needed, in a smaller table"
        )


def _decode(content: bytes) -> tuple[str, list[str]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), ["not UTF-8: read as UTF-16"]
        except UnicodeDecodeError:
            raise UnusableError("unreadable table: damaged UTF-16") from None
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return content.decode("latin-1"), ["not UTF-8: read as Latin-1"]


def _lines(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _separator(header: str, key: str) -> str:
    if "\t" in header:
        return "\t"
    for separator in (",", ";", " "):
        names = [name.strip() for name in _split(header, separator)]
        known = key.casefold() in [name.casefold() for name in names]
        if len(names) > 1 and (known or (separator != " " and meant(key, filter(None, names)))):
            return separator
    return "\t"


def _columns(header: str, separator: str, key: str) -> tuple[str, ...]:
    """Return the names of the columns; ``key`` is recognized in any case."""
    names = [name.strip() for name in _split(header, separator)]
    columns = tuple(key if name.casefold() == key.casefold() else name for name in names)
    if key not in columns:
        named = [column for column in columns if column]
        shown = ", ".join(f"'{column[:40]}'" for column in columns[:_SHOWN])
        problem = f"unreadable table: no column '{key}', found {shown}"
        if alike := meant(key, named):
            raise MisnamedColumnError(f"{problem}. Did you mean '{alike}'? Rename it to '{key}'")
        raise UnusableError(problem)
    counts = Counter(column for column in columns if column)
    if duplicates := sorted(column for column, count in counts.items() if count > 1):
        raise UnusableError(f"unreadable table: duplicate column '{duplicates[0]}'")
    return columns


def _trailing(rows: Sequence[Row], columns: int) -> int:
    """Return how many empty fields every row has after those of the header."""
    surplus = {len(row.fields) - columns for row in rows}
    extra = surplus.pop()
    if surplus or extra <= 0 or any(any(row.fields[columns:]) for row in rows):
        return 0
    return extra


def _notes(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return what readers should know about columns that are not read, or not as expected."""
    notes = []
    nameless = [place for place, name in enumerate(columns) if not name]
    used = [place for place in nameless if any(any(row.fields[place : place + 1]) for row in rows)]
    if used:
        notes.append(f"{len(used)} columns without a name are not read: give them one to use them")
    by_case: dict[str, str] = {}
    for name in filter(None, columns):
        first = by_case.setdefault(name.casefold(), name)
        if first != name:
            notes.append(
                f"columns '{first}' and '{name}' differ in case only: the one that is spelled as "
                "in ingest.columns is used"
            )
    return notes


def _separator_notes(separator: str, suffix: str) -> list[str]:
    expected = _EXPECTED.get(suffix.lower(), "\t")
    if separator == expected:
        return []
    return [
        f"columns are separated by {_SEPARATORS[separator]}, expected {_SEPARATORS[expected]} in "
        f"a {suffix} file: read all the same"
    ]


def _row(
    number: int,
    line: str,
    columns: tuple[str, ...],
    names: Columns,
    separator: str,
    table: str,
    seen: dict[str, str],
) -> Row:
    """Read a line; equal cells of a table are kept once, in ``seen``."""
    fields = tuple(seen.setdefault(cell, cell) for cell in map(str.strip, _split(line, separator)))
    if "\0" in line:
        problem = f"broken row: line {number} of {table} holds a NUL character"
        return Row(number, fields, problem, NO_CELLS)
    if len(fields) == len(columns):
        return Row(number, fields, None, Cells(names, fields))
    problem = (
        f"broken row: line {number} of {table} has {len(fields)} fields, expected {len(columns)}"
    )
    return Row(number, fields, problem, NO_CELLS)


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    if separator == "\t":  # a lone quotation mark is a character like any other, as in BIDS
        return [cell.strip().removeprefix('"').removesuffix('"') for cell in line.split("\t")]
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return line.split(separator)


def is_missing(cell: str) -> bool:
    """Return whether a cell holds one of the usual words for nothing."""
    return cell.strip().casefold() in {"", "n/a", "na", "#n/a", "nan", "null", "none"}
