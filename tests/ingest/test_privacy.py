"""Secrets are planted wherever DICOM has room for one, and looked for in every byte of output."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from neurofoundry.errors import NeurofoundryError
from neurofoundry.ingest.pseudonyms import KEY
from tests.support.building import bids, run, write_scan
from tests.support.dicom_files import LOCALIZER, MPRAGE, T2, write_series

NUMBER = 47114711
"""A secret number, in tags that take no text."""
_TEXTS = """
    PatientName PatientComments OtherPatientIDs OtherPatientNames PatientBirthName PatientAddress
    PatientTelephoneNumbers PatientMotherBirthName MedicalRecordLocator EthnicGroup Occupation
    AdditionalPatientHistory AccessionNumber InstitutionName InstitutionAddress
    InstitutionalDepartmentName ReferringPhysicianName PerformingPhysicianName OperatorsName
    PhysiciansOfRecord RequestingPhysician StationName StudyDescription SeriesDescription
    ProtocolName RequestedProcedureDescription PerformedProcedureStepDescription ImageComments
    DeviceSerialNumber SoftwareVersions StudyID DerivationDescription AcquisitionComments
    Manufacturer ManufacturerModelName BodyPartExamined SequenceName ReceiveCoilName
    TransmitCoilName PatientPosition Modality ScanningSequence SequenceVariant ImageType
    MRAcquisitionType
"""
TEXTS = _TEXTS.split()
NUMBERS = ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "SeriesNumber")


def secret(place: int) -> str:
    """A text that stands in one place only, and in no vocabulary."""
    return f"GEHEIM{place:02d}Q"


def planted(content: Dataset, place: int) -> None:
    """Plant secrets in what is no plain attribute: private tags, overlays, nested sequences."""
    block = content.private_block(0x0029, "GEHEIM50Q", create=True)
    block.add_new(0x10, "LO", secret(51))
    block.add_new(0x11, "OB", secret(52).encode())
    nested = Dataset()
    nested.PatientID = secret(53)
    nested.CodeMeaning = secret(54)
    content.OtherPatientIDsSequence = Sequence([nested])
    content.RequestAttributesSequence = Sequence([nested])
    content.add_new((0x6000, 0x0022), "LO", secret(55))
    content.add_new((0x6000, 0x4000), "LT", secret(56))
    content.file_meta.SourceApplicationEntityTitle = secret(57)
    content.preamble = secret(58).encode().ljust(128, b"\0")


def series(folder: Path, number: int, tags: dict[str, Any], *, person: int, **options: Any) -> None:
    """Write a series with secrets in every text that is not in ``tags``."""
    values = {name: secret(place) for place, name in enumerate(TEXTS)}
    technique = {**MPRAGE, "Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}
    values |= {**technique, "BodyPartExamined": "", "SeriesDescription": secret(23), **tags}
    who = {"PatientID": f"{secret(59)}{person}", "PatientBirthDate": "19470711"}
    for file in write_series(folder, values, number=number, person=who, **options):
        content = pydicom.dcmread(file)
        planted(content, number)
        content.save_as(file)


def as_stored(text: str) -> set[bytes]:
    """The bytes that a text may be found as."""
    words = {text, text.lower(), text.title()}
    codes = ("utf-8", "utf-16-le", "latin-1", "shift-jis")
    encoded = {word.encode(code, "ignore") for word in words for code in codes}
    return (encoded | {word.encode().hex().encode() for word in words}) - {b""}


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CD: a series for every reason to refuse one, in folders named after patients."""
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    data = tmp_path / "data"
    data.mkdir()
    root = os.fsencode(data)
    names = (
        "GEHEIM60Qä".encode(),
        "GEHEIM61Qäöü".encode("latin-1"),
        "GEHEIM62Q木".encode("shift-jis"),
    )
    folders = [Path(os.fsdecode(root + b"/" + name)) for name in names]
    series(folders[0] / "a", 1, {}, person=1)
    series(folders[1] / "b", 2, {}, person=2, seed=1)
    series(folders[2] / "c", NUMBER, {}, person=3, seed=2)
    refused: list[dict[str, Any]] = [
        {"Modality": secret(39)},
        {"ImageType": ["DERIVED", secret(42)]},
        {"BodyPartExamined": f"{secret(35)}WIRBEL{secret(35)}"},
        {**T2, "ScanningSequence": ["SE", secret(40)], "SeriesDescription": secret(23)},
        {name: NUMBER for name in NUMBERS[:4]},
        {"SeriesNumber": NUMBER, "RepetitionTime": NUMBER},
        {"PatientSex": secret(1)[:10]},
        {**LOCALIZER, "SeriesDescription": secret(23)},
        {"ContrastBolusAgent": secret(2)},
        {"PatientID": ""},
    ]
    for number, tags in enumerate(refused, 10):
        series(folders[number % 3] / f"{secret(63)}{number}", number, tags, person=1, slices=24)
    series(folders[0] / "gap", 30, {}, person=1, skip=[9, 10, 11])
    for place, encoding in enumerate(("utf-8", "latin-1", "shift-jis"), 64):
        name = f"{secret(place)}{'木' if encoding == 'shift-jis' else 'ä'}.{secret(67)}"
        torn = os.fsencode(folders[0]) + b"/" + name.encode(encoding)
        Path(os.fsdecode(torn)).write_bytes(bytes(128) + b"DICM" + secret(68).encode())
        Path(os.fsdecode(torn + b".txt")).write_text(secret(69))
    (data / "participants.tsv").write_text(
        f"participant_id\tsex\tdiagnosis\n{secret(59)}1\t{secret(70)}\t{secret(71)}\n"
        f"{secret(59)}2\t{secret(70)}\t{secret(71)}\t{secret(72)}\n"
    )
    return data


