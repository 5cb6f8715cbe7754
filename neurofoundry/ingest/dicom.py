"""Reads folders of DICOM files: finds the T1w series, converts them, keeps no identifier.

- Files are grouped by patient, study and series; only headers are read, of them only ``_TAGS``.
- **T1w** is recognised by technique, never by the name of a series: see ``why_not_t1w``.
- **Several T1w in a study**: a 3D acquisition before a 2D one, then the shortest longest edge of a
  voxel, then the most slices, then the lowest series number. When it proves unusable, the next.
- **Who**: subject = 'sub-' + 12 hex digits of HMAC-SHA256(key, PatientID), where the key is the
  secret in NEUROFOUNDRY_PSEUDONYM_KEY. A subject's sessions are numbered by study date.
- **Age** from PatientAge, else from birth and study date, in years down to 0.1; over 89 is 90.
- A ``participants.tsv`` in the dataset folder whose participant_id is the PatientID, or the
  pseudonym, adds labels.
- Converted volumes have a fresh header. Names of files and folders, dates and free text are
  written nowhere; excluded.tsv calls a file or folder by 12 hex digits of HMAC-SHA256(key, path).
"""

from __future__ import annotations

import hmac
import math
import os
import re
import subprocess
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from neurofoundry.errors import UsageError
from neurofoundry.ingest import delimited
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, Scan, UnusableError, check_place, each, slug
from neurofoundry.ingest.sources import files

