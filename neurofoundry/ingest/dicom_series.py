"""A DICOM series, and in which contrast it is a native volume of a head."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neurofoundry.contracts.cohort import T1W
from neurofoundry.ingest import vocabulary
from neurofoundry.ingest.dicom_header import Header, slides
from neurofoundry.ingest.scan import UnusableError

MIN_SLICES = 20
_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|NEURO|CRAN|KOPF|SCHAEDEL|SCHADEL|HIRN|CABEZA|CABECA|CEREBR|CERVEAU|ENCEPH|"
    r"TETE|TESTA|CERVELL|HOOFD|HERSEN|HJARN|PITUITAR|HYPOPHYS|SELLA|HIPPOCAMP"
)
_ELSEWHERE = re.compile(
    r"(?<![A-Z])(?:KNEE|KNIE|GENOU|RODILLA|GINOCCHIO|SHOULDER|SCHULTER|EPAULE|HOMBRO|SPALLA|"
    r"[CTL]?SPINE|[HBL]WS|RACHIS|COLUMNA|COLONNA|NECK|HALS|NACKEN|COU|"
    r"CUELLO|COLLO|ABDOMEN|LIVER|LEBER|FOIE|HIGADO|FEGATO|PELVIS|BECKEN|BASSIN|BACINO|HIP|HUFTE|"
    r"HUEFTE|HANCHE|CADERA|CHEST|THORAX|TORAX|BREAST|BRUST|SEIN|MAMA|MAMMA|HEART|HERZ|COEUR|"
    r"CORAZON|CUORE|CARDIAC|HAND|WRIST|ELBOW|FOOT|FUSS|PIED|ANKLE|LEG|ARM|FEMUR|PROSTATE|PROSTATA|"
    r"KIDNEY|NIERE|REIN|EXTREMITY|UTERUS|WHOLEBODY)(?=(?:S|EN|N)?(?![A-Z]))|WIRBEL|VERTEBRA"
)
"""Other body parts; any other text, even 'UNKNOWN', leaves it to the technique."""
_MODALITIES = {"CT", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OT", "SC", "SR", "PR", "SEG"}
_TURNED = 0.02
"""Difference of direction cosines between slices of one volume that is more than jitter."""
_DERIVED = {"DERIVED", "MPR", "PROJECTION IMAGE", "MIN IP", "MAX IP"}
_LONG_MS = 15.0
"""Repetition time from which on a spoiled gradient echo is not prepared by an inversion."""
_PHASE = {"P", "PHASE", "PHASE MAP", "I", "R", "REAL", "IMAGINARY"}


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
    places: list[tuple[float, ...]] = field(default_factory=list)
    """Along the normal, rows and columns, mm, of slices where that is known."""
    instances: set[str] = field(default_factory=set)
    births: set[str] = field(default_factory=set)

    def add(self, file: Path, header: Header) -> None:
        """Add a file of the series, unless it is a copy of one that was added."""
        if header.instance and header.instance in self.instances:
            return
        self.instances.add(header.instance)
        self.births.add(header.birth)
        if header.position is not None:
            self.places.append((header.position, *header.offset))
        self.problem = self.problem or header.stack
        self.files.append(file)
        self.positions.append(header.position)
        self.orientations.add(header.orientation)
        if header.cut_short:
            self.problem = "cut short: a file ends before its pixels do. Export the series again"

    @property
    def slices(self) -> int:
        """How many slices there are, in as many files or as frames of one."""
        return max(self.header.frames, len(self.files))

    @property
    def study(self) -> tuple[str, str]:
        """Subject and study."""
        return self.header.subject, self.header.study

    @property
    def rank(self) -> tuple[object, ...]:
        """Orders the series of a study: the lowest is preferred."""
        edge = max(self.header.pixel_mm, self.header.thickness_mm)
        positions = self.sorted_positions()
        if len(positions) > 1:
            edge = max(self.header.pixel_mm, float(np.median(np.diff(positions))))
        # A study with a series that says 'pre' may have one after an agent that says nothing.
        unsaid = self.header.agent is not False
        technique = not self.header.is_3d, round(edge, 1), unsaid, -self.slices
        return *technique, self.header.number, self.name

    def sorted_positions(self) -> list[float]:
        """Return where slices lie along their normal, mm, as far as that is known."""
        return sorted(position for position in self.positions if position is not None)


def contrast_of(series: Series, contrasts: Sequence[str]) -> str | UnusableError:
    """Return which of the ``contrasts`` a series is a native volume of a head in, or why in none:
    why it is not T1w, the first of them."""
    for contrast in contrasts:
        if why_not(series, contrast) is None:
            return contrast
    return UnusableError(str(why_not(series, contrasts[0])).replace(T1W, " or ".join(contrasts), 1))


def why_not(series: Series, contrast: str) -> str | None:
    """Return why a series is not a native volume of a head in this ``contrast``, or None when it
    is. Of a contrast that is not described here, none is.

    T1w are: inversion-prepared (TI 300 to 1400 ms, TE up to 40 ms, TR up to 4 s: MPRAGE, BRAVO,
    T1-FLAIR), gradient echo (TR up to 60 ms with a flip angle from 6°, and from 0.9 times the Ernst
    angle of grey matter, beyond 15 ms 1.5 times, to 40°, or TR up to 800 ms with at least 40°, TE
    up to 15 ms: SPGR, FLASH)
    and spin echo (TR 200 to 1200 ms, TE up to 30 ms), without contrast agent. What a technique does
    not tell apart (proton density, magnetization transfer, angiography) is told by its name.

    FLAIR are: spin echo or inversion recovery, TI 1500 to 3200 ms, TR from 4 s, TE from 60 ms. T2w
    are: spin echo without an inversion, TR from 2 s, TE 60 to 600 ms (3D: effective).
    """
    header = series.header
    if not header.subject:
        return "no PatientID: there is no telling whose scan it is"
    if header.modality != "MR":
        known = header.modality if header.modality in _MODALITIES else "unknown"
        return f"not {contrast}: modality {known}, expected MR"
    if "LOCALIZER" in header.image_type or _is_turned(series.orientations):
        return f"not {contrast}: a localizer"
    if derived := header.image_type & _DERIVED:
        return f"not {contrast}: a derived image ({', '.join(sorted(derived))})"
    if phase := header.image_type & _PHASE:
        return f"not {contrast}: not a magnitude image ({', '.join(sorted(phase))})"
    # What is written here is free text: of it, known words alone are repeated.
    body = unicodedata.normalize("NFKD", header.body).encode("ascii", "ignore").decode()
    if not _HEAD.search(body) and (elsewhere := _ELSEWHERE.search(body)):
        return f"not a head: body part {elsewhere[0]}"
    if header.agent:
        return "contrast agent: its header, or the name of its protocol, says that one was given"
    if reason := _why_not_weighted(header, contrast):
        return reason
    if header.other_weighting:
        return (
            f"not {contrast}: {header.other_weighting}, by its header or the name of its protocol"
        )
    if series.slices < MIN_SLICES:
        return f"too few slices: {series.slices}, expected at least {MIN_SLICES}"
    return _why_not_one_volume(series)


def _is_turned(orientations: set[tuple[float, ...]]) -> bool:
    """Return whether slices are not parallel; scanners write them with a jitter."""
    if len({len(orientation) for orientation in orientations}) > 1:
        return True
    spread = np.ptp(np.array(sorted(orientations)), axis=0)
    return bool(spread.size) and float(spread.max()) > _TURNED


def _why_not_weighted(header: Header, contrast: str) -> str | None:
    if not header.repetition_time or header.echo_time is None:
        return f"not {contrast}: its header gives no repetition and echo time"
    plain = "EP" not in header.sequence and not header.angiography
    is_weighted = _WEIGHTED.get(contrast)
    if plain and is_weighted and is_weighted(header, header.repetition_time, header.echo_time):
        return None
    ti, flip = header.inversion_time, header.flip_angle
    technique = vocabulary.sequence(header.sequence)
    tr, te = (vocabulary.number(ms, 60_000) for ms in (header.repetition_time, header.echo_time))
    return (
        f"not {contrast}: {technique}{' angiography' if header.angiography else ''}, "
        f"TR {tr} ms, TE {te} ms"
        + (f", TI {vocabulary.number(ti, 60_000)} ms" if ti else "")
        + (f", flip {vocabulary.number(flip, 360)}°" if flip else "")
    )


def _is_t1_weighted(header: Header, tr: float, te: float) -> bool:
    """Return whether times (ms) and flip angle give T1 weighting: see `why_not`."""
    ti, flip = header.inversion_time, header.flip_angle
    if ti:
        return 300 <= ti <= 1400 and te <= 40 and tr <= 4000
    if "SE" in header.sequence and "GR" not in header.sequence:
        return 200 <= tr <= 1200 and te <= 30
    excited = flip is not None and (_least_flip(tr) <= flip <= 40 if tr <= 60 else flip >= 40)
    return tr <= 800 and te <= 15 and excited


def _is_flair(header: Header, tr: float, te: float) -> bool:
    """Return whether times (ms) null fluid in a T2-weighted image: see `why_not`."""
    ti = header.inversion_time
    return ti is not None and 1500 <= ti <= 3200 and tr >= 4000 and te >= 60 and _is_spin(header)


def _is_t2_weighted(header: Header, tr: float, te: float) -> bool:
    """Return whether times (ms) give T2 weighting: see `why_not`. An inversion may have no time."""
    inverted = header.inversion_time or "IR" in header.sequence
    return not inverted and tr >= 2000 and 60 <= te <= 600 and _is_spin(header)


def _is_spin(header: Header) -> bool:
    """Return whether echoes may be spin echoes: vendors call theirs research mode (RM), too."""
    return bool({"SE", "IR", "RM"} & header.sequence) and "GR" not in header.sequence


_WEIGHTED = {T1W: _is_t1_weighted, "FLAIR": _is_flair, "T2w": _is_t2_weighted}


def _least_flip(tr: float) -> float:
    """Return the least flip angle, degrees, that weights a spoiled gradient echo by T1.

    Below the Ernst angle, here that of grey matter (T1 1.6 s at 3 T) less a tenth, proton density
    weighs more. Images of more than ``_LONG_MS`` have no prepared magnetization that would help,
    and those for T1 go far beyond it; at it are the magnitudes of QSM and of field maps.
    """
    ernst = math.degrees(math.acos(math.exp(-tr / 1600)))
    return max(6.0, (0.9 if tr <= _LONG_MS else 1.5) * ernst)


def _why_not_one_volume(series: Series) -> str | None:
    if series.header.frames > 1 and len(series.files) == 1:
        return None
    positions = series.sorted_positions()
    if len(positions) < len(series.files):
        return "incomplete series: slices without a position"
    steps = np.diff(positions)
    if steps.min() < 0.01:
        return "several volumes: two slices have the same position, expected a single volume"
    if steps.max() > 1.5 * np.median(steps):
        return (
            f"incomplete series: a gap of {vocabulary.number(round(steps.max(), 1), 1000)} mm "
            f"between slices that are {vocabulary.number(round(np.median(steps), 1), 1000)} mm "
            "apart. Export the series again"
        )
    return slides(series.places)