def test_no_secret_of_a_header_or_a_name_reaches_any_output(
    hospital: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    logged: io.StringIO,
) -> None:
    monkeypatch.setenv(KEY, "an example of a key, 0123456789abcdef")
    diagnosis = {"from": ["diagnosis"], "values": {"CN": ["CN"], "AD": ["AD"]}}
    outcome = run(hospital, tmp_path / "out", columns={"diagnosis": diagnosis})
    assert len(outcome.scans) == 2, "the secrets are those of a cohort that can be used"
    assert len(outcome.excluded) > 12, "of many reasons to refuse a series"
    printed = capfd.readouterr()
    written = [(printed.out + printed.err + logged.getvalue() + caplog.text).encode()]
    for file in sorted(outcome.folder.rglob("*")):
        written.append(os.fsencode(file.relative_to(outcome.folder)))
        if file.is_file():
            content = file.read_bytes()
            written += [content, gzip.decompress(content) if file.suffix == ".gz" else b""]
    seen = b"\n".join(written)
    secrets = {"GEHEIM", str(NUMBER), f"{NUMBER:g}", "19470711", "\\xe4", "\\udce4"}
    found = {text for text in secrets for stored in as_stored(text) if stored in seen}
    assert not found, [line for line in seen.splitlines() if b"GEHEIM" in line][:5]
    assert "another value" in seen.decode("utf-8", "replace")


def test_a_folder_without_a_dataset_is_described_without_names_that_may_be_of_patients(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "IM.GEHEIM.19470711").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(data) + b"/M\xfcller")).mkdir()
    with pytest.raises(NeurofoundryError) as refused:
        run(data, tmp_path / "out")
    assert "1 folders and 1 files (other)" in str(refused.value)
    for name in ("GEHEIM", "19470711", "ller"):
        assert name not in str(refused.value)


