"""Reads a BIDS dataset: which T1w images it offers, and what its tables say about them.

- **Images**: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``, and those of the further contrasts that are
  asked for. Other images in an ``anat`` folder are listed as not T1w; derivatives/, sourcedata/,
  code/ and hidden files are ignored.
- **Several T1w in a session**: one that is not called 2D, then the shortest longest edge of a
  voxel, then a combination of echoes before one of them, then one that says it is without contrast
  agent, then the fewest entities besides sub, ses and run (so without ``acq`` or ``rec`` when there
  is one), then the lowest run, then the first by name. When it proves unusable, the next.
- **Tables**: ``phenotype/*.tsv``, ``sessions.tsv``, ``participants.tsv``, ``sub-*_sessions.tsv``
  and ``*_scans.tsv`` (see `bids_tables`). A value in a more specific table wins over one in a more
  general table; n/a never does. A table or a row that is there but cannot be understood excludes
  what it is about: a scan must not lose its site or label, and so change its split, without anybody
  noticing. Phenotype tables and the root's sessions.tsv are left out with a note.
- **Sidecars**, inherited as in BIDS, give the scanner and the field strength, and tell of a
  contrast agent; nothing else of them is used.
- **Sessions**: ``ses-1`` in a table is the folder ``ses-01``. ``participants.tsv`` may have a
  column ``session_id`` and a row for every session; without it, its age is that of the first
  session alone.
- A subject without session folders has one session, ``ses-1``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from neurofoundry.errors import DataError
from neurofoundry.ingest import contrast, delimited, vocabulary
from neurofoundry.ingest.bids_tables import People, Tables
from neurofoundry.ingest.delimited import MisnamedColumnError
from neurofoundry.ingest.derivatives import derived_entity, why_derivative
from neurofoundry.ingest.listing import holds_dicom, is_visible
from neurofoundry.ingest.params import Column, Dataset
from neurofoundry.ingest.scan import (
    Findings,
    Scan,
    UnusableError,
    attempt,
    check_location,
    natural_key,
)
from neurofoundry.runtime.files import spelled
from neurofoundry.runtime.progress import Progress

LABEL = re.compile(r"sub-[^,^]+")
"""How a subject may be called. BIDS knows letters, digits and +; others are common all the same,
but for those between the names of a person, as in a list or a DICOM header."""

IMAGE = (".nii", ".nii.gz")
OTHER_FORMATS = (".mgz", ".mgh", ".hdr", ".img", ".mnc", ".nrrd", ".mha", ".dcm", ".ima", ".zip")

_TABLES = (".tsv", ".csv", ".xlsx", ".xls", ".ods", ".sav")

_OF_LETTERS = re.compile(r"sub-[^\W\d_]{5,}")
"""A label that may be a name. Nobody can tell from it alone; pseudonyms mostly have digits."""

_BASELINE = re.compile(r"ses-(?:bl|base|baseline|pre|screening|sc|first|initial)", re.IGNORECASE)

Sidecars = Sequence[tuple[set[str], Mapping[str, Any]]]
"""Entities and suffix, and content, of the sidecars of images; the more specific ones later."""


def read(
    dataset: Dataset,
    findings: Findings,
    *,
    columns: Mapping[str, Column],
    contrasts: Sequence[str],
) -> None:
    """Add the scans of ``dataset`` to ``findings``; ``columns`` are those of the cohort, and
    ``contrasts`` the suffixes of the images that are asked for.

    Raises DataError where participants.tsv lacks its first column and has one that is nearly that.
    """
    derived = why_derivative(findings.data / dataset.path) is not None
    _Reader(Tables(dataset, findings, columns), tuple(contrasts), derived).read()


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

    def with_rows(self, rows: Iterable[delimited.Row | None]) -> _Session:
        """Return the session with the rows of several tables, the more specific later."""
        session = self
        for row in rows:
            session = session.with_row(row)
        return session


@dataclass(frozen=True)
class _Reader:
    """Reads one dataset."""

    tables: Tables
    contrasts: tuple[str, ...]
    derived: bool
    """The dataset is a derivative, and used because it was asked for by name."""

    @property
    def root(self) -> Path:
        return self.tables.root

    @property
    def findings(self) -> Findings:
        return self.tables.findings

    def read(self) -> None:
        table = self.tables.participants_file
        folders = [(_name(folder), folder) for folder in self._subjects()]
        subjects = list(dict(folders))
        try:
            participants = self.tables.participants(subjects)
        except MisnamedColumnError as reason:
            raise DataError(
                f"{self.findings.name(table)}: {reason}. Without it, age, sex and labels of all "
                "subjects would be lost."
            ) from None
        except UnusableError as reason:
            self._exclude(table, f"{reason}. The whole dataset is left out")
            return
        people = [*self.tables.others(subjects), participants]
        sidecars = self._sidecars(self.root)
        name = self.tables.dataset.name
        before = len(self.findings.scans)
        with Progress(f"reading {name}", len(folders), unit="subjects") as progress:
            for subject, folder in folders:
                self._read_subject(folder, subject, people, sidecars)
                progress.advance()
        scans = self.findings.scans[before:]
        self._note_missing(participants, subjects, any(scan.rows for scan in scans))
        self._note_unread(participants)
        for subject, row in participants.unmatched.items():
            shown = subject if LABEL.fullmatch(subject) else "a subject"
            missing = f"no image: {shown} is listed, but there is no such folder"
            self._exclude(table, row.problem or missing)

    def _subjects(self) -> list[Path]:
        """Return the folders of subjects; leave out those that may be called after people."""
        folders = _folders(self.root, "sub-")
        labelled = [folder for folder in folders if LABEL.fullmatch(folder.name)]
        subjects = [folder for folder in labelled if not holds_dicom(folder)]
        why = (
            (len(labelled) - len(subjects), "hold DICOM (convert it, or move it elsewhere)"),
            (
                len(folders) - len(labelled),
                "have a comma or ^, as names of people do (rename them: letters and digits)",
            ),
        )
        if hidden := [f"{count} folders sub-* {what}" for count, what in why if count]:
            self._exclude(
                self.root,
                f"not BIDS: {'; '.join(hidden)}. Their names, which may be those of patients, are "
                "not shown",
            )
        if named := sum(bool(_OF_LETTERS.fullmatch(_name(folder))) for folder in subjects):
            self.tables.note(
                self.root,
                f"{named} of {len(subjects)} labels of subjects are letters alone, as names are. "
                "Labels stand in tables and reports: if these are names, rename the subjects",
            )
        return subjects

    def _note_missing(self, participants: People, subjects: Sequence[str], others: bool) -> None:
        """Record that subjects have no row; ``others`` says that other tables tell something."""
        lost = "what other tables do not say is n/a" if others else "age, sex and labels are n/a"
        if not participants.path.exists():
            alike = (file for file in _files(self.root) if "participants" in file.name.casefold())
            named = [file.name for file in alike if file.suffix != ".json"]
            hint = f" ({named[0]} is not read; save it as participants.tsv)" if named else ""
            self._note(participants.path, f"there is no such table{hint}: {lost}")
            return
        known = participants.rows.keys() | participants.visits.keys()
        without = [subject for subject in subjects if subject not in known]
        if without:
            names = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            self._note(participants.path, f"{len(without)} subjects have no row; {lost}: {names}")

    def _note_unread(self, participants: People) -> None:
        """Record tables that a person would expect to be read."""
        read = {participants.path.name, "sessions.tsv", "samples.tsv", "qc_overrides.tsv"}
        for file in _files(self.root):
            if file.suffix.casefold() in _TABLES and file.name not in read:
                self._note(
                    file,
                    "none of the tables that have labels: if it has, put its columns into "
                    "participants.tsv, or the table, with participant_id, into phenotype/",
                )

    def _read_subject(
        self, folder: Path, subject: str, people: Sequence[People], sidecars: Sidecars
    ) -> None:
        before = len(self.findings.scans) + len(self.findings.excluded)

        def read(folder: Path) -> None:
            check_location(folder, self.root)
            for session in self._sessions(folder, subject, people, sidecars):
                self._read_session(session)

        if isinstance(reason := attempt(read, folder), UnusableError):
            self._exclude(folder, reason)
        if len(self.findings.scans) + len(self.findings.excluded) == before:
            self._exclude(folder, "no T1w: the folder holds no anat/*_T1w.nii[.gz]")

    def _sessions(
        self, folder: Path, subject: str, people: Sequence[People], sidecars: Sidecars
    ) -> Iterator[_Session]:
        """Yield the sessions of a subject; with session folders, first what lies beside them.

        ``people`` are the tables of all subjects, the more specific later.
        """
        sidecars = [*sidecars, *self._sidecars(folder)]
        whole = _Session(folder, subject, "ses-1", f"{subject}_", (), sidecars)
        for table in people:
            whole = whole.with_row(table.rows.get(subject))
        session_folders = _folders(folder, "ses-")
        labels = [_name(child) for child in session_folders]
        visits = [
            self.tables.matched(table.visits.get(subject, {}), labels or ["ses-1"], table.path)
            for table in people
        ]
        try:
            visits.append(self.tables.sessions(folder, labels or ["ses-1"]))
        except UnusableError as reason:
            whole = replace(whole, problem=f"{reason} (sessions.tsv)")
        if session_folders:
            misplaced = "misplaced: the subject has session folders, and this lies in none of them"
            yield replace(whole, problem=misplaced)
        else:
            yield whole.with_rows(rows.get("ses-1") for rows in visits)
        baseline = _baseline(labels)
        for session_folder, label in zip(session_folders, labels, strict=True):
            own = [rows.get(label) for rows in visits]
            session = replace(
                whole,
                folder=session_folder,
                label=label,
                prefix=f"{subject}_{label}_",
                sidecars=[*sidecars, *self._sidecars(session_folder)],
            )
            if label != baseline and len(labels) > 1:
                session = replace(session, rows=self.tables.without_ages(session.rows, own))
            yield session.with_rows(own)

    def _read_session(self, session: _Session) -> None:
        rows: dict[str, delimited.Row] = {}
        try:
            rows = self.tables.scans(spelled(session.folder, f"{session.prefix}scans.tsv"))
        except UnusableError as reason:
            session = replace(session, problem=f"{reason} (scans.tsv)")
        for file in _files(session.folder):
            if _suffix(file.name) in self.contrasts and file.name.endswith(IMAGE):
                self._exclude(file, "misplaced: expected in a folder called anat")
        anat = session.folder / "anat"
        session = replace(session, sidecars=[*session.sidecars, *self._sidecars(anat)])
        scans: list[Scan] = []
        files = _files(anat)
        for file in files:
            if not file.name.lower().endswith((*IMAGE, *OTHER_FORMATS)):
                continue
            row = rows.get(f"anat/{_name(file)}")
            scan = attempt(partial(self._scan, session=session.with_row(row)), file)
            if isinstance(scan, UnusableError):
                self._exclude(file, scan)
            else:
                scans.append(scan)
        self._note_unmet(rows, files, session)
        several = Counter(scan.contrast for scan in scans)
        self.findings.scans += [
            replace(scan, rank=_with_edge(scan.rank, scan.file))
            if several[scan.contrast] > 1
            else scan
            for scan in scans
        ]

    def _note_unmet(
        self, rows: Mapping[str, delimited.Row], files: Sequence[Path], session: _Session
    ) -> None:
        """Record rows of a scans.tsv that name none of the ``files`` of its session."""
        images = {f"anat/{_name(file)}" for file in files}
        unmet = [name for name in rows if _suffix(name) in self.contrasts and name not in images]
        if unmet:
            self._note(
                session.folder / f"{session.prefix}scans.tsv",
                f"{len(unmet)} rows name no image, and are not used: expected "
                f"anat/{session.prefix}…, as the file is called",
            )

    def _scan(self, file: Path, session: _Session) -> Scan:
        """Return the scan in a file of an ``anat`` folder. Raises UnusableError."""
        entities = _check_name(_name(file), session.prefix, self.contrasts)
        suffix = _suffix(file.name)
        if (entity := derived_entity(entities)) and not self.derived:
            raise UnusableError(
                f"a derivative: its name says {entity}, which raw BIDS does not have. To use it, "
                'say "DatasetType": "derivative" in dataset_description.json and name '
                "the dataset in ingest.datasets"
            )
        if session.problem:
            raise UnusableError(session.problem)
        check_location(file, self.root)
        merged = _merged({suffix, *entities, *session.prefix[:-1].split("_")}, session.sidecars)
        agent = _agent(entities, merged)
        path = file.relative_to(self.findings.data).as_posix()
        return Scan(
            dataset=self.tables.dataset.name,
            subject=session.subject,
            session=session.label,
            source="bids",
            path=path,
            file=file,
            origin=path,
            rank=_rank(file.name, entities, agent),
            rows=tuple(row.cells for row in session.rows),
            header=_header(merged),
            contrast=suffix,
        )

    def _sidecars(self, folder: Path) -> Sidecars:
        """Read the sidecars of images in a folder."""
        sidecars: list[tuple[set[str], Mapping[str, Any]]] = []
        for file in _files(folder):
            if file.suffix == ".json" and _suffix(file.name) in self.contrasts:
                entities = set(_name(file).removesuffix(".json").split("_"))
                sidecars.append((entities, self.tables.json(file)))
        return sorted(sidecars, key=lambda sidecar: len(sidecar[0]))

    def _exclude(self, path: Path, reason: object) -> None:
        self.findings.exclude(self.tables.dataset.name, path, reason)

    def _note(self, path: Path, note: str) -> None:
        self.tables.note(path, note)


def _baseline(labels: Sequence[str]) -> str | None:
    """Return the first session of a subject: the one that says so, else the first by its label."""
    said = [label for label in labels if _BASELINE.fullmatch(label)]
    return next(iter([*said, *labels]), None)


def _check_name(name: str, prefix: str, contrasts: Sequence[str]) -> list[str]:
    """Return the entities in the name of an image of these ``contrasts`` after ``prefix``; else
    raise UnusableError."""
    suffix = _suffix(name)
    if suffix not in contrasts:
        raise UnusableError(f"not {' or '.join(contrasts)}: its name ends in '{suffix}'")
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
    """Return scanner and field strength, as far as what a sidecar says is known to be that."""
    names = [merged.get(key) for key in ("Manufacturer", "ManufacturersModelName")]
    scanner = vocabulary.scanner(" ".join(name for name in names if isinstance(name, str)))
    field = merged.get("MagneticFieldStrength")
    header: dict[str, str | float] = {"scanner": scanner} if scanner else {}
    if isinstance(field, int | float) and not isinstance(field, bool) and field > 0:
        header["field_strength"] = float(field)
    return header


def _name(path: Path) -> str:
    """Return the name of a file or folder in the Unicode form in which tables are read."""
    return unicodedata.normalize("NFC", path.name)


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
    return sorted(filter(is_visible, folder.iterdir()))
