"""Reads a BIDS dataset: which T1w images it offers, and what its tables say about them.

- **Images**: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``. Other images in an ``anat`` folder are listed
  as not T1w; derivatives/, sourcedata/, code/ and hidden files are ignored.
- **Several T1w in a session**: one that is not called 2D, then the shortest longest edge of a
  voxel, then a combination of echoes before one of them, then one that says it is without contrast
  agent, then the fewest entities besides sub, ses and run (so without ``acq`` or ``rec`` when there
  is one), then the lowest run, then the first by name. When it proves unusable, the next.
- **Tables**: ``participants.tsv``, ``sub-*_sessions.tsv`` and ``*_scans.tsv``. A value in a more
  specific table wins over one in a more general table; n/a never does. A table or a row that is
  there but cannot be understood excludes what it is about: a scan must not lose its site or label,
  and so change its split, without anybody noticing.
- **Sidecars**, inherited as in BIDS, give the scanner and the field strength, and tell of a
  contrast agent; nothing else of them is used.
- **Sessions**: ``ses-1`` in a table is the folder ``ses-01``. ``participants.tsv`` may have a
  column ``session_id`` and a row for every session; without it, its age is that of the first
  session alone.
- A subject without session folders has one session, ``ses-1``.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from neurofoundry.ingest import ages, contrast, delimited
from neurofoundry.ingest.derivatives import derived_entity, why_derivative
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import (
    Findings,
    Scan,
    UnusableError,
    attempt,
    check_location,
    natural_key,
)
from neurofoundry.runtime.progress import Progress

IMAGE = (".nii", ".nii.gz")
_OTHER_FORMATS = (".mgz", ".mgh", ".hdr", ".img", ".mnc", ".nrrd", ".mha", ".dcm", ".ima", ".zip")

_BASELINE = re.compile(r"ses-(?:bl|base|baseline|pre|screening|sc|first|initial)", re.IGNORECASE)

Sidecars = Sequence[tuple[set[str], Mapping[str, Any]]]
"""Entities and content of T1w sidecars, the more specific ones later."""


def read(dataset: Dataset, findings: Findings, *, age_columns: Iterable[str]) -> None:
    """Add the scans of ``dataset`` to ``findings``. Ages in tables become years."""
    columns = {column.casefold() for column in age_columns}
    derived = why_derivative(findings.data / dataset.path) is not None
    _Reader(dataset, findings, columns, derived).read()


@dataclass(frozen=True)
class _Session:
    """A folder that holds ``anat``, and what the tables and sidecars above it say."""

    folder: Path
    subject: str
    label: str
    """'ses-LABEL'."""
    prefix: str
    """How the names of its images begin."""
    rows: tuple[delimited.Row, ...]
    """The most specific first."""
    sidecars: Sidecars
    problem: str | None = None
    """Why its scans cannot be used."""

    def with_row(self, row: delimited.Row | None) -> _Session:
        """Return the session with the row of a more specific table, if there is one."""
        if row is None:
            return self
        return replace(self, rows=(row, *self.rows), problem=self.problem or row.problem)


@dataclass(frozen=True)
class _Reader:
    """Reads one dataset."""

    dataset: Dataset
    findings: Findings
    ages: set[str]
    """Columns that hold ages, in lower case."""
    derived: bool
    """The dataset is a derivative, and used because it was asked for by name."""

    @property
    def root(self) -> Path:
        return self.findings.data / self.dataset.path

    def read(self) -> None:
        table = self.root / "participants.tsv"
        try:
            participants = self._table(table, "participant_id")
        except UnusableError as reason:
            self._exclude(table, f"{reason}. The whole dataset is left out")
            return
        dictionary = self.root / "participants.json"
        participants = self._in_years(participants, dictionary)
        visits = {
            subject: self._in_years(rows, dictionary)
            for subject, rows in self._visits(table).items()
        }
        sidecars = self._sidecars(self.root)
        folders = _folders(self.root, "sub-")
        without_row = []
        with Progress(f"reading {self.dataset.name}", len(folders), unit="subjects") as progress:
            for folder in folders:
                subject = unicodedata.normalize("NFC", folder.name)
                row = participants.pop(subject, None)
                if row is None:
                    without_row.append(subject)
                self._read_subject(folder, subject, row, visits.get(subject, {}), sidecars)
                progress.advance()
        if not table.exists():
            self._note(table, "there is no such table: age, sex and labels are n/a")
        elif without_row:
            names = ", ".join(without_row[:5]) + (" …" if len(without_row) > 5 else "")
            self._note(
                table,
                f"{len(without_row)} subjects have no row; their age, sex and labels are n/a: "
                f"{names}",
            )
        for subject, row in participants.items():
            missing = f"no image: {subject} is listed, but there is no such folder"
            self._exclude(table, row.problem or missing)

    def _read_subject(
        self,
        folder: Path,
        subject: str,
        row: delimited.Row | None,
        visits: Mapping[str, delimited.Row],
        sidecars: Sidecars,
    ) -> None:
        before = len(self.findings.scans) + len(self.findings.excluded)

        def read(folder: Path) -> None:
            check_location(folder, self.root)
            for session in self._sessions(folder, subject, row, visits, sidecars):
                self._read_session(session)

        if isinstance(reason := attempt(read, folder), UnusableError):
            self._exclude(folder, reason)
        if len(self.findings.scans) + len(self.findings.excluded) == before:
            self._exclude(folder, "no T1w: the folder holds no anat/*_T1w.nii[.gz]")

    def _sessions(
        self,
        folder: Path,
        subject: str,
        row: delimited.Row | None,
        visits: Mapping[str, delimited.Row],
        sidecars: Sidecars,
    ) -> Iterator[_Session]:
        """Yield the sessions of a subject; with session folders, first what lies beside them."""
        sidecars = [*sidecars, *self._sidecars(folder)]
        whole = _Session(folder, subject, "ses-1", f"{folder.name}_", (), sidecars).with_row(row)
        table = folder / f"{folder.name}_sessions.tsv"
        rows: dict[str, delimited.Row] = {}
        try:
            rows = self._table(table, "session_id")
            dictionaries = (self.root / "sessions.json", folder / f"{folder.name}_sessions.json")
            rows = self._in_years(rows, self.root / "participants.json", *dictionaries)
        except UnusableError as reason:
            whole = replace(whole, problem=f"{reason} (sessions.tsv)")
        session_folders = _folders(folder, "ses-")
        labels = [unicodedata.normalize("NFC", child.name) for child in session_folders]
        rows = self._matched(rows, labels or ["ses-1"], table)
        visits = self._matched(visits, labels or ["ses-1"], self.root / "participants.tsv")
        if session_folders:
            misplaced = "misplaced: the subject has session folders, and this lies in none of them"
            yield replace(whole, problem=misplaced)
        else:
            yield whole.with_row(visits.get("ses-1")).with_row(rows.get("ses-1"))
        baseline = _baseline(labels)
        for session_folder, label in zip(session_folders, labels, strict=True):
            session = replace(
                whole,
                folder=session_folder,
                label=label,
                prefix=f"{folder.name}_{session_folder.name}_",
                sidecars=[*sidecars, *self._sidecars(session_folder)],
            )
            if label != baseline and len(labels) > 1:
                session = self._without_ages(session, [visits.get(label), rows.get(label)])
            yield session.with_row(visits.get(label)).with_row(rows.get(label))

    def _visits(self, path: Path) -> dict[str, dict[str, delimited.Row]]:
        """Return the rows of a table of participants by subject and session, if it has sessions."""
        if not path.exists():
            return {}
        table = delimited.read(path, key="participant_id")
        session = _session_column(table.columns)
        visits: dict[str, dict[str, delimited.Row]] = {}
        for row in table.rows if session else ():
            subject = unicodedata.normalize("NFC", row.cells.get("participant_id", ""))
            label = unicodedata.normalize("NFC", row.cells.get(session or "", ""))
            subject, label = _prefixed(subject, "sub-"), _prefixed(label, "ses-")
            first = visits.setdefault(subject, {}).setdefault(label, row)
            if first is not row and first.fields != row.fields:
                self._note(
                    path,
                    f"lines {first.line} and {row.line} are about the same session and disagree: "
                    "the first is used",
                )
        return visits

    def _matched(
        self, rows: Mapping[str, delimited.Row], labels: Sequence[str], table: Path
    ) -> dict[str, delimited.Row]:
        """Return rows by the labels of the session folders; ses-1 is ses-01 if no other is.

        Rows without a folder and folders without a row are noted.
        """
        matched = {label: rows[label] for label in labels if label in rows}
        left = [key for key in rows if key not in matched]
        for label in [label for label in labels if label not in matched]:
            alike = [key for key in left if _unpadded(key) == _unpadded(label)]
            twins = [other for other in labels if _unpadded(other) == _unpadded(label)]
            if len(alike) == len(twins) == 1:
                matched[label] = rows[alike[0]]
                left.remove(alike[0])
        if left:
            self._note(table, f"no such session folder, so not used: {', '.join(sorted(left))}")
        if rows and len(matched) < len(labels):
            without = ", ".join(label for label in labels if label not in matched)
            self._note(table, f"sessions without a row: {without}")
        return matched

    def _without_ages(self, session: _Session, own: Iterable[delimited.Row | None]) -> _Session:
        """Return a later session without the ages of its subject, which are those of the first."""
        aged = {
            column
            for row in session.rows
            for column, cell in self._ages_of(row)
            if not delimited.is_missing(cell)
        }
        if not aged:
            return session
        said = (cell for row in own if row for _, cell in self._ages_of(row))
        if all(map(delimited.is_missing, said)):
            self._note(
                self.root / "participants.tsv",
                "the age of a subject is used for the first session alone: later ones need a row "
                "in sessions.tsv, or are n/a",
            )
        rows = (
            replace(row, cells=row.cells.change(dict.fromkeys(aged & row.cells.keys(), "n/a")))
            for row in session.rows
        )
        return replace(session, rows=tuple(rows))

    def _ages_of(self, row: delimited.Row) -> Iterator[tuple[str, str]]:
        """Yield the columns of a row that hold ages, and its cells."""
        folded = row.cells.columns.folded
        return ((name, row.cells[name]) for age in self.ages for name in folded.get(age, ()))

    def _read_session(self, session: _Session) -> None:
        rows: dict[str, delimited.Row] = {}
        try:
            rows = self._table(session.folder / f"{session.prefix}scans.tsv", "filename")
        except UnusableError as reason:
            session = replace(session, problem=f"{reason} (scans.tsv)")
        for file in _files(session.folder):
            if _suffix(file.name) == "T1w" and file.name.endswith(IMAGE):
                self._exclude(file, "misplaced: expected in a folder called anat")
        anat = session.folder / "anat"
        session = replace(session, sidecars=[*session.sidecars, *self._sidecars(anat)])
        scans: list[Scan] = []
        for file in _files(anat):
            if not file.name.lower().endswith((*IMAGE, *_OTHER_FORMATS)):
                continue
            row = rows.get(f"anat/{unicodedata.normalize('NFC', file.name)}")
            scan = attempt(partial(self._scan, session=session.with_row(row)), file)
            if isinstance(scan, UnusableError):
                self._exclude(file, scan)
            else:
                scans.append(scan)
        if len(scans) > 1:
            scans = [replace(scan, rank=_with_edge(scan.rank, scan.file)) for scan in scans]
        self.findings.scans += scans

    def _scan(self, file: Path, session: _Session) -> Scan:
        """Return the scan in a file of an ``anat`` folder. Raises UnusableError."""
        entities = _check_name(file.name, session.prefix)
        if (entity := derived_entity(entities)) and not self.derived:
            raise UnusableError(
                f"a derivative: its name says {entity}, which raw BIDS does not have. To use it, "
                'say "DatasetType": "derivative" in dataset_description.json and name '
                "the dataset in ingest.datasets"
            )
        if session.problem:
            raise UnusableError(session.problem)
        check_location(file, self.root)
        merged = _merged({*entities, *session.prefix[:-1].split("_")}, session.sidecars)
        agent = _agent(entities, merged)
        path = file.relative_to(self.findings.data).as_posix()
        return Scan(
            dataset=self.dataset.name,
            subject=session.subject,
            session=session.label,
            source="bids",
            path=path,
            file=file,
            origin=path,
            rank=_rank(file.name, entities, agent),
            rows=tuple(row.cells for row in session.rows),
            header=_header(merged),
        )

    def _sidecars(self, folder: Path) -> Sidecars:
        """Read the T1w sidecars in a folder."""
        sidecars: list[tuple[set[str], Mapping[str, Any]]] = []
        for file in _files(folder):
            if file.suffix == ".json" and _suffix(file.name) == "T1w":
                entities = set(file.name.removesuffix(".json").split("_")[:-1])
                sidecars.append((entities, self._json(file)))
        return sorted(sidecars, key=lambda sidecar: len(sidecar[0]))

    def _json(self, file: Path) -> Mapping[str, Any]:
        try:
            if not file.is_file():  # reading a pipe or a device would never end
                raise OSError
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            self.findings.remember(file)
        except (OSError, ValueError, RecursionError):
            self._note(file, "not valid JSON, or not readable: not used")
            return {}
        return content if isinstance(content, dict) else {}

    def _table(self, path: Path, key: str) -> dict[str, delimited.Row]:
        """Return rows by ``key``, with its BIDS prefix; none when there is no such table."""
        if not path.exists() and not path.is_symlink():
            return {}
        table = delimited.read(path, key=key)
        self.findings.remember(path)
        rows, notes = table.index_by(key)
        if key == "participant_id" and _session_column(table.columns):
            notes = []  # a row for every session may well differ
        for note in (*table.notes, *notes):
            self._note(path, note)
        prefix = {"participant_id": "sub-", "session_id": "ses-"}.get(key, "")
        return {
            _prefixed(unicodedata.normalize("NFC", label), prefix): row
            for label, row in rows.items()
        }

    def _in_years(
        self, rows: dict[str, delimited.Row], *inherited: Path
    ) -> dict[str, delimited.Row]:
        """Convert ages to years where data dictionaries, the last the most specific, say so.

        An age in a unit that is not understood becomes n/a.
        """
        described: dict[str, tuple[Path, Any]] = {}
        for dictionary in inherited:
            if rows and dictionary.exists():
                entries = self._json(dictionary).items()
                described |= {name.casefold(): (dictionary, entry) for name, entry in entries}
        tables = {row.cells.columns for row in rows.values()}
        columns = {column for table in tables for column in table.places}
        units = {}
        for column in sorted(columns, key=str.casefold):
            if column.casefold() in self.ages:
                file, entry = described.get(column.casefold(), (self.root, None))
                unit, said = ages.declared_unit(column, entry)
                if unit is None:
                    self._note(file, f"'{column}' is in {said}, no known unit: set to n/a")
                elif unit != "year":
                    self._note(file, f"'{column}' is in {said}: converted to years")
                units[column] = unit
        return {key: _with_years(row, units) for key, row in rows.items()}

    def _exclude(self, path: Path, reason: object) -> None:
        self.findings.exclude(self.dataset.name, path, reason)

    def _note(self, path: Path, note: str) -> None:
        self.findings.note(self.dataset.name, path, note)


def _prefixed(label: str, prefix: str) -> str:
    return label if label.startswith(prefix) else prefix + label


def _session_column(columns: Sequence[str]) -> str | None:
    return next((name for name in columns if name.casefold() == "session_id"), None)


def _unpadded(label: str) -> str:
    return re.sub(r"0+(?=\d)", "", label).casefold()


def _baseline(labels: Sequence[str]) -> str | None:
    """Return the first session of a subject: the one that says so, else the first by its label."""
    said = [label for label in labels if _BASELINE.fullmatch(label)]
    return next(iter([*said, *labels]), None)


def _check_name(name: str, prefix: str) -> list[str]:
    """Return the entities in the name of a T1w image after ``prefix``; else raise UnusableError."""
    suffix = _suffix(name)
    if suffix != "T1w":
        raise UnusableError(f"not T1w: its name ends in '{suffix}'")
    if not name.endswith(IMAGE):
        raise UnusableError("not NIfTI: expected .nii or .nii.gz. Convert it")
    if not name.startswith(prefix):
        raise UnusableError(
            f"misnamed: expected a name that begins with {prefix}, like its folders"
        )
    entities = name.removeprefix(prefix).split("_")[:-1]
    for entity in entities:
        key, _, label = entity.partition("-")
        if key == "ce" and contrast.is_agent(label):
            raise UnusableError(f"contrast agent: its name says ce-{label}")
        if key == "part" and label != "mag":
            raise UnusableError(f"not a magnitude image: its name says part-{label}")
        if key in ("sub", "ses"):
            raise UnusableError(f"misnamed: {entity} contradicts its folders ({prefix[:-1]})")
    return entities


def _agent(entities: Sequence[str], sidecar: Mapping[str, Any]) -> bool | None:
    """Return False if an image says that it is without contrast agent, None if it says nothing.

    Raises UnusableError when its name or its sidecar says that an agent was given.
    """
    labels = [entity.partition("-")[::2] for entity in entities]
    named = contrast.in_names(label for key, label in labels if key in ("acq", "rec", "mod"))
    if named:
        raise UnusableError(
            f"contrast agent: its name says {'_'.join(entities)}. If that means something else, "
            "rename it"
        )
    native = named is False or any(key == "ce" for key, _ in labels)
    fields = {name: _as_text(sidecar.get(name)) for name in contrast.FIELDS}
    if native:  # the name of an image is about it, that of a protocol about an examination
        fields |= {"SeriesDescription": "", "ProtocolName": ""}
    told = contrast.told(fields)
    if told:
        raise UnusableError("contrast agent: its sidecar (.json) says that one was given")
    return False if native else told


def _rank(name: str, entities: Sequence[str], agent: bool | None) -> tuple[object, ...]:
    """Order the images of a session by their names; the lowest is preferred."""
    runs = [int(run) for run in re.findall(r"(?:^|_)run-(\d+)", "_".join(entities))]
    others = [entity for entity in entities if not entity.startswith("run-")]
    acquisition = " ".join(others).casefold()
    is_2d = re.search(r"(?<!\d)2d", acquisition) is not None
    slices_mm = re.search(r"(\d+(?:[.p]\d+)?)mm", acquisition)
    edge = float(slices_mm[1].replace("p", ".")) if slices_mm else 0.0
    is_echo = any(entity.startswith("echo-") for entity in entities)
    run = runs[0] if runs else 0
    return is_2d, edge, is_echo, agent is not False, len(others), run, name


def _with_edge(rank: tuple[object, ...], file: Path) -> tuple[object, ...]:
    """Return a rank with the longest edge of a voxel, mm, of the image, or the one its name says.

    It takes opening the file, which only pays where a session has several.
    """
    is_2d, said, *others = rank
    try:
        edge = float(max(nib.Nifti1Image.from_filename(file).header["pixdim"][1:4]))
    except Exception:  # what a parser of arbitrary bytes raises; inspection says why
        edge = math.inf
    return is_2d, round(max(edge, float(str(said))), 1), *others


def _as_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _merged(entities: set[str], sidecars: Sidecars) -> Mapping[str, Any]:
    """Return what the sidecars that apply say; deeper folders win."""
    merged: dict[str, Any] = {}
    for applies_to, values in sidecars:
        if applies_to <= entities:
            merged |= values
    return merged


def _header(merged: Mapping[str, Any]) -> dict[str, str | float]:
    """Return scanner and field strength, as a sidecar has them."""
    names = [merged.get(key) for key in ("Manufacturer", "ManufacturersModelName")]
    scanner = " ".join(" ".join(name.split()) for name in names if isinstance(name, str))
    field = merged.get("MagneticFieldStrength")
    header: dict[str, str | float] = {"scanner": scanner} if scanner else {}
    if isinstance(field, int | float) and not isinstance(field, bool) and field > 0:
        header["field_strength"] = float(field)
    return header


def _with_years(row: delimited.Row, units: Mapping[str, str | None]) -> delimited.Row:
    """Return a row with ages in years; ``units`` has the unit of every column of ages."""
    changed = {}
    for column in units.keys() & row.cells.keys():
        unit = units[column]
        if unit is None:
            changed[column] = "n/a"
        elif unit != "year" and (years := ages.in_years(row.cells[column], unit)) is not None:
            changed[column] = f"{years:.2f}"
    return replace(row, cells=row.cells.change(changed))


def _suffix(name: str) -> str:
    """Return the BIDS suffix of a file name, such as T1w."""
    return name.rpartition("_")[2].partition(".")[0]


def _folders(folder: Path, prefix: str) -> list[Path]:
    """Return the folders with a prefix, broken links included, in natural order."""
    children = (child for child in folder.iterdir() if child.name.startswith(prefix))
    return sorted(
        (
            child
            for child in children
            if child.is_dir() or (child.is_symlink() and not child.exists())
        ),
        key=lambda child: natural_key(child.name),
    )


def _files(folder: Path) -> list[Path]:
    """Return visible files, links included, in a fixed order."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
