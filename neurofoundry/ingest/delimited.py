"""Reads tables as people save them: any usual separator, encoding and line ending."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from neurofoundry.ingest import ages
from neurofoundry.ingest.columns import NO_CELLS, Cells, Columns
from neurofoundry.ingest.matching import meant
from neurofoundry.ingest.scan import NotFetchedError, UnusableError, as_reason, check_fetched
from neurofoundry.params import MOST_BYTES
from neurofoundry.runtime import machine

_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces"}
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
"""Characters that copying from a web page or a word processor leaves."""
_SHOWN = 12
"""Columns that a message names."""
_ABOVE = 10
"""Lines within which a header may begin, below a title."""
_CELL = 100
"""Lines that a cell may have."""
_MEMORY = 10
"""Bytes of memory that a byte of a table takes: 5 to 10 were measured for 1,000 columns."""
_EXPECTED = {".tsv": "\t", ".csv": ","}
"""The separator that the name of a file promises."""
_NOTHING = {"", "n/a", "na", "nan", "null", "none", ".", "?", "#nv", "#n/d", "#nd"}
_ERROR = re.compile(r"#n/?a|#[^\W\d_]+(?:/0)?[!?]|[-–—]+|#{2,}")
"""What a spreadsheet shows where a formula fails, in any language, or a number is too wide."""
_UNITS = re.compile(r"[\[(]?(?:units?|einheit(?:en)?|unités?|unidad(?:es)?)[\])]?:?", re.IGNORECASE)
"""What a line of units is called."""


class MisnamedColumnError(UnusableError):
    """A table lacks the column that it is read by, and has one that most likely is meant."""


class BrokenTableError(UnusableError):
    """A table has the column that it is read by, and cannot be read all the same."""


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
    units: Cells = field(default_factory=lambda: NO_CELLS)
    """What a line of units below the header says."""

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
        if path.is_symlink() and not path.exists():
            raise NotFetchedError(
                "broken link: the table itself is not there. Fetch it (`datalad get`, `dvc pull`)"
            )
        if path.exists() and not path.is_file():  # reading a pipe or a device would never end
            raise UnusableError("unreadable table: not a file")
        _check_size(path.stat().st_size)
        content = path.read_bytes()
    check_fetched(content[:200], "table")
    text, notes = _decode(content)
    lines = _lines(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)))
    if lines and "\0" in lines[0][1]:
        raise UnusableError(
            "unreadable table: not text (a spreadsheet? save it as tab-separated text)"
        )
    if lines and re.fullmatch(r"sep=.", lines[0][1].strip(), re.IGNORECASE):  # for a spreadsheet
        lines = lines[1:]
    if not lines:
        raise UnusableError("unreadable table: it is empty")
    lines, above = _below_title(lines, key)
    separator = _separator(lines[0][1], key)
    (first, header), *records = _records(lines, separator)
    columns = _columns(header, separator, key)
    if len(columns) > 1:
        notes += _separator_notes(separator, path.suffix)
    rows = _rows(records, columns, separator, path.name)
    if rows and (surplus := _trailing(rows, len(columns))):
        columns = (*columns, *[""] * surplus)
        rows = _rows(records, columns, separator, path.name)
    notes += above + _notes(columns, rows)
    rows, more = _without_headers(rows, columns, key, first)
    rows, units = _without_units(rows, columns, key)
    rows, twice = _merged(rows, columns)
    if units:
        more.append("the line below the header says units, and is nobody")
    if rows and all(row.problem for row in rows):
        raise BrokenTableError(
            f"unreadable table: the header has {len(columns)} fields, no other line has as many"
        )
    return Table(_told_apart(columns), tuple(rows), (*notes, *more, *twice), units)


def is_table(file: Path) -> bool:
    """Return whether the name of a file says that it is a text table."""
    return file.suffix.casefold() in _EXPECTED


def _check_size(size: int) -> None:
    """Raise UnusableError where a table would need more memory than there is."""
    if size > MOST_BYTES and size * _MEMORY > (free := machine.memory()):
        needed, there = (f"{value / 1e9:.1f} GB" for value in (size * _MEMORY, free))
        raise UnusableError(
            f"unreadable table: {size / 1e9:.1f} GB, which take about {needed} of memory to read, "
            f"and {there} are free. Keep the columns that are needed, in a smaller table"
        )


def _decode(content: bytes) -> tuple[str, list[str]]:
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if utf16 := "utf-16" if marked else _unmarked(content):
        try:
            return content.decode(utf16), ["not UTF-8: read as UTF-16"]
        except UnicodeDecodeError:
            raise UnusableError("unreadable table: damaged UTF-16") from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    for encoding in ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text, [] if encoding == "utf-8" else ["not UTF-8: read as Windows-1252"]
    return content.decode("latin-1"), ["not UTF-8: read as Latin-1"]


def _unmarked(content: bytes) -> str | None:
    """Return which UTF-16 a table without its mark is in, if it is: every other byte of Latin
    letters is 0."""
    start = content[:200]
    low, high = start[::2], start[1::2]
    if high.count(0) > len(high) / 2 and 0 not in low:
        return "utf-16-le"
    return "utf-16-be" if low.count(0) > len(low) / 2 and 0 not in high else None


def _lines(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _below_title(lines: list[tuple[int, str]], key: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Leave out a title above the header: lines with one cell, or that are commented out."""
    for place, (number, line) in enumerate(lines[:_ABOVE]):
        separator = _separator(line, key)
        if key.casefold() not in (name.strip().casefold() for name in _split(line, separator)):
            continue
        above = [_split(other, separator) for _, other in lines[:place]]
        if place and all(cells[0].startswith("#") or sum(map(bool, cells)) == 1 for cells in above):
            return lines[place:], [f"the header is line {number}: what is above it is not read"]
        break
    return lines, []


