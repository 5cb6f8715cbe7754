"""Reads folders of DICOM files: finds the T1w series, converts them, keeps no identifier.

- Files are grouped by patient, study and series; only their headers are read.
- **T1w**, FLAIR and T2w are recognized by technique; names only tell what has the same: see
  `why_not`.
- **Several T1w in a study**: a 3D acquisition before a 2D one, then the shortest longest edge of a
  voxel, then one that says it is without contrast agent, then the most slices, then the lowest
  series number. When it proves unusable, the next.
- **Who**: subject = 'sub-' + 12 hex digits of HMAC-SHA256(key, PatientID), where the key is the
  secret in NEUROFOUNDRY_PSEUDONYM_KEY. A subject's sessions are numbered by study date.
- **Age** from PatientAge, else from birth and study date, in years down to 0.1; over 89 is 90.
- A ``participants.tsv`` in the dataset folder whose participant_id is the PatientID, or the
  pseudonym, adds labels.
- Converted volumes have a fresh header. Names of files and folders, dates and free text are
  written nowhere; excluded.tsv calls a file or folder by 12 hex digits of HMAC-SHA256(key, path).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from neurofoundry.ingest import delimited
from neurofoundry.ingest.bids_tables import participants_file
from neurofoundry.ingest.conversion import convert
from neurofoundry.ingest.dicom_header import read_header
from neurofoundry.ingest.dicom_series import Series, contrast_of
from neurofoundry.ingest.listing import files
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.pseudonyms import pseudonym, read_key
from neurofoundry.ingest.scan import (
    Findings,
    Scan,
    UnusableError,
    attempt,
    map_in_threads,
    slug,
)
from neurofoundry.runtime.progress import Progress


def read(
    dataset: Dataset,
    findings: Findings,
    *,
    contrasts: Sequence[str],
    skip: set[Path],
    out: Path,
    workers: int,
) -> None:
    """Add the series of ``dataset`` in these ``contrasts`` to ``findings``, converted to
    ``out``/*.nii.gz.

    ``skip`` are the folders of other datasets. Raises UsageError when there is no key for the
    pseudonyms.
    """
    reader = _Reader(dataset, findings, tuple(contrasts), read_key(dataset.name), workers)
    table = participants_file(reader.root)
    try:
        labels = reader.labels(table)
    except UnusableError:
        # What the table holds must not be quoted: a header may be missing.
        reason = "unreadable table: expected a text table with a column 'participant_id'"
        findings.exclude(dataset.name, table, f"{reason}. The whole dataset is left out")
        return
    # pydicom's warnings, which it logs, too, quote the values that they are about.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = reader.series(skip)
    reader.note_unmatched(table, labels, series)
    out.mkdir(exist_ok=True)
    findings.scans += reader.convert(reader.candidates(series, labels, out))


@dataclass(frozen=True)
class _Reader:
    """Reads one dataset."""

    dataset: Dataset
    findings: Findings
    contrasts: tuple[str, ...]
    key: bytes
    workers: int

    @property
    def root(self) -> Path:
        return self.findings.data / self.dataset.path

    def labels(self, table: Path) -> dict[str, delimited.Row]:
        """Return the rows of participants.tsv by pseudonym."""
        if not table.exists():
            return {}
        content = delimited.read(table, key="participant_id")
        self.findings.remember(table)
        rows, notes = content.index_by("participant_id")
        for note in (*content.notes, *notes):
            self.findings.note(self.dataset.name, table, note)
        return {f"sub-{pseudonym(self.key, label)}": row for label, row in rows.items()} | rows

    def note_unmatched(
        self, table: Path, labels: dict[str, delimited.Row], all_series: list[Series]
    ) -> None:
        """Record how many rows meet no patient, and patients no row, without saying whose."""
        subjects = {series.header.subject for series in all_series} - {""}
        rows = {id(row): row for row in labels.values()}
        met = {id(labels[subject]) for subject in subjects & labels.keys()}
        name, without = self.dataset.name, len(subjects - labels.keys())
        if unmet := len(rows.keys() - met):
            self.findings.note(
                name,
                table,
                f"{unmet} of {len(rows)} rows meet no patient: expected the PatientID, or the "
                "pseudonym (sub-…) made with the same key, in participant_id",
            )
        if rows and without:
            self.findings.note(name, table, f"{without} of {len(subjects)} patients have no row")

    def series(self, skip: set[Path]) -> list[Series]:
        """Return all series, ordered by subject, study and number."""
        grouped: dict[tuple[str, str, str], Series] = {}
        not_dicom = 0
        for file, header in map_in_threads(
            lambda file: read_header(file, self.root, self.key),
            self._files(skip),
            what=f"reading headers of {self.dataset.name}",
            unit="files",
            workers=self.workers,
        ):
            if header is None:
                not_dicom += 1
            elif isinstance(header, UnusableError):
                self._exclude(self._pseudonym(file), header)
            else:
                ids = header.subject, header.study, header.series
                grouped.setdefault(ids, Series(header)).add(file, header)
        if not_dicom:
            name = self.dataset.name
            self.findings.exclude(name, name, f"not DICOM: {not_dicom} files without its preamble")
        ordered = sorted(
            grouped.values(),
            key=lambda series: (*series.study, series.header.number, series.header.series),
        )
        _name_series(ordered)
        return ordered

    def candidates(
        self, all_series: list[Series], labels: dict[str, delimited.Row], out: Path
    ) -> list[tuple[Series, Scan]]:
        """Return the series in the contrasts that are asked for and their scans; exclude the
        others."""
        sessions = _number_sessions(all_series)
        mixed = _of_several_births(all_series)
        candidates = []
        for series in all_series:
            scan = _scan(series, sessions[series.study], self.dataset, out)
            row = labels.get(series.header.subject)
            problem = mixed.get(series.header.subject) or series.problem
            found = attempt(partial(contrast_of, contrasts=self.contrasts), series)
            if not problem and isinstance(found, UnusableError):
                problem = str(found)
            problem = problem or (row.problem if row else None)
            if problem or isinstance(found, UnusableError):
                self._exclude(scan.origin, problem)
            else:
                rows = (row.cells,) if row else ()
                candidates.append((series, replace(scan, rows=rows, contrast=found)))
        if refused := sum(series.header.age_refused for series, _ in candidates):
            self.findings.note(
                self.dataset.name,
                self.dataset.name,
                f"age of {refused} series is not from 0 to 115 years, or not understood (000Y, or "
                "a birth date such as 1900-01-01): n/a unless a table has it",
            )
        return candidates

    def convert(self, candidates: list[tuple[Series, Scan]]) -> Iterator[Scan]:
        """Convert the series of ``candidates``; yield the scans that were made."""
        for (_, scan), failure in map_in_threads(
            lambda candidate: _convert(*candidate),
            candidates,
            what=f"converting {self.dataset.name}",
            unit="series",
            workers=self.workers,
        ):
            if failure:
                self._exclude(scan.origin, failure)
            else:
                yield scan

    def _files(self, skip: set[Path]) -> list[Path]:
        """List the files of the dataset; exclude the folders that cannot be opened."""
        closed: list[Path] = []
        listed = []
        what = f"listing {self.dataset.name}"
        with Progress(what, None, unit="files") as progress:
            for file in files(self.root, skip=skip, closed=closed):
                listed.append(file)
                progress.advance()
        for folder in closed:
            self._exclude(self._pseudonym(folder), "no permission: the folder cannot be opened")
        return listed

    def _pseudonym(self, path: Path) -> str:
        """Return what tables call a file or folder, whose name may be that of a patient."""
        name = pseudonym(self.key, path.relative_to(self.root).as_posix())
        return f"{self.dataset.name}/{name}"

    def _exclude(self, origin: str, reason: object) -> None:
        self.findings.exclude(self.dataset.name, origin, reason)


def _of_several_births(all_series: Iterable[Series]) -> dict[str, str]:
    """Return why subjects cannot be used whose PatientID stands for several people."""
    births: dict[str, set[str]] = {}
    for series in all_series:
        if series.header.subject:
            births.setdefault(series.header.subject, set()).update(series.births - {""})
    return {
        subject: f"several persons: {len(days)} birth dates under one PatientID, so there is no "
        "telling whose scan it is. Correct the PatientID"
        for subject, days in births.items()
        if len(days) > 1
    }


def _name_series(ordered: Iterable[Series]) -> None:
    """Name series after their number; several of a number in a study are counted."""
    taken: set[tuple[str, str, str]] = set()
    for series in ordered:
        # A number that no scanner gives is a date, or the number of a patient.
        number = series.header.number if 0 <= series.header.number < 100_000 else "x"
        series.name, copy = f"series-{number}", 1
        while (*series.study, series.name) in taken:
            copy += 1
            series.name = f"series-{number}-{copy}"
        taken.add((*series.study, series.name))


def _number_sessions(all_series: Iterable[Series]) -> dict[tuple[str, str], str]:
    """Return the session of every subject and study: ses-1, ses-2, … by day."""
    studies: dict[str, set[tuple[str, str]]] = {}
    for series in all_series:
        day = series.header.day or "9"  # after all dates
        studies.setdefault(series.header.subject, set()).add((day, series.header.study))
    return {
        (subject, study): f"ses-{number}"
        for subject, days in studies.items()
        for number, (_, study) in enumerate(sorted(days), 1)
    }


def _scan(series: Series, session: str, dataset: Dataset, out: Path) -> Scan:
    header = series.header
    subject = header.subject or "sub-unknown"
    facts = {
        "age": header.age,
        "sex": header.sex,
        "scanner": header.scanner or None,
        "field_strength": header.field_strength,
    }
    name = "_".join([*map(slug, (dataset.name, subject, session)), series.name]) + ".nii.gz"
    return Scan(
        dataset=dataset.name,
        subject=subject,
        session=session,
        source="dicom",
        path=f"{out.name}/{name}",
        file=out / name,
        origin=f"{dataset.name}/{subject}/{session}/{series.name}",
        rank=series.rank,
        rows=(),
        header={fact: value for fact, value in facts.items() if value is not None},
    )


def _convert(series: Series, scan: Scan) -> UnusableError | None:
    try:
        convert(series.files, scan.file)
    except UnusableError as reason:
        return reason
    return None
