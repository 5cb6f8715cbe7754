"""The scans that a user points at, whatever form they are in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurofoundry.contracts.cohort import T1W
from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import listing, sources
from neurofoundry.ingest.bids import IMAGE
from neurofoundry.ingest.run import inspect_images, read_dataset
from neurofoundry.ingest.scan import Findings, Scan, slug
from neurofoundry.preprocess.scan import Further
from neurofoundry.runtime.guard import stage_of


@dataclass(frozen=True)
class InputScan:
    """A scan, or a file that is none."""

    origin: str
    """Where it was found: a path below what was given, or the pseudonym of a DICOM series."""
    scan_id: str
    """Unique; '' for what is not a scan."""
    file: Path | None
    sha256: str = ""
    reason: str = ""
    """Why it cannot be read; '' when it can."""
    further: tuple[Further, ...] = ()
    """Images of its session in other contrasts."""


def is_volumes(folder: Path) -> bool:
    """Return whether a folder is an output of preprocess, be it a damaged one: not raw data."""
    return os.path.lexists(folder / "grid.json") or stage_of(folder) == "preprocess"


def find_scans(
    places: Sequence[Path], *, contrasts: Sequence[str], nifti: Path, workers: int
) -> list[InputScan]:
    """Find every scan below ``places``, readable ones first: BIDS, DICOM, a table or NIfTI files.

    DICOM is converted into the folder ``nifti``. Unlike ingest, this keeps every T1w of a session;
    of each further one of ``contrasts`` it takes the best, where there is one.
    Raises DataError when a place holds no scan, and UsageError when there is no such place.
    """
    readable: list[InputScan] = []
    unreadable: list[InputScan] = []
    counts: Counter[str] = Counter()
    for number, place in enumerate(places):
        findings = _read_below(place, contrasts, nifti / str(number), workers)
        found = inspect_images(findings.scans, findings, workers)
        beside = _further(found)
        for scan in (each for each in found if each.contrast == T1W):
            counts[scan.scan_id] += 1
            count = counts[scan.scan_id]
            unique = scan.scan_id if count == 1 else f"{scan.scan_id}_{count}"
            others = beside.get(_session(scan), ())
            readable.append(
                InputScan(scan.origin, unique, scan.file, scan.sha256, further=tuple(others))
            )
        unreadable += [
            InputScan(path, "", None, reason=reason) for _, path, reason in findings.excluded
        ]
    return readable + unreadable


def _session(scan: Scan) -> tuple[str, str, str]:
    return scan.dataset, scan.subject, scan.session


def _further(scans: Sequence[Scan]) -> dict[tuple[str, str, str], list[Further]]:
    """Return the best image of each session in each further contrast."""
    best: dict[tuple[tuple[str, str, str], str], Scan] = {}
    for scan in sorted((s for s in scans if s.contrast != T1W), key=lambda scan: scan.rank):
        best.setdefault((_session(scan), scan.contrast), scan)
    beside: dict[tuple[str, str, str], list[Further]] = {}
    for (session, contrast), scan in sorted(best.items()):
        image = Further(contrast, scan.file.resolve(), scan.sha256)
        beside.setdefault(session, []).append(image)
    return beside


def _read_below(place: Path, contrasts: Sequence[str], nifti: Path, workers: int) -> Findings:
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder. Give the scans, or a folder of them.")
    if place.is_file():
        findings = Findings(place.parent)
        findings.scans = [_single(place, place.parent)]
        return findings
    findings = Findings(place)
    try:
        datasets = sources.find((), findings)
    except DataError:
        findings = Findings(place)  # what is not a dataset may be a folder of images
        images = listing.files(place, skip=set(), closed=[])
        findings.scans = [_single(file, place) for file in images if file.name.endswith(IMAGE)]
        if not findings.scans:
            raise
        return findings
    nifti.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        read_dataset(
            dataset,
            datasets,
            findings,
            columns={},
            contrasts=contrasts,
            nifti=nifti,
            workers=workers,
        )
    return findings


def _single(file: Path, root: Path) -> Scan:
    """Return a NIfTI file as a scan of which only the path below ``root`` is known."""
    path = file.relative_to(root).as_posix()
    if not path.endswith(IMAGE):
        raise UsageError(f"{file}: expected a NIfTI image (.nii, .nii.gz) or a folder.")
    return _NamedScan(
        dataset="",
        subject=slug(path.removesuffix(".gz").removesuffix(".nii").replace("/", "_")),
        session="",
        source="table",
        path=path,
        file=file,
        origin=path,
        rank=(),
        rows=(),
    )


class _NamedScan(Scan):
    """A scan whose identifier is its file name."""

    @property
    def scan_id(self) -> str:
        return self.subject
