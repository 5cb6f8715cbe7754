"""Reads tables as people save them: any usual separator, encoding and line ending."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neurofoundry.ingest.scan import UnusableError

_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces"}
_EXPECTED = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    line: int
    fields: tuple[str, ...]
    problem: str | None
    """Why its cells cannot be trusted."""
    cells: Mapping[str, str]
    """Column to value; empty when there is a problem."""


@dataclass(frozen=True)
class Table:
    """A text table, and how it differed from a clean one."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def by(self, key: str) -> tuple[dict[str, Row], list[str]]:
        """Rows by the value in column ``key``, and notes about values that stand twice.

        Where two rows of a key disagree, the cells that differ become n/a.
        """
        index = self.columns.index(key)
        found: dict[str, Row] = {}
        notes = []
        for row in self.rows:
            name = row.fields[index] if index < len(row.fields) else ""
            first = found.setdefault(name, row)
            if first is row or row.fields == first.fields:
                continue
            problem = first.problem or row.problem
            differ = sorted(c for c in first.cells if first.cells[c] != row.cells.get(c))
            cells = {c: "n/a" if c in differ else v for c, v in first.cells.items()}
            found[name] = Row(first.line, first.fields, problem, {} if problem else cells)
            notes.append(
                f"lines {first.line} and {row.line} are about the same {key} and disagree"
                + (f" in {', '.join(differ)}: set to n/a" if differ else "")
            )
        return found, notes


def read(path: Path, *, key: str) -> Table:
    """Read the table at ``path``, which must have the column ``key``.

    Raises UnusableError when nothing in it can be trusted. A row with more or fewer fields than the
    header carries its problem with it: nobody can know which of its values is whose.
    """
    try:
        text, notes = _decode(path.read_bytes())
    except OSError as error:
        raise UnusableError(f"unreadable table: {error.strerror}") from error
    lines = [
        (number, line)
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
        if line.strip()
    ]
    if not lines:
        raise UnusableError("unreadable table: it is empty")
    separator = _separator(lines[0][1], key)
    expected = _EXPECTED.get(path.suffix.lower(), "\t")
    columns = tuple(name.strip() for name in _split(lines[0][1], separator))
    for column in columns:
        if column.casefold() == key.casefold():
            columns = tuple(key if name == column else name for name in columns)
    if key not in columns:
        shown = ", ".join(f"'{column}'" for column in columns[:12])
        raise UnusableError(f"unreadable table: no column '{key}', found {shown}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UnusableError(f"unreadable table: the column '{twice[0]}' stands twice")
    if separator != expected and len(columns) > 1:
        notes.append(
            f"columns are separated by {_SEPARATORS[separator]}, expected "
            f"{_SEPARATORS[expected]} in a {path.suffix} file: read as such"
        )
    rows = []
    for number, line in lines[1:]:
        fields = tuple(field.strip() for field in _split(line, separator))
        problem = None
        if len(fields) != len(columns):
            problem = (
                f"broken row: line {number} of {path.name} has {len(fields)} fields, "
                f"expected {len(columns)}"
            )
        cells = {} if problem else dict(zip(columns, fields, strict=True))
        rows.append(Row(number, fields, problem, cells))
    if rows and all(row.problem for row in rows):
        raise UnusableError(
            f"unreadable table: the header has {len(columns)} fields, no other line has as many"
        )
    return Table(columns, tuple(rows), tuple(notes))


def _decode(content: bytes) -> tuple[str, list[str]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), ["not UTF-8: read as UTF-16"]
        except UnicodeDecodeError:
            raise UnusableError("unreadable table: damaged UTF-16") from None
    if b"\0" in content:
        raise UnusableError(
            "unreadable table: not text (a spreadsheet? save it as tab-separated text)"
        )
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return content.decode("latin-1"), ["not UTF-8: read as Latin-1"]


def _separator(header: str, key: str) -> str:
    if "\t" in header:
        return "\t"
    for separator in (",", ";", " "):
        names = [name.strip().casefold() for name in _split(header, separator)]
        if len(names) > 1 and key.casefold() in names:
            return separator
    return "\t"


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
    """Whether a cell holds one of the usual words for nothing."""
    return cell.strip().casefold() in {"", "n/a", "na", "#n/a", "nan", "null", "none"}
