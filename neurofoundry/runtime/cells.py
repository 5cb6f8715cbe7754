"""Cells of tables that a spreadsheet would take for formulas, and run."""

from __future__ import annotations

import re

_RISKY = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def guard_cell(text: str) -> str:
    """Return the text of a cell with an apostrophe before it where it could be a formula.

    A spreadsheet shows it as text then; numbers stay as they are. See CWE-1236.
    """
    return f"'{text}" if _RISKY.match(text) and not _NUMBER.fullmatch(text) else text


def read_cell(cell: str) -> str:
    """Return what `guard_cell` was given."""
    return cell[1:] if cell.startswith("'") and _RISKY.match(cell) else cell
