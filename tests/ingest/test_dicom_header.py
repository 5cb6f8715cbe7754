from __future__ import annotations

import tracemalloc
from datetime import date
from pathlib import Path

import pydicom
import pytest

from neurofoundry.ingest.dicom_header import Header, age_in_years, read_header, slides
from neurofoundry.ingest.dicom_series import Series, why_not
from tests.support.dicom_files import MPRAGE, write_series


@pytest.mark.parametrize(
    ("agent", "description", "given"),
    [
        ("", "t1_mprage", False),
        ("NONE", "t1_mprage", False),
        ("Gadovist", "t1_mprage", True),
        ("", "T1 POST GD", True),
        ("", "t1_mprage_km", True),
        ("", "t1 +C", True),
        ("", "ax t1 posterior fossa", False),
        ("", "t1_cervical", False),
        ("", "AX T1 WITHOUT CONTRAST", False),
        ("NOT ADMINISTERED", "t1_mprage", False),
    ],
)
def test_contrast_agents_are_noticed(
    agent: str, description: str, given: bool, tmp_path: Path
) -> None:
    tags = {**MPRAGE, "ContrastBolusAgent": agent, "SeriesDescription": description}
    (file,) = write_series(tmp_path, tags, slices=1)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert bool(header.agent) is given


def test_a_file_that_grows_when_it_is_read_is_not_read(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, MPRAGE, slices=1)
    content = pydicom.dcmread(file)
    content.ImageComments = "x" * 10_000_000
    content.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    content.save_as(file)
    assert file.stat().st_size < 100_000
    tracemalloc.start()
    header = read_header(file, tmp_path, b"k")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(header).startswith("deflated DICOM: inflate it")
    assert peak < 1e6


@pytest.mark.parametrize(
    ("tags", "given"),
    [
        ({"ContrastBolusVolume": 10.0}, True),
        ({"ContrastBolusVolume": 0.0}, None),
        ({"ContrastBolusIngredient": "GADOLINIUM"}, True),
        ({"ContrastBolusRoute": "INTRAVENOUS"}, True),
        ({"ContrastBolusAgent": "NONE", "ContrastBolusVolume": 10.0}, False),
        ({"ProtocolName": "BRAIN W/O CONTRAST"}, False),
        ({"SeriesDescription": "T1 PRE", "ProtocolName": "BRAIN WITH CONTRAST"}, False),
    ],
)
def test_an_agent_without_a_name_is_noticed_too(
    tags: dict[str, object], given: bool | None, tmp_path: Path
) -> None:
    (file,) = write_series(tmp_path, {**MPRAGE, **tags}, slices=1)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.agent is given


def test_a_coded_agent_of_a_multi_frame_file_is_noticed(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, MPRAGE, slices=1)
    content = pydicom.dcmread(file)
    agent = pydicom.Dataset()
    agent.CodeMeaning = "Gadobutrol"
    content.ContrastBolusAgentSequence = [agent]
    content.save_as(file)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.agent is True


def test_multi_frame_headers_are_understood(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, MPRAGE, slices=1)
    content = pydicom.dcmread(file)
    for name in ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "PixelSpacing"):
        delattr(content, name)
    timing, echo, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    timing.RepetitionTime, timing.FlipAngle = 8.0, 8.0
    echo.EffectiveEchoTime = 3.5
    measures.PixelSpacing = [1.0, 1.0]
    shared, frame = pydicom.Dataset(), pydicom.Dataset()
    shared.MRTimingAndRelatedParametersSequence = [timing]
    shared.PixelMeasuresSequence = [measures]
    frame.MREchoSequence = [echo]
    content.SharedFunctionalGroupsSequence = [shared]
    content.PerFrameFunctionalGroupsSequence = [frame] * 3
    content.NumberOfFrames = 160
    content.EchoPulseSequence = "GRADIENT"
    del content.ScanningSequence
    content.save_as(file)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert (header.repetition_time, header.echo_time, header.flip_angle) == (8, 3.5, 8)
    assert header.sequence == {"GR"}
    assert header.pixel_mm == 1
    assert header.cut_short  # 160 frames are announced, one is there
    assert why_not(Series(header, [file], [0.0], {header.orientation}), "T1w") is None


@pytest.mark.parametrize(
    ("age", "birth", "study", "expected"),
    [
        ("045Y", "", "", 45),
        ("018M", "", "", 1.5),
        ("026W", "", "", 0.4),
        ("100D", "", "", 0.2),
        ("45", "", "", 45),
        ("089Y", "", "", 89),
        ("090Y", "", "", 90),
        ("101Y", "", "", 90),
        ("", "19530204", "20181119", 65.7),
        ("", "19290101", "20181119", 90),
        ("", "20200101", "20181119", None),
        ("", "", "20181119", None),
        ("abc", "19530204", "", None),
        ("000Y", "", "", None),
        ("000D", "19700101", "20200101", None),
        ("0", "", "", None),
        ("120Y", "", "", None),
        ("", "19000101", "20200101", None),
        ("", "19010101", "20200101", None),
        ("", "00010101", "20200101", None),
        ("", "19000101", "19000101", None),
        ("003D", "", "", 0),
    ],
)
def test_ages_come_from_headers(age: str, birth: str, study: str, expected: float | None) -> None:
    assert age_in_years(age, birth, study) == expected


def test_an_age_in_years_is_never_rounded_up() -> None:
    birth = date(1950, 6, 15)
    for day in range(1, 28):
        study = date(2010, 6, day)
        age = age_in_years("", birth.strftime("%Y%m%d"), study.strftime("%Y%m%d"))
        assert age is not None
        assert 0 <= (study - birth).days / 365.25 - age < 0.1


