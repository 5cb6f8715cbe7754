"""What is kept of a DICOM file's header: technique and geometry, and a pseudonym for the patient.

Headers alone are read, and of them only ``_TAGS``.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from neurofoundry.ingest import contrast, vocabulary
from neurofoundry.ingest.pseudonyms import pseudonym
from neurofoundry.ingest.scan import UnusableError, as_reason, check_location

_TAGS = """
    SOPClassUID SOPInstanceUID Modality ImageType SeriesInstanceUID StudyInstanceUID SeriesNumber
    PatientID PatientAge PatientBirthDate PatientSex StudyDate
    Manufacturer ManufacturerModelName MagneticFieldStrength
    ScanningSequence SequenceVariant MagnetizationTransfer EchoPulseSequence MRAcquisitionType
    AngioFlag ScanOptions SequenceName AcquisitionContrast TimeOfFlightContrast FlowCompensation
    RepetitionTime EchoTime EffectiveEchoTime InversionTime InversionTimes FlipAngle
    ContrastBolusAgent ContrastBolusIngredient ContrastBolusAgentSequence ContrastBolusVolume
    ContrastBolusTotalDose ContrastBolusRoute SeriesDescription ProtocolName BodyPartExamined
    Rows Columns BitsAllocated NumberOfFrames PixelSpacing SliceThickness
    ImagePositionPatient ImageOrientationPatient
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_PLACED = ("ImageOrientationPatient", "ImagePositionPatient")
_SLIDE = 0.02
"""Millimetres that slices may slide sideways for every millimetre along their normal."""
_T1_NAME = re.compile(r"(?<![a-z0-9])t1|mp-?rage|mp2rage|bravo|spgr|vibe|flash3d_t1")
_OTHER_NAMES = {
    name: re.compile(rf"(?<![a-z])(?:{words})(?![a-z])")
    for name, words in {
        "a localizer": "scout|locali[sz]er|lokali[sz]er|survey|surview",
        "proton density": "pd|pdw|proton[ _-]?dens[a-z]*|rho",
        "magnetization transfer": "mt|mtw|mtc|mton|mt[ _-]?on|mtr",
        "angiography": "tof|mra|angio[a-z]*|time[ _-]?of[ _-]?flight|pca?[ _-]3d|inflow|cow",
        "susceptibility or T2*": "qsm|swi|swan|t2star|t2s|medic|venobold|r2s?|gre[ _-]?field[a-z]*|"
        "field[ _-]?map[a-z]*|b0[ _-]?map|b1[ _-]?map|multi[ _-]?echo",
    }.items()
}
"""What series are called that a T1w technique alone does not tell apart."""
_CONTRASTS = {
    "PROTON_DENSITY": "proton density",
    "TOF": "angiography",
    "FLOW_ENCODED": "angiography",
    "T2_STAR": "susceptibility or T2*",
    "DIFFUSION": "diffusion",
    "PERFUSION": "perfusion",
    "TAGGING": "tagging",
}
"""Values of AcquisitionContrast that are none of a T1w image."""
_TOF_OPTION = re.compile(r"VASC(?:TOF|PC)|TOF")
_REPHASED = re.compile(r"\*?f[il]3d\d+r")
"""Siemens' names of three-dimensional gradient echoes that are compensated for flow."""
_START = 4096
"""Bytes that hold the preamble and, of any usual file, in which syntax all that follows is."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_FIRST = {(2, 0), (2, 1), (2, 2), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x12), (8, 0x16)}
"""The tags that a file without a preamble may begin with."""
_OLDEST = 115.0
"""Years. Nobody older has been scanned; 19000101 and 000Y stand for unknown."""


@dataclass(frozen=True)
class Header:
    """What is kept of one file's header.

    It has no name, number or date but the pseudonym, and the day that orders the studies of a
    subject, which stays in memory.
    """

    subject: str
    """Empty where there is no PatientID."""
    study: str
    series: str
    day: str
    number: int
    age: float | None
    """Years."""
    age_refused: bool
    """There is an age or a birth date, but it cannot be true."""
    sex: str | None
    scanner: str
    field_strength: float | None
    """Tesla."""
    modality: str
    image_type: frozenset[str]
    """The words of ImageType."""
    body: str
    """The part of the body, or the words of the name that may say it; it stays in memory."""
    agent: bool | None
    """A contrast agent was given; None where nothing tells."""
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
    offset: tuple[float, ...]
    """Within the plane of the slice, along its rows and columns, mm."""
    stack: str | None
    """What is wrong with the frames of a multi-frame file."""
    other_weighting: str
    """What the protocol or a preparation pulse says the image is, if not T1w."""
    instance: str
    birth: str
    """Both stay in memory: the instance tells copies of a file apart, the birth date persons."""
    cut_short: bool
    """The file is smaller than its pixels."""


def read_header(file: Path, root: Path, key: bytes) -> Header | UnusableError | None:
    """Return the header of a DICOM file in the folder ``root``.

    None for a file that is no DICOM image; an UnusableError says why one cannot be read. ``key``
    is the secret of the pseudonyms.
    """
    try:
        check_location(file, root, any_name=True)  # it is written nowhere
        if not file.is_file() or file.name == "DICOMDIR":
            return None
        with as_reason("unreadable"), file.open("rb") as stream:
            if not looks_like_dicom(start := stream.read(_START)):
                return None
            if _DEFLATED in start:  # a few bytes may fill the memory, and dcm2niix cannot read it
                raise UnusableError("deflated DICOM: inflate it (`gdcmconv --raw`)")
            stream.seek(0)
            content = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=_TAGS.split(), force=True
            )
            left = os.fstat(stream.fileno()).st_size - stream.tell()
        return _header(content, left, key)
    except InvalidDicomError:
        return None
    except UnusableError as reason:
        return reason
    except OSError:
        raise
    except Exception as error:
        # A parser of arbitrary bytes raises whatever it likes, and quotes the bytes in its message.
        return UnusableError(f"damaged DICOM: its header cannot be parsed ({type(error).__name__})")


def looks_like_dicom(start: bytes) -> bool:
    """Return whether a file begins as DICOM does, with its preamble or, as in archives, without."""
    if start[128:132] == b"DICM":
        return True
    group, element, size = struct.unpack("<HHI", start[:8].ljust(8, b"\0"))
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return (group, element) in _FIRST and (explicit or 0 < size <= 64)


def age_in_years(age: str, birth: str, study: str) -> float | None:
    """Return the age in years, rounded down to 0.1, from PatientAge such as 045Y or 018M.

    Without it, from two days such as 19800131. Over 89 counts as 90: older people are few enough
    to be recognized by their age. None for what de-identification leaves in place of an age: 000Y,
    a birth on the day of the study, or in 1900 or before.
    """
    exact = None
    if given := re.fullmatch(r"(\d{1,3})([DWMY]?)", age.strip().upper()):
        exact = int(given[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12}.get(given[2], 1)
    else:
        try:
            exact = (date.fromisoformat(study) - date.fromisoformat(birth)).days / 365.25
        except ValueError:
            return None
    if not 0 < exact <= _OLDEST:
        return None
    down = math.floor(exact * 10 + 1e-9) / 10
    return 90.0 if down > 89 else down


def _header(content: pydicom.Dataset, left: int, key: bytes) -> Header:
    """Keep what we need; ``left`` bytes follow the tag of the pixels."""
    patient, study_day = _text(content, "PatientID"), _text(content, "StudyDate")
    series = _text(content, "SeriesInstanceUID")
    if not series:
        raise UnusableError("damaged DICOM: it belongs to no series")
    sex = _text(content, "PatientSex").upper()
    given, birth = _text(content, "PatientAge"), _text(content, "PatientBirthDate")
    age = age_in_years(given, birth, study_day)
    return Header(
        subject=f"sub-{pseudonym(key, patient)}" if patient else "",
        study=pseudonym(key, _text(content, "StudyInstanceUID")),
        series=pseudonym(key, series),
        day=study_day,
        number=int(_number(content, "SeriesNumber") or 0),
        age=age,
        age_refused=age is None and bool(given or birth),
        sex=sex if sex in ("F", "M") else None,
        scanner=vocabulary.scanner(
            " ".join(_text(content, tag) for tag in ("Manufacturer", "ManufacturerModelName"))
        ),
        field_strength=_number(content, "MagneticFieldStrength"),
        modality=_text(content, "Modality").upper(),
        image_type=frozenset(_words(content, "ImageType")),
        body=_body(content),
        agent=_agent(content),
        angiography=_text(content, "AngioFlag").upper() == "Y",
        sequence=_sequence(content),
        is_3d=_text(content, "MRAcquisitionType").upper() == "3D",
        repetition_time=_number(content, "RepetitionTime"),
        echo_time=_number(content, "EchoTime") or _number(content, "EffectiveEchoTime"),
        inversion_time=_number(content, "InversionTime") or _number(content, "InversionTimes"),
        flip_angle=_number(content, "FlipAngle"),
        pixel_mm=max(_numbers(content, "PixelSpacing"), default=math.inf),
        thickness_mm=_number(content, "SliceThickness") or 0.0,
        frames=_frames(content),
        orientation=tuple(round(one, 4) for one in _numbers(content, "ImageOrientationPatient")),
        position=_position(content)[0],
        offset=_position(content)[1:],
        stack=_why_no_stack(content),
        other_weighting=_other_weighting(content),
        instance=_text(content, "SOPInstanceUID"),
        birth=birth,
        cut_short=_is_cut_short(content, left),
    )


def _agent(content: pydicom.Dataset) -> bool | None:
    """Return whether an agent was given, by the header and the name of the protocol."""
    fields = {name: _text(content, name) for name in contrast.FIELDS}
    coded = content.get("ContrastBolusAgentSequence") or []
    fields["ContrastBolusAgentSequence"] = " ".join(
        str(agent.get("CodeMeaning") or "coded agent") for agent in coded
    )
    return contrast.told(fields)


def _body(content: pydicom.Dataset) -> str:
    """Return the body part, or what the name of the series has instead, in capitals.

    Of names long words alone are told apart: HIP may be the hippocampus, ARM that of a trial.
    """
    named = re.findall(r"[^\W\d_]{4,}|\b[HBL]WS\b", _name(content).upper().replace("_", " "))
    return _text(content, "BodyPartExamined").upper() or " ".join(named)


def _name(content: pydicom.Dataset) -> str:
    """Return the name of the series, else of the protocol, which may be of a whole examination."""
    return _text(content, "SeriesDescription") or _text(content, "ProtocolName")


def _sequence(content: pydicom.Dataset) -> frozenset[str]:
    """Return the codes of ScanningSequence; multi-frame files have EchoPulseSequence instead."""
    pulse = _text(content, "EchoPulseSequence").upper()
    codes = (("SE", "SPIN"), ("GR", "GRADIENT"))
    return frozenset(_words(content, "ScanningSequence")) | {
        code for code, word in codes if pulse in (word, "BOTH")
    }


def _position(content: pydicom.Dataset) -> tuple[Any, ...]:
    """Return where a slice lies along its normal, and within its plane, mm; None if unknown."""
    orientation = _numbers(content, "ImageOrientationPatient")
    origin = _numbers(content, "ImagePositionPatient")
    return _along(orientation, origin) or (None,)


def _along(orientation: Sequence[float], origin: Sequence[float]) -> tuple[float, ...]:
    """Return an origin along the normal of a slice, its rows and its columns; () if unknown."""
    if len(orientation) != 6 or len(origin) != 3:
        return ()
    row, column = np.array(orientation).reshape(2, 3)
    return tuple(float(axis @ origin) for axis in (np.cross(row, column), row, column))


def _why_no_stack(content: pydicom.Dataset) -> str | None:
    """Return why the frames of a multi-frame file are not one volume, in order; None if they are.

    dcm2niix takes the frames as they come, whatever their positions say.
    """
    places = [
        place
        for frame in content.get("PerFrameFunctionalGroupsSequence") or []
        if (place := _along(*(_of_frame(content, frame, name) for name in _PLACED)))
    ]
    if len(places) < 2:
        return None
    steps = np.diff([place[0] for place in places])
    usual = float(np.median(np.abs(steps)))
    if len({round(place[0], 2) for place in places}) < len(places):
        return "several volumes: two frames have the same position, expected a single volume"
    if not ((steps > 0).all() or (steps < 0).all()):
        return "frames out of order: their positions go back and forth. Export the series again"
    if np.abs(steps).max() > 1.5 * usual:
        return "incomplete series: a gap between frames. Export the series again"
    return slides(places)


def slides(places: Sequence[tuple[float, ...]]) -> str | None:
    """Return that slices slide sideways, if they do.

    ``places`` are along the normal, rows and columns, mm. A volume of such slices is sheared, as of
    a tilted gantry, and NIfTI readers would take it for a box.
    """
    if len(places) < 2:
        return None
    span = np.ptp(np.array(places), axis=0)
    if not span[0] or max(span[1:]) <= _SLIDE * span[0]:
        return None
    return "sheared: slices slide sideways, as with a tilted gantry. Resample it to a box"


def _of_frame(content: pydicom.Dataset, frame: pydicom.Dataset, keyword: str) -> list[float]:
    """Return the numbers of a frame, else those that all frames share."""
    for group in (frame, *list(content.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for element in group:
            if element.VR == "SQ" and element.value and keyword in element.value[0]:
                return [float(number) for number in element.value[0][keyword].value]
    return []


def _other_weighting(content: pydicom.Dataset) -> str:
    """Return the weighting that a preparation pulse or the protocol names, other than T1."""
    variants, options = (set(_words(content, n)) for n in ("SequenceVariant", "ScanOptions"))
    transfer = _text(content, "MagnetizationTransfer").upper()
    if "MTC" in variants or "MT" in options or transfer in ("ON_RESONANCE", "OFF_RESONANCE"):
        return "magnetization transfer"
    if told := _CONTRASTS.get(_text(content, "AcquisitionContrast").upper()):
        return told
    of_flight = _text(content, "TimeOfFlightContrast").upper() == "YES"
    if of_flight or any(_TOF_OPTION.search(option) for option in options):
        return "angiography"
    name = _name(content).casefold()
    if _T1_NAME.search(name):
        return ""
    found = (other for other, pattern in _OTHER_NAMES.items() if pattern.search(name))
    return next(found, "angiography or susceptibility" if _compensates_flow(content) else "")


def _compensates_flow(content: pydicom.Dataset) -> bool:
    """Return whether a gradient echo without inversion is compensated for flow in all three
    dimensions: angiography and susceptibility-weighted imaging are, T1w need not."""
    if _text(content, "MRAcquisitionType").upper() != "3D" or _number(content, "InversionTime"):
        return False
    if "SE" in (sequence := _sequence(content)) or "GR" not in sequence:
        return False
    options = _words(content, "ScanOptions")
    compensated = _text(content, "FlowCompensation").upper()
    return (
        any(option == "FC" or option.startswith("FC_") for option in options)
        or compensated in ("ACCELERATION", "VELOCITY", "OTHER")
        or bool(_REPHASED.match(_text(content, "SequenceName")))
    )


def _frames(content: pydicom.Dataset) -> int:
    return int(_number(content, "NumberOfFrames") or 1)


def _is_cut_short(content: pydicom.Dataset, left: int) -> bool:
    syntax = content.file_meta.get("TransferSyntaxUID")
    sides = (_number(content, "Rows") or 0) * (_number(content, "Columns") or 0)
    pixels = sides * (_number(content, "BitsAllocated") or 0) / 8 * _frames(content)
    return syntax is not None and not syntax.is_compressed and left < pixels


def _value(content: pydicom.Dataset, keyword: str) -> Any:
    """Return the value of a tag, in a multi-frame file that of the first frame."""
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
    return [float(number) for number in values if number not in (None, "")]


def _number(content: pydicom.Dataset, keyword: str) -> float | None:
    return next(iter(_numbers(content, keyword)), None)