def _separator(header: str, key: str) -> str:
    if "\t" in header:
        return "\t"
    for separator in (",", ";", " "):
        names = [name.strip() for name in _split(header, separator)]
        known = key.casefold() in [name.casefold() for name in names]
        if len(names) > 1 and (known or (separator != " " and meant(key, filter(None, names)))):
            return separator
    return "\t"


def _records(lines: list[tuple[int, str]], separator: str) -> list[tuple[int, str]]:
    """Join the lines of cells that have several, which are in quotation marks.

    A mark that is never closed is a character like any other, and swallows nothing.
    """
    records: list[tuple[int, str]] = []
    place, width = 0, 0
    opening = re.compile(f'(?:^|{re.escape(separator)})"')
    while place < len(lines):
        number, line = lines[place]
        end = place + 1
        if line.count('"') % 2 and opening.search(line) and separator != " ":
            line, end = _joined(lines, place, separator, width)
        width = width or len(_split(line, separator))
        records.append((number, line))
        place = end
    return records


def _joined(
    lines: list[tuple[int, str]], place: int, separator: str, width: int
) -> tuple[str, int]:
    """Return the record that begins at ``place`` and has ``width`` fields (0: any number), and
    where the next one begins."""
    alone = lines[place][1]
    if separator == "\t" and len(_split(alone, separator)) == width:
        return alone, place + 1
    joined = alone
    for end in range(place + 1, min(place + _CELL, len(lines))):
        joined += " " + lines[end][1]
        if joined.count('"') % 2 == 0:
            fields = _quoted(joined, separator)
            if fields and len(fields) == (width or len(fields)):
                return joined, end + 1
    return alone, place + 1


def _columns(header: str, separator: str, key: str) -> tuple[str, ...]:
    """Return the names of the columns; ``key`` is recognized in any case."""
    names = [" ".join(name.split()) for name in _split(header, separator)]
    columns = tuple(key if name.casefold() == key.casefold() else name for name in names)
    if key not in columns:
        named = [column for column in columns if column]
        shown = ", ".join(f"'{column[:40]}'" for column in columns[:_SHOWN])
        problem = f"unreadable table: no column '{key}', found {shown}"
        if alike := meant(key, named):
            raise MisnamedColumnError(f"{problem}. Did you mean '{alike}'? Rename it to '{key}'")
        raise UnusableError(problem)
    if columns.count(key) > 1:
        raise BrokenTableError(f"unreadable table: duplicate column '{key}'")
    return columns


