"""How often the intervals held the truth in simulated cohorts, as benchmarks/coverage.py found."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

TABLE = Path(__file__).with_name("coverage.md")
"""Written by the benchmark."""

TESTS = "Cohorts in which equals differ"
"""Title of the tables that are not about intervals."""


def coverage(
    metrics: Collection[str], fewer_than: int, table: Path = TABLE
) -> tuple[float, float] | None:
    """Return the lowest and the highest share of cohorts whose interval held the truth, in %, over
    these metrics and all cohorts with a group of fewer persons; None where none was simulated."""
    shares = [
        share
        for metric, persons, share in _cells(table.read_text().split(TESTS)[0])
        if metric in metrics and persons < fewer_than
    ]
    return (min(shares), max(shares)) if shares else None


def _cells(text: str) -> list[tuple[str, int, float]]:
    """Return the metric, the persons of the smaller group, and the share of each cell."""
    cells: list[tuple[str, int, float]] = []
    header = [""]
    for line in text.splitlines():
        first, *row = (cell.strip() for cell in line.strip("|").split("|"))
        if first == "persons":
            header = row
        elif first[:1].isdigit():
            persons = min(int(count) for count in first.split("+"))
            pairs = zip(header, row, strict=True)
            cells += [(name, persons, float(c)) for name, c in pairs if _is_number(c)]
    return cells


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
