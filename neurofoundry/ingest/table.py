"""Reads a plain table (.tsv or .csv): one row per scan, with the image's ``path``.

Paths are relative to the table's folder and must stay in it; absolute ones must lie below the data
root. Other columns are optional:
``dataset`` (by default the table's own name), ``subject`` (by default the ``sub-LABEL`` in the
path, else the path itself: then every file counts as one person), ``session`` (by default the
``ses-LABEL`` in the path, else ``ses-1``), and whatever `ingest.columns` names. Of several rows of
a session the first is used. A further contrast has a column of paths, such as ``path_FLAIR`` or
``FLAIR``; or rows of its own, where a column ``contrast``, ``suffix``, ``modality`` or ``sequence``
says what a row shows.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from neurofoundry.contracts.cohort import T1W, further
from neurofoundry.errors import DataError
from neurofoundry.ingest import ages, delimited, labels
from neurofoundry.ingest import contrast as agents
from neurofoundry.ingest.bids import IMAGE
from neurofoundry.ingest.listing import visible
from neurofoundry.ingest.matching import meant
from neurofoundry.ingest.params import Column, Dataset
from neurofoundry.ingest.scan import (
    Findings,
    NotFetchedError,
    Scan,
    UnusableError,
    attempt,
    check_location,
)
from neurofoundry.runtime.files import spelled
from neurofoundry.runtime.progress import Progress

_NOT_T1W = re.compile(
    r"(?<![a-z0-9])(t2|t2w|t2star|(?:t2)?flair|pd|pdw|dwi|dti|adc|bold|asl|swi|tof|mra|ct|pet|mask|seg)"
    r"(?![a-z0-9])"
)
_NOT_ABOUT_AGENTS = re.compile(
    r"(?:sub|ses|task|site)-[^_.]+|(?<![a-z0-9])post(?![a-z])|\.nii(?:\.gz)?$", re.IGNORECASE
)
"""Parts of a name; 'post' alone is most often a time point."""
_TELLING = (
    delimited.MisnamedColumnError,
    delimited.BrokenTableError,
    NotFetchedError,
)
"""Errors of tables that are meant to be read."""
_OWN = ("path", "subject", "session", "dataset")
"""Columns that say what a row is about."""
_T1W = re.compile(r"(?<![a-z0-9])(t1|t1w|mprage|mp2rage|spgr|bravo)(?![a-z0-9])")
_OWN_NAMES = {
    T1W: _T1W,
    "FLAIR": re.compile(r"(flair|dark[-_ ]?fluid|(?<![a-z])tirm(?![a-z]))"),
    "T2w": re.compile(r"(?<![a-z0-9])(t2|t2w)(?![a-z0-9])"),
}


_SAYS = ("contrast", "suffix", "modality", "sequence", "weighting", "scan_type", "image_type")
"""Columns that may say what an image shows."""
_MR = re.compile(r"(?<![a-z])mri?(?![a-z])")
"""The modality, which may be named beside that of another image of the person, as in PET/MR."""
_OF_FILES = {"path", "file", "filename", "image", "nifti", "scan", "t2"}
"""Words of a column that has the paths of a contrast, beside the contrast itself."""


def find(folder: Path) -> list[Path]:
    """Return the tables in ``folder`` that have a column ``path``."""
    return [file for file, why in _candidates(folder) if why is None]


def meant_as(folder: Path) -> list[tuple[Path, str]]:
    """Return the files in ``folder`` that are meant to be such tables, most likely, and why they
    cannot be read."""
    return [(file, str(why)) for file, why in _candidates(folder) if isinstance(why, _TELLING)]


def _candidates(folder: Path) -> Iterator[tuple[Path, UnusableError | None]]:
    """Yield the text tables in ``folder``, and why each cannot be read."""
    for file in visible(folder):
        if not delimited.is_table(file):
            continue
        try:
            delimited.read(file, key="path")
            yield file, None
        except UnusableError as why:
            yield file, why


def read(
    dataset: Dataset,
    findings: Findings,
    *,
    columns: Mapping[str, Column],
    contrasts: Sequence[str],
) -> None:
    """Add the scans of the table ``dataset.path``, in these ``contrasts``, to ``findings``;
    ``columns`` are those of the cohort."""
    file = findings.data / dataset.path
    try:
        table = delimited.read(file, key="path")
    except UnusableError as reason:
        findings.exclude(dataset.name, file, f"{reason}. The whole dataset is left out")
        return
    findings.remember(file)
    for note in table.notes:
        findings.note(dataset.name, file, note)
    _check_columns(table, dataset, findings)
    rows = _with_units(table, columns.get("age"), file, dataset, findings)
    listed = _listed(rows, file, dataset, findings, contrasts)
    _note_contradictions(listed.values(), columns, file, dataset, findings)
    owners: dict[str, set[str]] = {}
    for scan in listed.values():
        owners.setdefault(scan.path, set()).add(f"{scan.dataset}/{scan.subject}")
    for origin, scan in listed.items():
        persons = owners[scan.path]
        if len(persons) > 1:
            findings.exclude(
                scan.dataset,
                origin,
                f"duplicate: the same file is listed for {len(persons)} persons "
                f"({', '.join(sorted(persons))}), and only one of them can be right",
            )
        else:
            findings.scans.append(scan)
    for contrast in contrasts[1:]:
        _read_further(contrast, table, file, dataset, findings)


def _read_further(
    contrast: str, table: delimited.Table, file: Path, dataset: Dataset, findings: Findings
) -> None:
    """Add the images of a further contrast, of which rows name the paths."""
    columns = [column for column in table.columns if _holds_paths(column, contrast)]
    if not columns and not any(_says(row) == contrast for row in table.rows):
        column = further("path", contrast)
        findings.note(dataset.name, file, f"there is no column '{column}': no {contrast}")
    seen = set()
    for row in table.rows:
        named = next((row.cells.find(c) for c in columns if _given(row.cells.find(c))), None)
        if named is None or row.problem or row.fields in seen:
            continue
        seen.add(row.fields)
        origin = f"{findings.name(file)}, line {row.line}, {contrast}"
        read = partial(_scan, root=file.parent, dataset=dataset, data=findings.data)
        scan = attempt(partial(read, path=named, contrast=contrast), row)
        if isinstance(scan, UnusableError):
            findings.exclude(dataset.name, origin, scan)
        else:
            findings.scans.append(replace(scan, origin=origin))


def _holds_paths(column: str, contrast: str) -> bool:
    """Return whether a column is called after a contrast, and by nothing else but files.

    >>> [_holds_paths(name, "FLAIR") for name in ("path_FLAIR", "t2flair_file", "flair_score")]
    [True, True, False]
    """
    words = re.sub(r"(?<=t2)(?=flair)", " ", column.casefold())
    rest = set(re.findall(r"[a-z0-9]+", words))
    return contrast.casefold() in rest and rest <= {contrast.casefold(), *_OF_FILES}


def _says(row: delimited.Row) -> str | None:
    """Return the contrast that a row says its image has, or a word for another one; None where it
    says nothing."""
    for cell in (row.cells.find(column).casefold() for column in _SAYS):
        for contrast, pattern in _OWN_NAMES.items():
            if pattern.search(cell):
                return contrast
        if (other := _NOT_T1W.search(cell)) and not _MR.search(cell):
            return other[1]
    return None


def _given(cell: str) -> bool:
    return not delimited.is_missing(cell)


def _check_columns(table: delimited.Table, dataset: Dataset, findings: Findings) -> None:
    """Raise DataError where a column that says whose a scan is has nearly the right name.

    Without it every file might count as one person, and be in train and in test.
    """
    names = {column.casefold() for column in table.columns}
    file = findings.data / dataset.path
    for name in ("subject", "session", "dataset"):
        others = (column for column in table.columns if column.casefold() not in _OWN)
        alike = meant(name, others) if name not in names else None
        if alike and (name != "session" or len({row.cells.get(alike) for row in table.rows}) > 1):
            raise DataError(
                f"{findings.name(file)}: no column '{name}': did you mean '{alike}'? Rename it to "
                f"'{name}', or to something else if it does not say so."
            )
    if "subject" not in names:
        findings.note(
            dataset.name,
            file,
            "there is no column 'subject': persons are known by sub-LABEL in the path; without it "
            "every file counts as one person",
        )
    elif nobody := sum(not row.problem and not _cell(row, "subject") for row in table.rows):
        findings.note(
            dataset.name,
            file,
            f"{nobody} lines have no subject: each counts as sub-LABEL in its path, or else as a "
            "person of its own, who may be one of the others",
        )


def _with_units(
    table: delimited.Table, age: Column | None, file: Path, dataset: Dataset, findings: Findings
) -> list[delimited.Row]:
    """Return the rows with the units of ages that a line below the header says."""
    named = {name: unit for name, unit in table.units.items() if age and age.names(name)}
    units = {name: unit.strip(" ()[].") for name, unit in named.items() if ages.is_unit(unit)}
    for name, unit in units.items():
        findings.note(dataset.name, file, f"'{name}' is in {unit}, by the line below the header")
    return [
        replace(
            row,
            cells=row.cells.change(
                {name: ages.with_unit(row.cells[name], unit) for name, unit in units.items()}
            ),
        )
        if units and not row.problem
        else row
        for row in table.rows
    ]


def _note_contradictions(
    scans: Iterable[Scan],
    columns: Mapping[str, Column],
    file: Path,
    dataset: Dataset,
    findings: Findings,
) -> None:
    """Record where images of one session have different ages or sexes: they may be of two."""
    sessions: dict[tuple[str, str, str], list[Scan]] = {}
    for scan in scans:
        sessions.setdefault((scan.dataset, scan.subject, scan.session), []).append(scan)
    facts = [columns[name].from_ for name in ("age", "sex") if name in columns]
    doubtful = [
        f"{subject} {session}"
        for (_, subject, session), of_one in sessions.items()
        if any(len({labels.cell(scan, names) for scan in of_one} - {None}) > 1 for names in facts)
    ]
    if doubtful:
        findings.note(
            dataset.name,
            file,
            f"images of one session have different ages or sexes: {', '.join(doubtful[:5])}"
            f"{' …' if len(doubtful) > 5 else ''}. Two visits need a column 'session', people of "
            "two sites who are called alike a column 'dataset'",
        )


def _listed(
    rows: Sequence[delimited.Row],
    file: Path,
    dataset: Dataset,
    findings: Findings,
    contrasts: Sequence[str],
) -> dict[str, Scan]:
    """Return the scans that can be used, by the line that lists them."""

    def read(row: delimited.Row) -> Scan:
        contrast = _says(row) or T1W
        if contrast not in contrasts:
            raise UnusableError(f"not {' or '.join(contrasts)}: its row says '{contrast}'")
        return _scan(row, file.parent, dataset, findings.data, contrast=contrast)

    lines: dict[tuple[str, ...], int] = {}
    images: dict[tuple[str, ...], str] = {}
    scans: dict[str, Scan] = {}
    with Progress(f"reading {dataset.name}", len(rows), unit="rows") as progress:
        for row in rows:
            progress.advance()
            origin = f"{findings.name(file)}, line {row.line}"
            scan = attempt(read, row)
            if isinstance(scan, UnusableError):
                findings.exclude(dataset.name, origin, scan)
                continue
            first = lines.setdefault(row.fields, row.line)
            if first != row.line:
                findings.exclude(scan.dataset, origin, f"duplicate row: it repeats line {first}")
                continue
            image = scan.path, scan.dataset, scan.subject, scan.session, scan.contrast
            if (known := images.setdefault(image, origin)) != origin:
                scans[known], differing = _agreed(scans[known], scan)
                findings.exclude(
                    scan.dataset,
                    origin,
                    f"duplicate row: it lists the same image as {known}"
                    + (f", and says otherwise in {differing}: n/a" if differing else ""),
                )
                continue
            scans[origin] = scan
    return scans


def _agreed(scan: Scan, again: Scan) -> tuple[Scan, str]:
    """Return a scan without what another row about its image contradicts, and the columns."""
    (cells,), (others,) = scan.rows, again.rows
    differing = [
        name for name in cells if name.casefold() not in _OWN and cells[name] != others[name]
    ]
    changed = cells.change(dict.fromkeys(differing, "n/a"))
    return replace(scan, rows=(changed,)), ", ".join(differing)


def _scan(
    row: delimited.Row,
    root: Path,
    dataset: Dataset,
    data: Path,
    path: str | None = None,
    contrast: str = T1W,
) -> Scan:
    """Return the scan that a row is about: its T1w image, or the ``path`` of a further contrast.

    Raises UnusableError.
    """
    if row.problem:
        raise UnusableError(row.problem)
    of_t1w, beside = locate(row.cells["path"], root, data)
    file, root = (of_t1w, beside) if path is None else locate(path, root, data)
    if not file.name.endswith(IMAGE):
        raise UnusableError(
            f"not NIfTI: expected .nii or .nii.gz, found '{file.suffix}'. Convert it"
        )
    check_location(file, root)
    if other := _other_contrast(file.name.casefold(), contrast):
        raise UnusableError(f"not {contrast}: its name says '{other}'")
    if agents.in_name(_NOT_ABOUT_AGENTS.sub("", file.name)):
        raise UnusableError("contrast agent: its name says that one was given")
    inside = of_t1w.relative_to(beside).as_posix()
    stem = inside.removesuffix(".gz").removesuffix(".nii")
    return Scan(
        dataset=_cell(row, "dataset") or dataset.name,
        subject=_label(row, "subject", "sub-", inside) or f"sub-{stem.replace('/', '-')}",
        session=_label(row, "session", "ses-", inside) or "ses-1",
        source="table",
        path=(listed := file.relative_to(data).as_posix()),
        file=file,
        origin=listed,
        rank=(row.line,),
        rows=(row.cells,),
        contrast=contrast,
    )


def _other_contrast(name: str, contrast: str) -> str | None:
    """Return the word of a name that says that an image is of another contrast."""
    own = _OWN_NAMES.get(contrast)
    if own is None:  # of which nobody knows how it is called
        return None
    if contrast == "T2w" and "flair" in name:
        return "flair"
    if own.search(name):
        return None
    other = _NOT_T1W.search(name) or (_T1W.search(name) if contrast != T1W else None)
    return other[1] if other else None


def locate(cell: str, folder: Path, data: Path) -> tuple[Path, Path]:
    """Return the file that a cell of a table names, and the folder in which it must lie.

    That is the table's own ``folder``; of an absolute path, the root of the ``data``. Raises
    UnusableError.
    """
    if delimited.is_missing(cell):
        raise UnusableError("no image: the row has no path")
    if "\\" in cell and not os.path.lexists(folder / cell):  # as Windows writes it
        cell = cell.replace("\\", "/")
    if PurePosixPath(cell).is_absolute() or re.match(r"[A-Za-z]:[\\/]", cell):
        for root in (data.absolute(), data.resolve()):
            if Path(posixpath.normpath(cell)).is_relative_to(root):
                return spelled(data, Path(posixpath.normpath(cell)).relative_to(root)), data
        raise UnusableError(
            "leads outside the dataset: found an absolute path that is not below the data root, "
            "expected one relative to the table"
        )
    inside = posixpath.normpath(cell)
    if inside.startswith(".."):
        raise UnusableError("leads outside the dataset: the path leaves the table's folder")
    return spelled(folder, inside), folder


def _cell(row: delimited.Row, column: str) -> str:
    cell = row.cells.find(column)
    return "" if delimited.is_missing(cell) else cell


def _label(row: delimited.Row, column: str, prefix: str, path: str) -> str:
    """Return the label in a row, else the one in the path, else an empty string."""
    if cell := re.sub(r"^(\d+)\.0$", r"\1", _cell(row, column)):  # as numbers are saved
        return cell if cell.startswith(prefix) else prefix + cell
    match = re.search(rf"(?:^|[/_])({prefix}[^/_.]+)", path)
    return match[1] if match else ""