@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        ("PDw_kp_mtflash3d", "proton density"),
        ("MTw_kp_mtflash3d", "magnetization transfer"),
        ("TOF_3D_multi-slab", "angiography"),
        ("QSM_3D_GRE_multiecho", "susceptibility or T2*"),
        ("AAHead_Scout", "a localizer"),
        ("T1w_kp_mtflash3d", ""),
        ("t1_mprage_sag_p2_iso", ""),
        ("SAG 3D FSPGR", ""),
        ("mtflash3d", ""),
    ],
)
def test_names_tell_what_technique_does_not(name: str, weighting: str, tmp_path: Path) -> None:
    named = MPRAGE | {"SeriesDescription": name, "ProtocolName": "PD T2 BRAIN"}
    (file,) = write_series(tmp_path, named, slices=1)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.other_weighting == weighting


@pytest.mark.parametrize(
    ("body", "name", "known"),
    [
        ("", "t1_knee_sag", "KNEE"),
        ("", "t1 tse sag LWS", "LWS"),
        ("", "T1 C-SPINE", "SPINE"),
        ("", "t1_cor_HIP", ""),
        ("HEAD", "t1 knee", "HEAD"),
    ],
)
def test_a_name_stands_in_where_the_body_part_is_missing(
    body: str, name: str, known: str, tmp_path: Path
) -> None:
    tags = MPRAGE | {"BodyPartExamined": body, "SeriesDescription": name}
    (file,) = write_series(tmp_path, tags, slices=1)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.body == known


@pytest.mark.parametrize(
    ("tags", "weighting"),
    [
        ({"ScanOptions": ["FC", "SP"]}, "angiography or susceptibility"),
        ({"ScanOptions": ["FC_FREQ_AX_GEMS"]}, "angiography or susceptibility"),
        ({"ScanOptions": ["VASCTOF_GEMS"]}, "angiography"),
        ({"SequenceName": "*fl3d1r_ts"}, "angiography or susceptibility"),
        ({"SequenceName": "*fl3d1_ns"}, ""),
        ({"ScanOptions": ["FC"], "MRAcquisitionType": "2D"}, ""),
        ({"ScanOptions": ["FC"], "InversionTime": 450.0}, ""),
        ({"ScanOptions": ["FC"], "SeriesDescription": "t1_fl3d"}, ""),
        ({"AcquisitionContrast": "PROTON_DENSITY"}, "proton density"),
        ({"AcquisitionContrast": "T1"}, ""),
        ({"TimeOfFlightContrast": "YES"}, "angiography"),
        ({"ScanOptions": ["MT"]}, "magnetization transfer"),
    ],
)
def test_series_without_a_name_are_told_by_technique(
    tags: dict[str, object], weighting: str, tmp_path: Path
) -> None:
    """A gradient echo of 21 ms and 18° is angiography or T1w, by its times alone."""
    times = {"RepetitionTime": 21.0, "EchoTime": 3.6, "FlipAngle": 18.0, "InversionTime": None}
    unnamed = {"SeriesDescription": "HEAD 3D", "ProtocolName": "", "ScanningSequence": "GR"}
    tags = {**MPRAGE, **times, **unnamed, "MRAcquisitionType": "3D", **tags}
    (file,) = write_series(tmp_path, tags, slices=1)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.other_weighting == weighting


@pytest.mark.parametrize("preamble", [True, False])
def test_files_without_a_preamble_are_dicom_too(preamble: bool, tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, MPRAGE, slices=1)
    content = file.read_bytes()
    file.write_bytes(content if preamble else content[132:])
    assert isinstance(read_header(file, tmp_path, b"k"), Header)
    for other in (b"", b"\x02\0", b"participant_id\tage\n" * 20, bytes(400), b"\x1f\x8b" * 100):
        file.write_bytes(other)
        assert read_header(file, tmp_path, b"k") is None


@pytest.mark.parametrize(
    ("places", "sheared"),
    [
        ([(4.5 * k, 0.0, 0.0) for k in range(40)], False),
        ([(4.5 * k, 1e-4 * (k % 2), 0.0) for k in range(40)], False),
        ([(4.5 * k, 1.0 * k, 0.0) for k in range(40)], True),
        ([(4.5 * k, 0.0, -0.3 * k) for k in range(40)], True),
        ([(0.0, 0.0, 0.0)], False),
        ([], False),
    ],
)
def test_slices_that_slide_sideways_are_no_box(
    places: list[tuple[float, ...]], sheared: bool
) -> None:
    assert (slides(places) is not None) == sheared


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (list(range(40)), None),
        (list(range(40, 0, -1)), None),
        ([k for k in range(41) if k != 20], "incomplete series"),
        ([k for k in range(43) if k not in (18, 19, 20)], "incomplete series"),
        ([min(k, 38) for k in range(40)], "several volumes"),
        ([k % 20 for k in range(40)], "several volumes"),
        ([(k * 7) % 40 for k in range(40)], "frames out of order"),
    ],
)
def test_frames_are_one_volume_in_order(
    places: list[int], reason: str | None, tmp_path: Path
) -> None:
    (file,) = write_series(tmp_path, MPRAGE, slices=1)
    content = pydicom.dcmread(file)
    frames = []
    for place in places:
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-90, -90, 4.5 * place]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    shared, plane = pydicom.Dataset(), pydicom.Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [plane]
    content.SharedFunctionalGroupsSequence = [shared]
    content.PerFrameFunctionalGroupsSequence = frames
    content.NumberOfFrames = len(frames)
    content.save_as(file)
    header = read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert bool(header.stack) == bool(reason)
    assert (header.stack or "").startswith(reason or "")
