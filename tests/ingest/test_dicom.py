from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from neurofoundry.errors import UsageError
from neurofoundry.ingest import dicom
from neurofoundry.ingest.dicom import KEY, Header, Series, why_not_t1w, years
from tests.support.building import Outcome, as_nobody, bids, head, run

SECRET = "an example of a key, 0123456789abcdef"
MPRAGE = {
    "ScanningSequence": ["GR", "IR"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": 2300.0,
    "EchoTime": 2.98,
    "InversionTime": 900.0,
    "FlipAngle": 9.0,
    "SeriesDescription": "t1_mprage_sag MUELLER",
}
T2 = {
    "ScanningSequence": ["SE"],
    "MRAcquisitionType": "2D",
    "RepetitionTime": 5000.0,
    "EchoTime": 95.0,
    "FlipAngle": 150.0,
    "SeriesDescription": "t2_tse",
}
LOCALIZER = {
    "ScanningSequence": ["GR"],
    "RepetitionTime": 8.6,
    "EchoTime": 4.0,
    "FlipAngle": 20.0,
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM", "LOCALIZER"],
}
PERSON = {
    "PatientName": "MUELLER^HANS^PETER",
    "PatientID": "PID-4711-XYZ",
    "PatientBirthDate": "19530204",
    "PatientSex": "M",
    "PatientAge": "065Y",
    "StudyDate": "20181119",
    "StudyTime": "134501",
    "AccessionNumber": "ACC-998877",
    "InstitutionName": "Klinikum Entenhausen",
    "ReferringPhysicianName": "DUCK^DONALD",
    "OperatorsName": "MOUSE^MICKEY",
    "PatientComments": "fell off the bridge",
    "StudyDescription": "Schaedel nativ",
    "DeviceSerialNumber": "SN-31337",
}
IDENTIFYING = [
    "mueller", "hans", "peter", "4711", "19530204", "1953", "20181119", "20200301", "134501",
    "998877",
    "entenhausen", "klinikum", "duck", "mickey", "bridge", "schaedel", "31337", "mprage", "1.2.826",
]  # fmt: skip


def write_series(
    folder: Path,
    tags: dict[str, Any],
    *,
    number: int = 1,
    study: str = "1",
    slices: int = 40,
    seed: int = 0,
    person: dict[str, Any] | None = None,
    skip: Sequence[int] = (),
    thickness: float = 4.5,
) -> list[Path]:
    """Write a series of axial slices, 40 × 40 pixels of 4.5 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    who = {**PERSON, **(person or {})}
    study_uid = f"1.2.826.0.1.3680043.2.{sum(map(ord, who['PatientID'] + study))}"
    series_uid = f"{study_uid}.{number}"
    voxels = head(seed)
    written = []
    for index in set(range(slices)) - set(skip):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series_uid}.{index + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = generate_uid()
        file = folder / f"IM{number:03d}{index:04d}"
        content = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
        values = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "MR",
            "Manufacturer": "SIEMENS",
            "ManufacturerModelName": "Skyra",
            "MagneticFieldStrength": 3.0,
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": series_uid,
            "SeriesNumber": number,
            "InstanceNumber": index + 1,
            "AcquisitionNumber": 1,
            "FrameOfReferenceUID": study_uid + ".9",
            "PixelSpacing": [4.5, 4.5],
            "SliceThickness": thickness,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-90, -90, -90 + thickness * index],
            "Rows": 40,
            "Columns": 40,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            **who,
            **tags,
        }
        for name, value in values.items():
            setattr(content, name, value)
        content.PixelData = np.ascontiguousarray(voxels[:, ::-1, index % 40].T).tobytes()
        content.save_as(file, enforce_file_format=True)
        written.append(file)
    return written


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def hospital(data: Path) -> Path:
    """Two persons, one of them twice; folders called after them, as hospitals do."""
    first = data / "MUELLER_HANS" / "20181119"
    write_series(first / "a", LOCALIZER, number=1, slices=3)
    write_series(first / "a", T2, number=2, seed=1)
    write_series(first / "a", MPRAGE, number=3, seed=2)
    later = {"StudyDate": "20200301", "PatientAge": "067Y"}
    write_series(data / "MUELLER_HANS" / "0first", MPRAGE, study="2", seed=3, person=later)
    other = {"PatientID": "PID-2", "PatientSex": "F", "PatientAge": "", "PatientName": "PETER"}
    write_series(data / "x", MPRAGE, seed=4, person=other)
    (data / "MUELLER_HANS" / "letter.txt").write_text("Dear Hans")
    return data


def everything_written(outcome: Outcome) -> bytes:
    """All bytes of the output, unpacked, and the names of its files."""
    parts = []
    for file in sorted(outcome.folder.rglob("*")):
        parts.append(str(file.relative_to(outcome.folder)).encode())
        if file.is_file():
            content = file.read_bytes()
            parts += [content, gzip.decompress(content) if file.suffix == ".gz" else b""]
    return b"\n".join(parts)


def test_a_hospital_folder_becomes_a_cohort_without_identifiers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run(hospital(tmp_path / "data"), tmp_path / "out")
    scans = outcome.scans.sort_values(["sex", "session"])
    pseudonym = dicom._pseudonym(SECRET.encode(), "PID-4711-XYZ")
    assert scans["subject"].tolist()[1:] == [f"sub-{pseudonym}"] * 2
    assert scans["session"].tolist() == ["ses-1", "ses-1", "ses-2"]
    assert scans["sex"].tolist() == ["F", "M", "M"]
    assert scans["age"].tolist() == [65.7, 65, 67]  # the first from birth and study date
    assert scans["scanner"].tolist() == ["SIEMENS Skyra"] * 3
    assert scans["field_strength"].tolist() == [3] * 3
    assert set(scans["dataset"]) == set(scans["site"]) == {"dicom"}
    assert outcome.excluded == {
        f"dicom/sub-{pseudonym}/ses-1/series-1": "not T1w: a localizer",
        f"dicom/sub-{pseudonym}/ses-1/series-2": "not T1w: SE, TR 5000 ms, TE 95 ms, flip 150°",
        "dicom": "not DICOM: 1 files without its preamble",
    }
    printed = capfd.readouterr()
    seen = everything_written(outcome) + (printed.out + printed.err).encode()
    for word in IDENTIFYING:
        assert word.encode() not in seen.lower(), word
    assert str(tmp_path).encode() not in seen


def test_converted_volumes_hold_the_voxels_in_place_under_a_fresh_header(tmp_path: Path) -> None:
    outcome = run(hospital(tmp_path / "data"), tmp_path / "out")
    path = outcome.scans.query("sex == 'M' and session == 'ses-1'")["path"].iloc[0]
    image = nib.load(tmp_path / "out" / path)
    canonical = nib.as_closest_canonical(image)
    # x of DICOM runs to the left; y was flipped when the slices were written
    assert np.array_equal(np.asarray(canonical.dataobj), head(2)[::-1])
    assert np.allclose(canonical.affine[:3, :3], np.diag([4.5] * 3), atol=1e-4)
    for name in ("descrip", "intent_name", "db_name", "aux_file"):
        assert not bytes(image.header[name]).strip(b"\0")
    assert len(image.header.extensions) == 0
    files = {file.name for file in (tmp_path / "out/nifti").iterdir()}
    assert files == {Path(path).name for path in outcome.scans["path"]}


def test_the_same_key_gives_the_same_bytes_and_another_key_other_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hospital(tmp_path / "data")
    first = run(data, tmp_path / "out1", workers=1)
    second = run(data, tmp_path / "out2", workers=3)
    assert everything_written(first) == everything_written(second)
    assert first.work.data_version == second.work.data_version
    monkeypatch.setenv(KEY, SECRET + "!")
    other = run(data, tmp_path / "out3")
    assert not set(other.scans["subject"]) & set(first.scans["subject"])


@pytest.mark.parametrize("key", ["", "short"])
def test_without_a_key_nothing_is_read(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, key)
    hospital(tmp_path / "data")
    with pytest.raises(UsageError, match="openssl rand -hex 32"):
        run(tmp_path / "data", tmp_path / "out")


def test_bids_and_dicom_stand_side_by_side(tmp_path: Path) -> None:
    hospital(tmp_path / "data")
    bids(tmp_path / "data" / "ds", 2, seed=1)
    scans = run(tmp_path / "data", tmp_path / "out").scans
    assert scans["source"].value_counts().to_dict() == {"dicom": 3, "bids": 2}


def test_labels_may_come_from_a_table_of_patient_numbers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    hospital(data / "ward")
    (data / "ward/participants.tsv").write_text(
        "participant_id\tstroke\tage\nPID-4711-XYZ\tyes\t12\nPID-2\tno\t13\nPID-3\tno\t1\n"
    )
    outcome = run(
        data,
        tmp_path / "out",
        columns={"stroke": {"from": ["stroke"]}},
        datasets=[{"name": "ward", "kind": "dicom", "path": "ward"}],
    )
    assert outcome.scans.sort_values("sex")["stroke"].tolist() == ["no", "yes", "yes"]
    assert 12 not in set(outcome.scans["age"])
    assert b"PID-" not in everything_written(outcome)


def test_of_several_t1w_of_a_study_the_3d_one_with_the_shortest_edges_is_used(
    tmp_path: Path,
) -> None:
    data = hospital(tmp_path / "data")
    spin_echo = {**T2, "RepetitionTime": 500.0, "EchoTime": 12.0}
    write_series(data / "more", spin_echo, number=11, seed=20)
    write_series(data / "more", MPRAGE, number=12, seed=21, slices=30, thickness=6)
    write_series(data / "more", MPRAGE, number=13, seed=22)
    outcome = run(data, tmp_path / "out")
    pseudonym = dicom._pseudonym(SECRET.encode(), "PID-4711-XYZ")
    place = f"dicom/sub-{pseudonym}/ses-1/series-"
    for number in (11, 12, 13):
        assert outcome.excluded[f"{place}{number}"] == (
            "several T1w: series-3 of the same session is used"
        )
    assert len(list((tmp_path / "out/nifti").iterdir())) == 3


def test_damaged_series_are_excluded_and_the_next_best_is_used(tmp_path: Path) -> None:
    data = hospital(tmp_path / "data")
    cut = write_series(data / "cut", MPRAGE, number=21, seed=30, thickness=4)
    cut[5].write_bytes(cut[5].read_bytes()[:-900])
    write_series(data / "gap", MPRAGE, number=22, seed=31, skip=[7, 8], thickness=4)
    double = write_series(data / "double", MPRAGE, number=23, seed=32, thickness=4)
    copy = pydicom.dcmread(double[3])
    copy.SOPInstanceUID += ".7"
    copy.save_as(data / "double" / "copy")
    (data / "garbage").write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)
    (data / "lost").symlink_to(data / "nothing")
    nobody = {"PatientID": ""}
    write_series(data / "nobody", MPRAGE, number=24, seed=33, person=nobody)
    outcome = run(data, tmp_path / "out")
    assert len(outcome.scans) == 3
    reasons = {path.rpartition("/")[2]: reason for path, reason in outcome.excluded.items()}
    assert reasons["series-21"].startswith("cut short: a file ends before its pixels do")
    assert reasons["series-22"].startswith("incomplete series: a gap of 12.0 mm between slices")
    assert reasons["series-23"].startswith("several volumes: two slices lie at one position")
    assert reasons["series-24"].startswith("no PatientID")
    files = [reason for name, reason in reasons.items() if re.fullmatch("[0-9a-f]{12}", name)]
    assert sorted(reason.partition(":")[0] for reason in files) == ["broken link", "damaged DICOM"]


def test_a_broken_table_of_patients_is_not_quoted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    bids(data / "ds", 2, seed=1)
    hospital(data / "ward")
    (data / "ward/participants.tsv").write_text("PID-4711-XYZ\tMueller\tyes\n")
    declared = [
        {"name": "ds", "kind": "bids", "path": "ds"},
        {"name": "ward", "kind": "dicom", "path": "ward"},
    ]
    outcome = run(data, tmp_path / "out", datasets=declared)
    assert outcome.excluded["ward/participants.tsv"].startswith("unreadable table")
    assert b"4711" not in everything_written(outcome)
    assert b"Mueller" not in everything_written(outcome)


def test_closed_folders_and_files_are_counted_without_their_names() -> None:
    with as_nobody() as folder:
        data = hospital(folder / "data")
        write_series(data / "JONES_TOM", MPRAGE, number=31)
        (closed,) = write_series(data / "y", MPRAGE, number=32, slices=1)
        closed.chmod(0)
        (data / "JONES_TOM").chmod(0)
        try:
            outcome = run(data, folder / "out")
        finally:
            (data / "JONES_TOM").chmod(0o755)
        reasons = list(outcome.excluded.values())
        assert len(outcome.scans) == 3
        assert sum(reason.startswith("no permission: the folder") for reason in reasons) == 1
        assert sum(reason.startswith("no permission: the file") for reason in reasons) == 1
        assert b"JONES" not in everything_written(outcome)


HEADER = Header(
    subject="sub-x", study="s", series="r", day="", number=1, age=None, sex=None, scanner="",
    field_strength=3.0, modality="MR", kinds=frozenset({"ORIGINAL", "PRIMARY", "M"}), body="",
    agent=False, angiography=False, sequence=frozenset({"GR"}), is_3d=True, repetition_time=2300,
    echo_time=3, inversion_time=900, flip_angle=9, pixel_mm=1, thickness_mm=1, frames=1,
    orientation=(1, 0, 0, 0, 1, 0), position=0.0, cut_short=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "sequence", "times", "t1w"),
    [
        ("MPRAGE", "GR IR", (2300, 3.0, 900, 9), True),
        ("IR-SPGR", "GR", (7.0, 3.0, 400, 11), True),
        ("T1-TFE without TI", "GR", (8.1, 3.7, None, 8), True),
        ("SPGR", "RM", (25.0, 5.0, None, 30), True),
        ("2D FLASH", "GR", (250, 2.5, None, 70), True),
        ("spin echo", "SE", (500, 12, None, 90), True),
        ("T1-FLAIR", "SE IR", (2000, 20, 800, 111), True),
        ("T2-FLAIR", "SE IR", (9000, 90, 2500, 150), False),
        ("T2 TSE", "SE", (5000, 95, None, 150), False),
        ("PD", "SE", (2500, 15, None, 90), False),
        ("STIR", "SE IR", (4000, 40, 160, 150), False),
        ("T2* GRE", "GR", (650, 20, None, 20), False),
        ("SWI", "GR", (28, 20, None, 15), False),
        ("bSSFP", "GR", (5, 2.3, None, 60), False),
        ("BOLD", "EP GR", (700, 10, None, 60), False),
        ("no times", "GR", (None, None, None, None), False),
    ],
)
def test_t1w_is_recognised_by_technique(
    protocol: str, sequence: str, times: Sequence[float | None], t1w: bool
) -> None:
    tr, te, ti, flip = times
    one = series(
        sequence=frozenset(sequence.split()),
        repetition_time=tr,
        echo_time=te,
        inversion_time=ti,
        flip_angle=flip,
    )
    assert (why_not_t1w(one) is None) is t1w, protocol
    assert t1w or str(why_not_t1w(one)).startswith("not T1w: ")


def series(slices: int = 160, **header: Any) -> Series:
    made = Series(replace(HEADER, **header))
    made.files = [Path(str(number)) for number in range(slices)]
    made.positions = [float(number) for number in range(slices)]
    made.orientations = {made.header.orientation}
    return made


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"modality": "CT"}, "not T1w: modality CT, expected MR"),
        ({"kinds": frozenset({"DERIVED", "MPR"})}, "not T1w: a derived image (DERIVED, MPR)"),
        ({"kinds": frozenset({"ORIGINAL", "P"})}, "not T1w: no magnitude image (P)"),
        ({"body": "KNEE"}, "not a head: body part KNEE"),
        ({"agent": True}, "contrast agent"),
        ({"angiography": True, "inversion_time": None}, "not T1w: GR angiography"),
        ({"slices": 12}, "too few slices: 12, expected 20 at least"),
    ],
)
def test_other_series_are_told_apart(header: dict[str, Any], reason: str) -> None:
    assert str(why_not_t1w(series(**header))).startswith(reason)


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
    ],
)
def test_contrast_agents_are_noticed(
    agent: str, description: str, given: bool, tmp_path: Path
) -> None:
    tags = {**MPRAGE, "ContrastBolusAgent": agent, "SeriesDescription": description}
    (file,) = write_series(tmp_path, tags, slices=1)
    header = dicom._read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert header.agent is given


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
    header = dicom._read_header(file, tmp_path, b"k")
    assert isinstance(header, Header)
    assert (header.repetition_time, header.echo_time, header.flip_angle) == (8, 3.5, 8)
    assert header.sequence == {"GR"}
    assert header.pixel_mm == 1
    assert header.cut_short  # 160 frames are announced, one is there
    assert why_not_t1w(Series(header, [file], [0.0], {header.orientation})) is None


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
    ],
)
def test_ages_come_from_headers(age: str, birth: str, study: str, expected: float | None) -> None:
    assert years(age, birth, study) == expected


def test_an_age_in_years_is_never_rounded_up() -> None:
    birth = date(1950, 6, 15)
    for day in range(1, 28):
        study = date(2010, 6, day)
        found = years("", birth.strftime("%Y%m%d"), study.strftime("%Y%m%d"))
        assert found is not None
        assert 0 <= (study - birth).days / 365.25 - found < 0.1
