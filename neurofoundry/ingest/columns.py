"""The columns of a table, and the cells of its lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class Columns:
    """The names of a table's columns; all its lines share them, be they tens of thousands."""

    def __init__(self, names: Sequence[str]) -> None:
        self.places = {name: place for place, name in enumerate(names) if name}
        self.folded: dict[str, list[str]] = {}
        for name in self.places:
            self.folded.setdefault(name.casefold(), []).append(name)


class Cells(Mapping[str, str]):
    """The cells of a line, by column."""

    __slots__ = ("_changed", "_fields", "columns")

    def __init__(
        self, columns: Columns, fields: Sequence[str], changed: Mapping[str, str] | None = None
    ) -> None:
        self.columns, self._fields, self._changed = columns, fields, changed or {}

    def __getitem__(self, name: str) -> str:
        place = self.columns.places[name]
        return self._changed[name] if name in self._changed else self._fields[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.places)

    def __len__(self) -> int:
        return len(self.columns.places)

    def find(self, name: str) -> str:
        """Return the cell in the column ``name``, else in one of that name in any case, else ''."""
        alike = [name] if name in self else self.columns.folded.get(name.casefold(), [""])
        return self.get(alike[-1], "")

    def change(self, cells: Mapping[str, str]) -> Cells:
        """Return the line with other ``cells``."""
        return Cells(self.columns, self._fields, {**self._changed, **cells})


NO_CELLS = Cells(Columns(()), ())
