"""Reads a plain table (.tsv or .csv): one row a scan, with the image's ``path``.

Paths are relative to the table's folder and must stay in it. Other columns are optional:
``dataset`` (else the table's own name), ``subject`` (else the ``sub-LABEL`` in the path, else the
path itself: then every file counts as one person), ``session`` (else the ``ses-LABEL`` in the path,
else ``ses-1``), and whatever `ingest.columns` names. **Several rows of a session**: the first.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from pathlib import Path, PurePosixPath

from neurofoundry.ingest import delimited
from neurofoundry.ingest.bids import IMAGE
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, Scan, UnusableError, check_place

_NOT_T1W = re.compile(
    r"(?<![a-z0-9])(t2|t2w|t2star|flair|pd|pdw|dwi|dti|adc|bold|asl|swi|tof|mra|ct|pet|mask|seg)"
    r"(?![a-z0-9])"
)
_T1W = re.compile(r"(?<![a-z0-9])(t1|t1w|mprage|mp2rage|spgr|bravo)(?![a-z0-9])")


def find(folder: Path) -> list[Path]:
    """The tables in ``folder`` that have a column ``path``."""
    tables = []
    for file in sorted(folder.glob("*.[tc]sv")):
        try:
            delimited.read(file, key="path")
        except UnusableError:
            continue
        tables.append(file)
    return tables


def read(dataset: Dataset, found: Findings) -> None:
    """Add the scans of the table ``dataset.path`` to ``found``."""
    file = found.data / dataset.path
    try:
        table = delimited.read(file, key="path")
    except UnusableError as reason:
        found.exclude(dataset.name, file, f"{reason}. The whole dataset is left out")
        return
    found.remember(file)
    for note in table.notes:
        found.note(dataset.name, file, note)
    if "subject" not in table.columns:
        found.note(
            dataset.name,
            file,
            "there is no column 'subject': a person is known by sub-LABEL in the path, else every "
            "file counts as one person",
        )
    owners: dict[str, set[str]] = {}
    rows: dict[tuple[str, ...], int] = {}
    listed: list[tuple[delimited.Row, Scan]] = []
    for row in table.rows:
        origin = f"{found.name(file)}, line {row.line}"
        try:
            scan = _scan(row, file.parent, dataset, found)
        except UnusableError as reason:
            found.exclude(dataset.name, origin, reason)
            continue
        if row.fields in rows:
            found.exclude(
                scan.dataset, origin, f"duplicate row: it repeats line {rows[row.fields]}"
            )
            continue
        rows[row.fields] = row.line
        listed.append((row, scan))
        owners.setdefault(scan.path, set()).add(f"{scan.dataset}/{scan.subject}")
    for row, scan in listed:
        who = owners[scan.path]
        if len(who) > 1:
            found.exclude(
                scan.dataset,
                f"{found.name(file)}, line {row.line}",
                f"duplicate: the same file is listed for {len(who)} persons "
                f"({', '.join(sorted(who))}), nobody can know whose it is",
            )
        else:
            found.scans.append(scan)


def _scan(row: delimited.Row, root: Path, dataset: Dataset, found: Findings) -> Scan:
    if row.problem:
        raise UnusableError(row.problem)
    cell = row.cells["path"]
    if delimited.is_missing(cell):
        raise UnusableError("no image: the row has no path")
    if PurePosixPath(cell).is_absolute() or re.match(r"[A-Za-z]:[\\/]", cell):
        raise UnusableError(
            "leads outside the dataset: found an absolute path, expected one relative to the table"
        )
    inside = posixpath.normpath(cell)
    if inside.startswith(".."):
        raise UnusableError("leads outside the dataset: the path climbs out of the table's folder")
    file = root / inside
    if not file.name.endswith(IMAGE):
        raise UnusableError(
            f"not NIfTI: expected .nii or .nii.gz, found '{file.suffix}'. Convert it"
        )
    check_place(file, root)
    name = file.name.casefold()
    if (other := _NOT_T1W.search(name)) and not _T1W.search(name):
        raise UnusableError(f"not T1w: its name says '{other[1]}'")
    path = file.relative_to(found.data).as_posix()
    stem = inside.removesuffix(".gz").removesuffix(".nii")
    return Scan(
        dataset=_cell(row, "dataset") or dataset.name,
        subject=_label(row, "subject", "sub-", inside) or f"sub-{stem.replace('/', '-')}",
        session=_label(row, "session", "ses-", inside) or "ses-1",
        source="table",
        path=path,
        file=file,
        origin=path,
        rank=(row.line,),
        cells=(row.cells,),
    )


def _cell(row: delimited.Row, column: str) -> str:
    cell = unicodedata.normalize("NFC", row.cells.get(column, ""))
    return "" if delimited.is_missing(cell) else cell


def _label(row: delimited.Row, column: str, prefix: str, path: str) -> str:
    """What the row says; else what the path says; else nothing."""
    if cell := _cell(row, column):
        return cell if cell.startswith(prefix) else prefix + cell
    found = re.search(rf"(?:^|[/_])({prefix}[^/_.]+)", path)
    return found[1] if found else ""