KEY = "NEUROFOUNDRY_PSEUDONYM_KEY"
MIN_SLICES = 20
_TIMEOUT_SECONDS = 900
_OPTIONS = ("-b", "n", "-z", "n", "-g", "i", "-f", "volume")
"""dcm2niix: no sidecar, no compression, no defaults of the user's own."""
_TAGS = """
    SOPClassUID Modality ImageType SeriesInstanceUID StudyInstanceUID SeriesNumber
    PatientID PatientAge PatientBirthDate PatientSex StudyDate
    Manufacturer ManufacturerModelName MagneticFieldStrength
    ScanningSequence EchoPulseSequence MRAcquisitionType AngioFlag
    RepetitionTime EchoTime EffectiveEchoTime InversionTime InversionTimes FlipAngle
    ContrastBolusAgent SeriesDescription ProtocolName BodyPartExamined
    Rows Columns BitsAllocated NumberOfFrames PixelSpacing SliceThickness
    ImagePositionPatient ImageOrientationPatient
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_AGENT = re.compile(
    r"(?<![a-z])(gd|gad[a-z]*|post|contrast|ce|km|dotarem)(?![a-z])|\+\s*c(?![a-z])"
)
_NO_AGENT = {"", "no", "none", "n", "n/a", "na", "without"}
_HEAD = ("HEAD", "BRAIN", "SKULL", "NEURO", "CRANI")


@dataclass(frozen=True)
class Header:
    """What is kept of one file's header: no name, number or date but the pseudonym and the day
    that orders the studies of a subject, which stays in memory."""

    subject: str
    """Empty where there is no PatientID."""
    study: str
    series: str
    day: str
    number: int
    age: float | None
    sex: str | None
    scanner: str
    field_strength: float | None
    modality: str
    kinds: frozenset[str]
    """The words of ImageType."""
    body: str
    agent: bool
    """A contrast agent was given."""
    angiography: bool
    sequence: frozenset[str]
    """SE spin echo, GR gradient echo, IR inversion recovery, EP echo planar, RM research."""
    is_3d: bool
    repetition_time: float | None
    """All times in ms."""
    echo_time: float | None
    inversion_time: float | None
    flip_angle: float | None
    """Degrees."""
    pixel_mm: float
    thickness_mm: float
    frames: int
    orientation: tuple[float, ...]
    position: float | None
    """Along the slice normal, mm."""
    cut_short: bool
    """The file is smaller than its pixels."""


@dataclass
class Series:
    """The files of one series."""

    header: Header
    """Of its first file."""
    files: list[Path] = field(default_factory=list)
    positions: list[float | None] = field(default_factory=list)
    orientations: set[tuple[float, ...]] = field(default_factory=set)
    problem: str | None = None
    """One of its files is damaged."""
    name: str = ""
    """'series-NUMBER', unique in the study."""

    @property
    def slices(self) -> int:
        return max(self.header.frames, len(self.files))

    @property
    def rank(self) -> tuple[object, ...]:
        edge = max(self.header.pixel_mm, self.header.thickness_mm)
        positions = sorted(position for position in self.positions if position is not None)
        if len(positions) > 1:
            edge = max(self.header.pixel_mm, float(np.median(np.diff(positions))))
        return not self.header.is_3d, round(edge, 1), -self.slices, self.header.number, self.name


def read(dataset: Dataset, found: Findings, *, skip: set[Path], out: Path, workers: int) -> None:
    """Add the T1w series of ``dataset`` to ``found``, converted to ``out``/*.nii.gz.

    Raises UsageError when there is no key for the pseudonyms.
    """
    key = _key(dataset)
    root = found.data / dataset.path
    table = root / "participants.tsv"
    try:
        labels = _labels(table, key, dataset, found)
    except UnusableError:
        # What the table holds must not be quoted: a header may be missing.
        reason = "unreadable table: expected a text table with a column 'participant_id'"
        found.exclude(dataset.name, table, f"{reason}. The whole dataset is left out")
        return
    # pydicom's warnings quote the values that they are about.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = _group(dataset, root, skip, key, found, workers)
    sessions = _number_sessions(one.header for one in series)
    candidates = []
    for one in series:
        header = one.header
        scan = _scan(one, sessions.get((header.subject, header.study), ""), dataset, out)
        row = labels.get(header.subject)
        problem = one.problem or why_not_t1w(one) or (row.problem if row else None)
        if problem:
            found.exclude(dataset.name, scan.origin, problem)
        else:
            candidates.append((one, scan, (row.cells,) if row else ()))
    out.mkdir(exist_ok=True)
    for (_, scan, cells), failure in each(
        lambda item: _converted(item[0].files, item[1].file),
        candidates,
        what=f"converting {dataset.name}",
        workers=workers,
    ):
        if failure:
            found.exclude(dataset.name, scan.origin, failure)
        else:
            found.scans.append(replace(scan, cells=cells))


def why_not_t1w(series: Series) -> str | None:
    """Why a series is not a native T1w volume of a head, or None when it is.

    T1w are: inversion-prepared (TI 300 to 1400 ms, TE up to 40 ms, TR up to 4 s: MPRAGE, BRAVO,
    T1-FLAIR), gradient echo (TR up to 60 ms with a flip angle of 6° to 40°, or TR up to 800 ms with
    one of 40° at least, TE up to 15 ms: SPGR, FLASH) and spin echo (TR 200 to 1200 ms, TE up to
    30 ms), without contrast agent.
    """
    header = series.header
    if not header.subject:
        return "no PatientID: nobody can know whose scan it is"
    if header.modality != "MR":
        return f"not T1w: modality {header.modality or 'unknown'}, expected MR"
    if "LOCALIZER" in header.kinds or len(series.orientations) > 1:
        return "not T1w: a localizer"
    if derived := header.kinds & {"DERIVED", "MPR", "PROJECTION IMAGE", "MIN IP", "MAX IP"}:
        return f"not T1w: a derived image ({', '.join(sorted(derived))})"
    if phase := header.kinds & {"P", "PHASE", "PHASE MAP", "I", "R", "REAL", "IMAGINARY"}:
        return f"not T1w: no magnitude image ({', '.join(sorted(phase))})"
    if header.body and not any(word in header.body for word in _HEAD):
        return f"not a head: body part {header.body}"
    if header.agent:
        return "contrast agent: its header, or the name of its protocol, says that one was given"
    if reason := _why_not_weighted(header):
        return reason
    if series.slices < MIN_SLICES:
        return f"too few slices: {series.slices}, expected {MIN_SLICES} at least"
    return _gaps(series)


def _why_not_weighted(header: Header) -> str | None:
    tr, te, ti, flip = (
        header.repetition_time,
        header.echo_time,
        header.inversion_time,
        header.flip_angle,
    )
    if not tr or te is None:
        return "not T1w: its header gives no repetition and echo time"
    if ti:
        weighted = 300 <= ti <= 1400 and te <= 40 and tr <= 4000
    elif "SE" in header.sequence and "GR" not in header.sequence:
        weighted = 200 <= tr <= 1200 and te <= 30
    else:
        excited = flip is not None and (6 <= flip <= 40 if tr <= 60 else flip >= 40)
        weighted = tr <= 800 and te <= 15 and excited
    if weighted and "EP" not in header.sequence and not header.angiography:
        return None
    technique = "/".join(sorted(header.sequence)) or "unknown sequence"
    return (
        f"not T1w: {technique}{' angiography' if header.angiography else ''}, TR {tr:g} ms, "
        f"TE {te:g} ms" + (f", TI {ti:g} ms" if ti else "") + (f", flip {flip:g}°" if flip else "")
    )


def _gaps(series: Series) -> str | None:
    if series.header.frames > 1 and len(series.files) == 1:
        return None
    positions = sorted(position for position in series.positions if position is not None)
    if len(positions) < len(series.files):
        return "incomplete series: slices without a position"
    steps = np.diff(positions)
    if steps.min() < 0.01:
        return "several volumes: two slices lie at one position, expected a single volume"
    if steps.max() > 1.5 * np.median(steps):
        return (
            f"incomplete series: a gap of {steps.max():.1f} mm between slices that are "
            f"{np.median(steps):.1f} mm apart. Export the series again"
        )
    return None


def convert(sources: Iterable[Path], target: Path) -> None:
    """Convert the files of one series to one NIfTI with a fresh header.

    Raises UnusableError when dcm2niix does not make exactly one volume of them.
    """
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as folder:
        slices, made = Path(folder, "in"), Path(folder, "out")
        slices.mkdir()
        made.mkdir()
        for number, source in enumerate(sources):
            (slices / f"{number:06d}.dcm").symlink_to(source.resolve())
        # What dcm2niix prints names the patient.
        command = [dcm2niix.bin, *_OPTIONS, "-o", str(made), str(slices)]
        try:
            code = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS).returncode
        except subprocess.TimeoutExpired:
            raise UnusableError(
                f"not convertible: dcm2niix took more than {_TIMEOUT_SECONDS} s"
            ) from None
        volumes = list(made.glob("*.nii"))
        if code or len(volumes) != 1:
            raise UnusableError(
                f"not convertible: dcm2niix made {len(volumes)} volumes, expected one "
                f"(exit code {code})"
            )
        converted = nib.Nifti1Image.from_filename(volumes[0])
        voxels = np.asanyarray(converted.dataobj)
        if voxels.dtype == np.float64:
            voxels = voxels.astype(np.float32)
        fresh = nib.Nifti1Image(voxels, converted.affine)
        fresh.header.set_xyzt_units("mm")
        fresh.set_sform(converted.affine, code="scanner")
        fresh.set_qform(converted.affine, code="scanner")
        packed = Path(folder, "packed")
        # Python's gzip would write its version into the header: equal scans are to be equal files.
        packed.write_bytes(zlib.compress(fresh.to_bytes(), level=6, wbits=zlib.MAX_WBITS | 16))
        packed.replace(target)


def years(age: str, birth: str, study: str) -> float | None:
    """Age from PatientAge such as 045Y or 018M, else from two days such as 19800131; down to 0.1.

    Over 89 counts as 90: older people are few enough to be recognised by their age.
    """
    exact = None
    if given := re.fullmatch(r"(\d{1,3})([DWMY]?)", age.strip().upper()):
        exact = int(given[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12}.get(given[2], 1)
    else:
        try:
            exact = (date.fromisoformat(study) - date.fromisoformat(birth)).days / 365.25
        except ValueError:
            return None
    if not 0 <= exact <= 150:
        return None
    down = math.floor(exact * 10 + 1e-9) / 10
    return 90.0 if down > 89 else down


def _key(dataset: Dataset) -> bytes:
    key = os.environ.get(KEY, "").strip()
    if len(key) < 16:
        raise UsageError(
            f"The dataset '{dataset.name}' is DICOM, so its patients need pseudonyms, and the "
            f"environment variable {KEY} is {'too short' if key else 'not set'} (expected 16 "
            f"characters at least). Make a key once with `export {KEY}=$(openssl rand -hex 32)`, "
            "keep it secret, and keep it: another key gives other pseudonyms and other splits."
        )
    return key.encode()


def _pseudonym(key: bytes, identifier: str) -> str:
    return hmac.new(key, identifier.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:12]


def _labels(table: Path, key: bytes, dataset: Dataset, found: Findings) -> dict[str, delimited.Row]:
    """Rows of participants.tsv by pseudonym."""
    if not table.exists():
        return {}
    content = delimited.read(table, key="participant_id")
    found.remember(table)
    rows, notes = content.by("participant_id")
    for note in (*content.notes, *notes):
        found.note(dataset.name, table, note)
    return {f"sub-{_pseudonym(key, name)}": row for name, row in rows.items()} | rows


def _group(
    dataset: Dataset, root: Path, skip: set[Path], key: bytes, found: Findings, workers: int
) -> list[Series]:
    """All series, ordered by subject, study and number."""
    series: dict[tuple[str, str, str], Series] = {}
    others = 0
    closed: list[Path] = []

    def name(path: Path) -> str:
        return f"{dataset.name}/{_pseudonym(key, path.relative_to(root).as_posix())}"

    for file, header in each(
        lambda file: _read_header(file, root, key),
        files(root, skip=skip, closed=closed),
        what=f"reading headers of {dataset.name}",
        workers=workers,
    ):
        if header is None:
            others += 1
        elif isinstance(header, UnusableError):
            found.exclude(dataset.name, name(file), header)
        else:
            one = series.setdefault((header.subject, header.study, header.series), Series(header))
            one.files.append(file)
            one.positions.append(header.position)
            one.orientations.add(header.orientation)
            if header.cut_short:
                one.problem = "cut short: a file ends before its pixels do. Export the series again"
    for folder in closed:
        found.exclude(dataset.name, name(folder), "no permission: the folder cannot be opened")
    if others:
        found.exclude(dataset.name, dataset.name, f"not DICOM: {others} files without its preamble")
    ordered = sorted(
        series.values(),
        key=lambda one: (
            one.header.subject,
            one.header.study,
            one.header.number,
            one.header.series,
        ),
    )
    taken: set[tuple[str, str, str]] = set()
    for one in ordered:
        one.name, copy = f"series-{one.header.number}", 1
        while (one.header.subject, one.header.study, one.name) in taken:
            copy += 1
            one.name = f"series-{one.header.number}-{copy}"
        taken.add((one.header.subject, one.header.study, one.name))
    return ordered


def _number_sessions(headers: Iterable[Header]) -> dict[tuple[str, str], str]:
    """Subject and study to session: ses-1, ses-2, … by day."""
    studies: dict[str, set[tuple[str, str]]] = {}
    for header in headers:
        studies.setdefault(header.subject, set()).add((header.day or "9", header.study))
    return {
        (subject, study): f"ses-{number}"
        for subject, days in studies.items()
        for number, (_, study) in enumerate(sorted(days), 1)
    }


def _scan(one: Series, session: str, dataset: Dataset, out: Path) -> Scan:
    header = one.header
    subject = header.subject or "sub-unknown"
    known = {
        "age": header.age,
        "sex": header.sex,
        "scanner": header.scanner or None,
        "field_strength": header.field_strength,
    }
    name = "_".join([*map(slug, (dataset.name, subject, session)), one.name]) + ".nii.gz"
    return Scan(
        dataset=dataset.name,
        subject=subject,
        session=session,
        source="dicom",
        path=f"{out.name}/{name}",
        file=out / name,
        origin=f"{dataset.name}/{subject}/{session}/{one.name}",
        rank=one.rank,
        cells=(),
        header={name: value for name, value in known.items() if value is not None},
    )


def _converted(sources: Iterable[Path], target: Path) -> UnusableError | None:
    try:
        convert(sources, target)
    except UnusableError as reason:
        return reason
    return None


def _read_header(file: Path, root: Path, key: bytes) -> Header | UnusableError | None:
    """The header of a DICOM file; None when it is no DICOM image; else why it cannot be read."""
    try:
        check_place(file, root)
        if not file.is_file() or file.name == "DICOMDIR":
            return None
        with file.open("rb") as stream:
            content = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS.split())
            left = os.fstat(stream.fileno()).st_size - stream.tell()
        return _header(content, left, key)
    except InvalidDicomError:
        return None
    except UnusableError as reason:
        return reason
    except PermissionError:
        return UnusableError("no permission: the file cannot be opened. Change its access rights")
    except Exception as error:
        # A parser of arbitrary bytes raises whatever it likes, and quotes the bytes in its message.
        return UnusableError(f"damaged DICOM: its header cannot be parsed ({type(error).__name__})")


def _header(content: pydicom.Dataset, left: int, key: bytes) -> Header:
    """``left``: bytes from the tag of the pixels to the end of the file."""
    patient = _text(content, "PatientID")
    study_day = _text(content, "StudyDate")
    series = _text(content, "SeriesInstanceUID")
    if not series:
        raise UnusableError("damaged DICOM: it belongs to no series")
    orientation = tuple(round(value, 2) for value in _numbers(content, "ImageOrientationPatient"))
    origin = _numbers(content, "ImagePositionPatient")
    position = None
    if len(orientation) == 6 and len(origin) == 3:
        axes = np.array(_numbers(content, "ImageOrientationPatient")).reshape(2, 3)
        position = float(np.cross(axes[0], axes[1]) @ origin)
    pulse = _text(content, "EchoPulseSequence").upper()
    sequence = set(_words(content, "ScanningSequence")) | {
        code for code, word in (("SE", "SPIN"), ("GR", "GRADIENT")) if pulse in (word, "BOTH")
    }
    described = f"{_text(content, 'SeriesDescription')} {_text(content, 'ProtocolName')}".lower()
    agent = _text(content, "ContrastBolusAgent").lower() not in _NO_AGENT
    syntax = content.file_meta.get("TransferSyntaxUID")
    frames = int(_number(content, "NumberOfFrames") or 1)
    sides = (_number(content, "Rows") or 0) * (_number(content, "Columns") or 0)
    pixels = sides * (_number(content, "BitsAllocated") or 0) / 8 * frames
    sex = _text(content, "PatientSex").upper()
    return Header(
        subject=f"sub-{_pseudonym(key, patient)}" if patient else "",
        study=_pseudonym(key, _text(content, "StudyInstanceUID")),
        series=_pseudonym(key, series),
        day=study_day,
        number=int(_number(content, "SeriesNumber") or 0),
        age=years(_text(content, "PatientAge"), _text(content, "PatientBirthDate"), study_day),
        sex=sex if sex in ("F", "M") else None,
        scanner=" ".join(
            _text(content, tag) for tag in ("Manufacturer", "ManufacturerModelName")
        ).strip(),
        field_strength=_number(content, "MagneticFieldStrength"),
        modality=_text(content, "Modality").upper(),
        kinds=frozenset(_words(content, "ImageType")),
        body=_text(content, "BodyPartExamined").upper(),
        agent=agent or bool(_AGENT.search(described)),
        angiography=_text(content, "AngioFlag").upper() == "Y",
        sequence=frozenset(sequence),
        is_3d=_text(content, "MRAcquisitionType").upper() == "3D",
        repetition_time=_number(content, "RepetitionTime"),
        echo_time=_number(content, "EchoTime") or _number(content, "EffectiveEchoTime"),
        inversion_time=_number(content, "InversionTime") or _number(content, "InversionTimes"),
        flip_angle=_number(content, "FlipAngle"),
        pixel_mm=max(_numbers(content, "PixelSpacing"), default=math.inf),
        thickness_mm=_number(content, "SliceThickness") or 0.0,
        frames=frames,
        orientation=orientation,
        position=position,
        cut_short=syntax is not None and not syntax.is_compressed and left < pixels,
    )


def _value(content: pydicom.Dataset, keyword: str) -> Any:
    """A tag, or in a multi-frame file the tag of the first frame."""
    if keyword in content:
        return content[keyword].value
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(content.get(groups) or [])[:1]:
            for element in group:
                if element.VR == "SQ" and element.value and keyword in element.value[0]:
                    return element.value[0][keyword].value
    return None


def _words(content: pydicom.Dataset, keyword: str) -> list[str]:
    value = _value(content, keyword)
    values = [value] if isinstance(value, str) else list(value or [])
    return [str(word).strip().upper() for word in values]


def _text(content: pydicom.Dataset, keyword: str) -> str:
    value = _value(content, keyword)
    return " ".join(str(value).split()) if value is not None else ""


def _numbers(content: pydicom.Dataset, keyword: str) -> list[float]:
    value = _value(content, keyword)
    values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return [float(one) for one in values if one not in (None, "")]


def _number(content: pydicom.Dataset, keyword: str) -> float | None:
    return next(iter(_numbers(content, keyword)), None)