@pytest.mark.parametrize("beside", ["nothing", "BIDS", "a folder that is empty"])
def test_a_folder_of_dicom_that_is_called_as_bids_calls_one_is_named_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: str,
    capfd: pytest.CaptureFixture[str],
    logged: io.StringIO,
) -> None:
    monkeypatch.setenv(KEY, "an example of a key, 0123456789abcdef")
    data = tmp_path / "data"
    for number, name in enumerate(("sub-GEHEIMQ", "sub-MeierQ^Hans")):
        person = {"PatientID": f"P{number}"}
        write_series(data / "cd" / name / "1", MPRAGE, person=person, seed=number)
    if beside == "BIDS":
        bids(data / "cd", 2)
    elif beside != "nothing":
        (data / "cd/sub-01").mkdir()
        bids(data / "other", 2)
    outcome = run(data, tmp_path / "out")
    assert set(outcome.scans["source"]) == ({"dicom"} if beside == "nothing" else {"bids"})
    if beside != "nothing":
        assert outcome.excluded["cd"].startswith("not BIDS: 1 folders sub-* hold DICOM")
        assert "1 folders sub-* have a comma or ^" in outcome.excluded["cd"]
        for folder in list((data / "cd").glob("sub-*Q*")):  # the remedy
            folder.rename(data / folder.name.replace("sub", "own"))
        again = run(data, tmp_path / "again")
        assert set(again.scans["source"]) == {"dicom", "bids"}
    printed = capfd.readouterr()
    said = printed.out + printed.err + logged.getvalue() + outcome.bytes().decode()
    assert not [name for name in ("GEHEIMQ", "MeierQ") if name in said]


def test_subjects_that_are_called_after_people_beside_those_of_bids_are_named_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], logged: io.StringIO
) -> None:
    data = bids(tmp_path / "data", 2, "participant_id\tage\nsub-01\t30\nsub-Geheim, Q\t40\n")
    for number, folder in enumerate(
        ("sub-GEHEIMA/anat", "sub-GEHEIMB/ses-1/x", "sub-GEHEIMC", "sub-GEHEIMD")
    ):
        write_series(data / folder, MPRAGE, person={"PatientID": f"P{number}"}, seed=number)
    write_scan(data / "sub-GEHEIMC/brain.nii.gz")
    (data / "sub-GEHEIMD/report.pdf").write_bytes(b"GEHEIM")
    for name in ("sub-GEHEIM, E", "sub-GEHEIM^F", "sub-GEHEIM,F"):
        write_scan(data / name / "anat" / f"{name}_T1w.nii.gz", 7)
    outcome = run(data, tmp_path / "out")
    assert list(outcome.scans["subject"]) == ["sub-01", "sub-02"]
    printed = capfd.readouterr()
    said = printed.out + printed.err + logged.getvalue() + outcome.bytes().decode()
    assert "GEHEIM" not in said.upper()
    assert "4 folders sub-* hold DICOM" in said
    assert "3 folders sub-* have a comma or ^" in said


def test_known_terms_of_scanners_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "an example of a key, 0123456789abcdef")
    for number, (maker, model) in enumerate(
        (("SIEMENS", "Prisma_fit"), ("GE MEDICAL SYSTEMS", "DISCOVERY MR750"), ("Philips", "Dr. X"))
    ):
        tags = {**MPRAGE, "Manufacturer": maker, "ManufacturerModelName": model}
        person = {"PatientID": f"P{number}"}
        write_series(tmp_path / f"data/{number}", tags, person=person, seed=number)
    scans = run(tmp_path / "data", tmp_path / "out").scans
    assert sorted(scans["scanner"]) == [
        "GE MEDICAL SYSTEMS Discovery MR750",
        "Philips",
        "SIEMENS Prisma_fit",
    ]
    assert np.isfinite(scans["field_strength"]).all()


def test_labels_that_may_be_names_are_counted_and_not_quoted(
    tmp_path: Path, logged: io.StringIO
) -> None:
    labels = ["HansMeier", "MUSTERMANN", "schmidt", "01", "A0001", "abc", "OAS30001"]
    outcome = run(bids(tmp_path / "data", labels), tmp_path / "out")
    note = next(line for line in outcome.notes.splitlines() if "letters alone" in line)
    assert "3 of 7 labels of subjects are letters alone, as names are." in note
    assert "3 of 7 labels" in logged.getvalue()
    assert not [label for label in labels[:3] if label in note + logged.getvalue()]
    plain = run(bids(tmp_path / "other", labels[3:]), tmp_path / "plain")
    assert "letters alone" not in plain.notes