def _told_apart(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns, of which each has a name of its own or none."""
    first = {name: place for place, name in reversed(list(enumerate(columns)))}
    return tuple(name if first[name] == place else "" for place, name in enumerate(columns))


def _merged(rows: list[Row], columns: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Make columns of one name one; where their cells differ it is n/a."""
    known: dict[str, list[int]] = {}
    for place, name in enumerate(columns):
        known.setdefault(name, []).append(place)
    places = {name: many for name, many in known.items() if name and len(many) > 1}
    if not places:
        return rows, []
    differing = 0
    merged = []
    for row in rows:
        changed = {}
        for name, twice in places.items() if not row.problem else ():
            said = {row.fields[place] for place in twice if not is_missing(row.fields[place])}
            changed[name] = said.pop() if len(said) == 1 else "n/a"
            differing += bool(said)
        merged.append(replace(row, cells=row.cells.change(changed)) if changed else row)
    shown = ", ".join(f"'{name}'" for name in list(places)[:_SHOWN])
    return merged, [
        f"columns of one name ({shown}{', …' if len(places) > _SHOWN else ''}) are read as one, "
        f"and n/a in {differing} cells where they differ"
    ]


def _without_headers(
    rows: list[Row], columns: Sequence[str], key: str, line: int
) -> tuple[list[Row], list[str]]:
    """Leave out lines that repeat the header. Raises UnusableError where one has other columns."""
    places = {columns.index(key), 0}
    headers = [
        row
        for row in rows
        if key in (row.fields[place].casefold() for place in places if place < len(row.fields))
    ]
    for row in headers:
        if [name.casefold() for name in row.fields] != [name.casefold() for name in columns]:
            raise BrokenTableError(
                f"unreadable table: line {row.line} is a header, too, with other columns than line "
                f"{line}: two tables in one file. Save each in a file of its own"
            )
    lines = {row.line for row in headers}
    kept = [row for row in rows if row.line not in lines]
    return kept, ["lines that repeat the header are not read"] if headers else []


def _without_units(rows: list[Row], columns: Sequence[str], key: str) -> tuple[list[Row], Cells]:
    """Take off the line of units, which has no key, or is called so."""
    cells = rows[0].cells if rows else NO_CELLS
    name = cells.get(key, key)
    if (is_missing(name) or _UNITS.fullmatch(name)) and any(map(ages.is_unit, cells.values())):
        return rows[1:], cells
    return rows, NO_CELLS


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


def _rows(
    records: Sequence[tuple[int, str]], columns: Sequence[str], separator: str, table: str
) -> list[Row]:
    """Read the lines that hold anything; equal cells of a table are kept once."""
    names, seen = Columns(_told_apart(columns)), dict[str, str]()
    named = max(place for place, name in enumerate(columns) if name) + 1
    rows = []
    for number, line in records:
        cells = map(_cell, _split(line, separator))
        fields = tuple(seen.setdefault(cell, cell) for cell in cells)
        if not any(fields):
            continue
        if named <= len(fields) < len(columns):  # no name, no cell
            fields += ("",) * (len(columns) - len(fields))
        problem = None
        if "\0" in line:
            problem = f"broken row: line {number} of {table} holds a NUL character"
        elif len(fields) != len(columns):
            problem = (
                f"broken row: line {number} of {table} has {len(fields)} fields, expected "
                f"{len(columns)}"
            )
        rows.append(Row(number, fields, problem, NO_CELLS if problem else Cells(names, fields)))
    return rows


def _cell(text: str) -> str:
    """Return a cell without what keeps a spreadsheet from changing it: ="001"."""
    text = text.strip()
    return text[2:].removesuffix('"') if text.startswith('="') else text


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    if separator == "\t":  # a lone quotation mark is a character like any other, as in BIDS
        return [cell.strip().removeprefix('"').removesuffix('"') for cell in line.split("\t")]
    return _quoted(line, separator) or line.split(separator)


def _quoted(line: str, separator: str) -> list[str]:
    """Return the fields of a line with quoted ones; none where it breaks the rules."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return []


def is_missing(cell: str) -> bool:
    """Return whether a cell holds one of the usual words for nothing."""
    text = cell.strip().casefold()
    return text in _NOTHING or bool(_ERROR.fullmatch(text))
