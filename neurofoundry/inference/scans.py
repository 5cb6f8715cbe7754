"""The scans that somebody points at, whatever form they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import sources
from neurofoundry.ingest.bids import IMAGE
from neurofoundry.ingest.run import inspect_images, read_dataset
from neurofoundry.ingest.scan import Findings, Scan, slug


@dataclass(frozen=True)
class Found:
    """A scan, or why there is none."""

    scan: str
    """Where it was found: a path below what was given, or the pseudonym of a DICOM series."""
    scan_id: str
    """Unique; '' for what is no scan."""
    file: Path | None
    sha256: str = ""
    reason: str = ""
    """Why it cannot be read; '' when it can."""


def find(places: Sequence[Path], *, nifti: Path, workers: int) -> list[Found]:
    """Every scan below ``places``, readable ones first: BIDS, DICOM, a table, or NIfTI files.

    DICOM is converted into the folder ``nifti``. Unlike ingest, this keeps every T1w of a session.
    Raises DataError when a place holds no scan, UsageError when there is no such place.
    """
    readable: list[Found] = []
    broken: list[Found] = []
    names: Counter[str] = Counter()
    for number, place in enumerate(places):
        found = _look_below(place, nifti / str(number), workers)
        for scan in inspect_images(found.scans, found, workers):
            names[scan.scan_id] += 1
            count = names[scan.scan_id]
            unique = scan.scan_id if count == 1 else f"{scan.scan_id}_{count}"
            readable.append(Found(scan.origin, unique, scan.file, scan.sha256))
        broken += [Found(path, "", None, reason=reason) for _, path, reason in found.excluded]
    return readable + broken


def _look_below(place: Path, nifti: Path, workers: int) -> Findings:
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder. Give the scans, or a folder of them.")
    if place.is_file():
        found = Findings(place.parent)
        found.scans = [_single(place, place.parent)]
        return found
    found = Findings(place)
    try:
        datasets = sources.find((), found)
    except DataError:
        found = Findings(place)  # what is not a dataset may be a folder of images
        images = sources.files(place, skip=set(), closed=[])
        found.scans = [_single(file, place) for file in images if file.name.endswith(IMAGE)]
        if not found.scans:
            raise
        return found
    nifti.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        read_dataset(dataset, datasets, found, age_columns=(), nifti=nifti, workers=workers)
    return found


def _single(file: Path, root: Path) -> Scan:
    path = file.relative_to(root).as_posix()
    if not path.endswith(IMAGE):
        raise UsageError(f"{file}: expected a NIfTI image (.nii, .nii.gz) or a folder.")
    name = slug(path.removesuffix(".gz").removesuffix(".nii").replace("/", "_"))
    return _Named(
        dataset="",
        subject=name,
        session="",
        source="table",
        path=path,
        file=file,
        origin=path,
        rank=(),
        rows=(),
    )


class _Named(Scan):
    """A scan of which nothing is known but its file."""

    @property
    def scan_id(self) -> str:
        return self.subject
