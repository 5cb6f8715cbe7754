"""Reads a BIDS dataset: which T1w images it offers, and what its tables say about them.

- **Images**: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``. Other images in an ``anat`` folder are listed
  as not T1w; derivatives/, sourcedata/, code/ and hidden files are not looked at.
- **Several T1w in a session**: the one with the fewest entities besides sub, ses and run (so
  without ``acq`` or ``rec`` when there is one), then the lowest run, then the first by name. When
  it proves unusable, the next.
- **Tables**: ``participants.tsv``, ``sub-*_sessions.tsv`` and ``*_scans.tsv``. A value in a more
  specific table wins over one in a more general table; n/a never does. A table or a row that is
  there but cannot be understood excludes what it speaks about: a scan must not lose its site or
  label, and so change its split, without anybody noticing.
- **Sidecars**, inherited as in BIDS, give the scanner and the field strength, nothing else.
- A subject without session folders has one session, ``ses-1``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neurofoundry.ingest import delimited
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, Scan, UnusableError, check_place, natural

IMAGE = (".nii", ".nii.gz")
_OTHER_FORMATS = (".mgz", ".mgh", ".hdr", ".img", ".mnc", ".nrrd", ".mha", ".dcm", ".ima", ".zip")
_AGE_UNITS = {"month": 12.0, "week": 365.25 / 7, "day": 365.25}
"""How many make a year."""

Sidecars = Sequence[tuple[set[str], Mapping[str, Any]]]


@dataclass(frozen=True)
class _Place:
    """A folder that holds ``anat``, and what the tables and sidecars above it say."""

    folder: Path
    subject: str
    session: str
    prefix: str
    """What the names of its images begin with."""
    rows: tuple[delimited.Row, ...]
    sidecars: Sidecars
    problem: str | None = None


def read(dataset: Dataset, found: Findings, *, age_columns: Iterable[str]) -> None:
    """Add the scans of ``dataset`` to ``found``. Ages in tables become years."""
    root = found.data / dataset.path
    table = root / "participants.tsv"
    ages = {column.casefold() for column in age_columns}
    try:
        participants = _read_table(table, "participant_id", dataset, found)
    except UnusableError as broken:
        found.exclude(dataset.name, table, f"{broken}. The whole dataset is left out")
        return
    participants = _in_years(participants, root / "participants.json", ages, dataset, found)
    sidecars = _sidecars(root, dataset, found)
    unlisted = []
    for folder in _folders(root, "sub-"):
        subject = unicodedata.normalize("NFC", folder.name)
        row = participants.pop(subject, None)
        if row is None:
            unlisted.append(subject)
        try:
            check_place(folder, root)
            _read_subject(folder, subject, row, sidecars, root, ages, dataset, found)
        except PermissionError:
            found.exclude(dataset.name, folder, "no permission: the folder cannot be opened")
        except UnusableError as reason:
            found.exclude(dataset.name, folder, reason)
    if not table.exists():
        found.note(dataset.name, table, "there is no such table: age, sex and labels are n/a")
    elif unlisted:
        names = ", ".join(unlisted[:5]) + (" …" if len(unlisted) > 5 else "")
        found.note(
            dataset.name,
            table,
            f"{len(unlisted)} subjects have no row; their age, sex and labels are n/a: {names}",
        )
    for subject, row in participants.items():
        missing = f"no image: {subject} is listed, but there is no such folder"
        found.exclude(dataset.name, table, row.problem or missing)


def _read_subject(
    folder: Path,
    subject: str,
    row: delimited.Row | None,
    sidecars: Sidecars,
    root: Path,
    ages: set[str],
    dataset: Dataset,
    found: Findings,
) -> None:
    before = len(found.scans) + len(found.excluded)
    sidecars = [*sidecars, *_sidecars(folder, dataset, found)]
    rows = (row,) if row else ()
    problem = row.problem if row else None
    sessions: dict[str, delimited.Row] = {}
    try:
        table = folder / f"{folder.name}_sessions.tsv"
        sessions = _read_table(table, "session_id", dataset, found)
        sessions = _in_years(sessions, root / "sessions.json", ages, dataset, found)
    except UnusableError as reason:
        problem = f"{reason} (sessions.tsv)"
    session_folders = _folders(folder, "ses-")
    place = _Place(folder, subject, "ses-1", f"{folder.name}_", rows, sidecars, problem)
    if session_folders:
        outside = "misplaced: the subject has session folders, and this lies in none of them"
        _read_session(replace(place, problem=outside), root, dataset, found)
    else:
        _read_session(_with(place, sessions.get("ses-1")), root, dataset, found)
    for session_folder in session_folders:
        session = unicodedata.normalize("NFC", session_folder.name)
        inner = replace(
            place,
            folder=session_folder,
            session=session,
            prefix=f"{folder.name}_{session_folder.name}_",
            sidecars=[*sidecars, *_sidecars(session_folder, dataset, found)],
        )
        _read_session(_with(inner, sessions.get(session)), root, dataset, found)
    if len(found.scans) + len(found.excluded) == before:
        found.exclude(dataset.name, folder, "no T1w: the folder holds no anat/*_T1w.nii[.gz]")


def _with(place: _Place, row: delimited.Row | None) -> _Place:
    """``place`` with a row of a more specific table."""
    if row is None:
        return place
    return replace(place, rows=(row, *place.rows), problem=place.problem or row.problem)


def _read_session(place: _Place, root: Path, dataset: Dataset, found: Findings) -> None:
    scans: dict[str, delimited.Row] = {}
    try:
        table = place.folder / f"{place.prefix}scans.tsv"
        scans = _read_table(table, "filename", dataset, found)
    except UnusableError as reason:
        place = replace(place, problem=f"{reason} (scans.tsv)")
    for file in _files(place.folder):
        if _suffix(file.name) == "T1w" and file.name.endswith(IMAGE):
            found.exclude(dataset.name, file, "misplaced: expected in a folder called anat")
    anat = place.folder / "anat"
    sidecars = [*place.sidecars, *_sidecars(anat, dataset, found)]
    for file in _files(anat):
        if not file.name.lower().endswith((*IMAGE, *_OTHER_FORMATS)):
            continue
        row = scans.get(f"anat/{unicodedata.normalize('NFC', file.name)}")
        here = _with(replace(place, sidecars=sidecars), row)
        try:
            found.scans.append(_scan(file, here, root, dataset, found))
        except UnusableError as reason:
            found.exclude(dataset.name, file, reason)


def _scan(file: Path, place: _Place, root: Path, dataset: Dataset, found: Findings) -> Scan:
    suffix = _suffix(file.name)
    if suffix != "T1w":
        raise UnusableError(f"not T1w: its name ends in '{suffix}'")
    if not file.name.endswith(IMAGE):
        raise UnusableError("not NIfTI: expected .nii or .nii.gz. Convert it")
    if not file.name.startswith(place.prefix):
        raise UnusableError(
            f"misnamed: expected a name that begins with {place.prefix}, like its folders"
        )
    entities = file.name.removeprefix(place.prefix).split("_")[:-1]
    for entity in entities:
        key, _, label = entity.partition("-")
        if key == "ce":
            raise UnusableError(f"contrast agent: its name says ce-{label}")
        if key == "part" and label != "mag":
            raise UnusableError(f"not a magnitude image: its name says part-{label}")
        if key in ("sub", "ses"):
            raise UnusableError(f"misnamed: {entity} contradicts its folders ({place.prefix[:-1]})")
    if place.problem:
        raise UnusableError(place.problem)
    check_place(file, root)
    runs = [int(run) for run in re.findall(r"(?:^|_)run-(\d+)", "_".join(entities))]
    extra = [entity for entity in entities if not entity.startswith("run-")]
    path = file.relative_to(found.data).as_posix()
    return Scan(
        dataset=dataset.name,
        subject=place.subject,
        session=place.session,
        source="bids",
        path=path,
        file=file,
        origin=path,
        rank=(len(extra), runs[0] if runs else 0, file.name),
        cells=tuple(row.cells for row in place.rows),
        header=_header({*entities, *place.prefix[:-1].split("_")}, place.sidecars),
    )


def _header(entities: set[str], sidecars: Sidecars) -> dict[str, str | float]:
    """Scanner and field strength from the sidecars that apply; deeper folders win."""
    merged: dict[str, Any] = {}
    for of, values in sidecars:
        if of <= entities:
            merged |= values
    names = [merged.get(key) for key in ("Manufacturer", "ManufacturersModelName")]
    scanner = " ".join(" ".join(name.split()) for name in names if isinstance(name, str))
    field = merged.get("MagneticFieldStrength")
    header: dict[str, str | float] = {"scanner": scanner} if scanner else {}
    if isinstance(field, int | float) and not isinstance(field, bool) and field > 0:
        header["field_strength"] = float(field)
    return header


def _sidecars(
    folder: Path, dataset: Dataset, found: Findings
) -> list[tuple[set[str], Mapping[str, Any]]]:
    """Entities and content of the T1w sidecars in a folder."""
    sidecars: list[tuple[set[str], Mapping[str, Any]]] = []
    for file in _files(folder):
        if file.suffix == ".json" and _suffix(file.name) == "T1w":
            entities = set(file.name.removesuffix(".json").split("_")[:-1])
            sidecars.append((entities, _read_json(file, dataset, found)))
    return sorted(sidecars, key=lambda sidecar: len(sidecar[0]))


def _read_json(file: Path, dataset: Dataset, found: Findings) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        found.remember(file)
    except (OSError, ValueError):
        found.note(dataset.name, file, "not valid JSON, or not readable: not used")
        return {}
    return content if isinstance(content, dict) else {}


def _read_table(
    path: Path, key: str, dataset: Dataset, found: Findings
) -> dict[str, delimited.Row]:
    """Rows by ``key``, with its BIDS prefix; none when there is no such table."""
    if not path.exists() and not path.is_symlink():
        return {}
    table = delimited.read(path, key=key)
    found.remember(path)
    rows, notes = table.by(key)
    for note in (*table.notes, *notes):
        found.note(dataset.name, path, note)
    prefix = {"participant_id": "sub-", "session_id": "ses-"}.get(key, "")
    keyed = {}
    for name, row in rows.items():
        name = unicodedata.normalize("NFC", name)
        keyed[name if name.startswith(prefix) else prefix + name] = row
    return keyed


def _in_years(
    rows: dict[str, delimited.Row],
    dictionary: Path,
    ages: set[str],
    dataset: Dataset,
    found: Findings,
) -> dict[str, delimited.Row]:
    """Rows whose ages are in years, where a data dictionary declares another unit."""
    if not rows or not dictionary.exists():
        return rows
    divisors = {}
    for column, described in _read_json(dictionary, dataset, found).items():
        unit = str(described.get("Units", "")) if isinstance(described, dict) else ""
        for name, divisor in _AGE_UNITS.items():
            if column.casefold() in ages and name in unit.casefold():
                divisors[column] = divisor
                found.note(dataset.name, dictionary, f"'{column}' is in {unit}: turned into years")
    return {
        key: replace(
            row,
            cells={
                column: _divided(cell, divisors[column]) if column in divisors else cell
                for column, cell in row.cells.items()
            },
        )
        for key, row in rows.items()
    }


def _divided(cell: str, divisor: float) -> str:
    try:
        return f"{float(cell) / divisor:.2f}"
    except ValueError:
        return cell


def _suffix(name: str) -> str:
    return name.rpartition("_")[2].partition(".")[0]


def _folders(folder: Path, prefix: str) -> list[Path]:
    children = (child for child in folder.iterdir() if child.name.startswith(prefix))
    return sorted(
        (
            child
            for child in children
            if child.is_dir() or (child.is_symlink() and not child.exists())
        ),
        key=lambda child: natural(child.name),
    )


def _files(folder: Path) -> list[Path]:
    """Visible files, links included, in a fixed order."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
