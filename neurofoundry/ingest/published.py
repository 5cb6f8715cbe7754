"""Splits that the data came with: a column of the datasets' tables, or a table of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from neurofoundry.contracts.cohort import SPLITS
from neurofoundry.contracts.splits import Splits
from neurofoundry.errors import UsageError
from neurofoundry.ingest import delimited, labels
from neurofoundry.ingest.scan import Findings, Scan, UnusableError
from neurofoundry.runtime.files import spelled

WORDS = {
    "pretraining": "pretrain",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "testing": "test",
}
"""What everybody means by these. Not 'dev' or 'external': studies disagree on them."""

_SUBJECT = ("participant_id", "subject")
"""The column of a table that says who it is, in order of preference."""

_COLUMN = "split"
"""The column of a table that holds the splits, unless params.yaml names another."""

Subject = tuple[str, str]
"""Dataset ('' for any) and 'sub-LABEL'."""


def mark(scans: Sequence[Scan], params: Splits, findings: Findings) -> list[Scan]:
    """Return the scans with their ``published`` split: one of SPLITS, a word that is none, or None.

    Raises UsageError where the column or the file cannot be found or read.
    """
    if params.mode != "published":
        return list(scans)
    words = _in_file(scans, params, findings) if params.file else _in_tables(scans, params)
    meaning = meanings(params)
    return [
        replace(scan, published=word and meaning.get(word.casefold(), word))
        for scan, word in zip(scans, words, strict=True)
    ]


def meanings(params: Splits) -> dict[str, str]:
    """Return our split for each of their words; those of params.yaml take precedence."""
    declared = {
        word.strip().casefold(): ours for ours, many in params.values.items() for word in many
    }
    return {name: name for name in SPLITS} | WORDS | declared


def _in_tables(scans: Sequence[Scan], params: Splits) -> list[str | None]:
    """Return the cells of the column in the datasets' tables."""
    column = str(params.column)
    if not any(column in row for scan in scans for row in scan.rows):
        raise UsageError(
            f"ingest.splits.column: no table of any dataset has the column '{column}'. Correct the "
            "name."
        )
    cells = (labels.cell(scan, [column]) for scan in scans)
    return [cell.strip() if cell is not None else None for cell in cells]


def _in_file(scans: Sequence[Scan], params: Splits, findings: Findings) -> list[str | None]:
    """Return the words of ``params.file``, by the subject of each scan."""
    path = spelled(findings.data, str(params.file))
    where = f"ingest.splits.file: '{params.file}'"
    if not path.is_file():
        raise UsageError(f"{where}: no such file below the data folder. Correct the path.")
    listed = _words(_rows(path, where), params.column or _COLUMN, where)
    findings.remember(path)
    _check_unambiguous(listed, scans, where)
    known = {(dataset, scan.subject) for scan in scans for dataset in (scan.dataset, "")}
    if absent := len(listed.keys() - known):
        note = f"{absent} of {len(listed)} subjects of this table are not in the data"
        findings.note("", path, note)
    return [
        listed.get((scan.dataset, scan.subject), listed.get(("", scan.subject))) for scan in scans
    ]


def _rows(path: Path, where: str) -> list[tuple[delimited.Row, str]]:
    """Return the rows of a table, each with the subject's label."""
    problem = ""
    for column in _SUBJECT:
        try:
            table = delimited.read(path, key=column)
        except UnusableError as reason:
            problem = problem or str(reason)
        else:
            return [(row, row.cells[column]) for row in table.rows if not row.problem]
    raise UsageError(f"{where}: {problem}. Expected participant_id or subject, and the split.")


def _words(
    rows: Iterable[tuple[delimited.Row, str]], column: str, where: str
) -> dict[Subject, str]:
    """Return the cell of ``column`` for each subject that has one."""
    listed: dict[Subject, str] = {}
    for row, label in rows:
        if column not in row.cells:
            raise UsageError(
                f"{where}: no column '{column}'; found {', '.join(row.cells)}. Name the column in "
                "ingest.splits.column."
            )
        word, dataset = row.cells[column].strip(), row.cells.get("dataset", "")
        if delimited.is_missing(word):
            continue
        name = label if label.startswith("sub-") else f"sub-{label}"
        subject = ("" if delimited.is_missing(dataset) else dataset, name)
        if listed.setdefault(subject, word) != word:
            raise UsageError(
                f"{where}: line {row.line} says '{word}' of a subject, an earlier line "
                f"'{listed[subject]}'. Give each subject one split."
            )
    return listed


def _check_unambiguous(listed: Iterable[Subject], scans: Sequence[Scan], where: str) -> None:
    """Refuse a label without a dataset that persons of several datasets have."""
    homes: dict[str, set[str]] = {}
    for scan in scans:
        homes.setdefault(scan.subject, set()).add(scan.person.partition("/")[0])
    unclear = [name for dataset, name in listed if not dataset and len(homes.get(name, ())) > 1]
    if unclear:
        datasets = sorted(set().union(*(homes[name] for name in unclear)))
        raise UsageError(
            f"{where}: {len(unclear)} labels are in several datasets ({', '.join(datasets)}), and "
            "the table does not say which is meant. Add a column 'dataset'."
        )
