from __future__ import annotations

import gzip
import io
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from neurofoundry.errors import UsageError
from neurofoundry.ingest.pseudonyms import KEY, pseudonym
from tests.support.building import Outcome, as_nobody, bids, head, run
from tests.support.dicom_files import IDENTIFYING, MPRAGE, T2, hospital, write_series

SECRET = "an example of a key, 0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def everything_written(outcome: Outcome) -> bytes:
    """All bytes of the output, unpacked, and the names of its files."""
    pieces = []
    for file in sorted(outcome.folder.rglob("*")):
        pieces.append(str(file.relative_to(outcome.folder)).encode())
        if file.is_file():
            content = file.read_bytes()
            pieces += [content, gzip.decompress(content) if file.suffix == ".gz" else b""]
    return b"\n".join(pieces)


def test_a_hospital_folder_becomes_a_cohort_without_identifiers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], logged: io.StringIO
) -> None:
    outcome = run(hospital(tmp_path / "data"), tmp_path / "out")
    scans = outcome.scans.sort_values(["sex", "session"])
    subject = pseudonym(SECRET.encode(), "PID-4711-XYZ")
    assert scans["subject"].tolist()[1:] == [f"sub-{subject}"] * 2
    assert scans["session"].tolist() == ["ses-1", "ses-1", "ses-2"]
    assert scans["sex"].tolist() == ["F", "M", "M"]
    assert scans["age"].tolist() == [65.7, 65, 67]  # the first from birth and study date
    assert scans["scanner"].tolist() == ["SIEMENS Skyra"] * 3
    assert scans["field_strength"].tolist() == [3] * 3
    assert set(scans["dataset"]) == set(scans["site"]) == {"dicom"}
    assert outcome.excluded == {
        f"dicom/sub-{subject}/ses-1/series-1": "not T1w: a localizer",
        f"dicom/sub-{subject}/ses-1/series-2": "not T1w: SE, TR 5000 ms, TE 95 ms, flip 150°",
        "dicom": "not DICOM: 1 files without its preamble",
    }
    printed = capfd.readouterr()
    assert "reading headers of dicom: 164/164 files" in logged.getvalue()
    assert "converting dicom: 3/3 series" in logged.getvalue()
    seen = everything_written(outcome)
    seen += (printed.out + printed.err + logged.getvalue()).encode()
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
        "participant_id\tstroke\tage\nPID-4711-XYZ\tyes\t12\nPID-2\tno\t13\nPID-9\tno\t1\n"
    )
    outcome = run(
        data,
        tmp_path / "out",
        columns={"stroke": {"from": ["stroke"]}},
        datasets=[{"name": "ward", "kind": "dicom", "path": "ward"}],
    )
    assert outcome.scans.sort_values("sex")["stroke"].tolist() == ["no", "yes", "yes"]
    assert 12 not in set(outcome.scans["age"])
    assert "1 of 3 rows meet no patient" in outcome.notes
    assert "patients have no row" not in outcome.notes
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
    subject = pseudonym(SECRET.encode(), "PID-4711-XYZ")
    place = f"dicom/sub-{subject}/ses-1/series-"
    for number in (11, 12, 13):
        assert outcome.excluded[f"{place}{number}"] == (
            "several T1w: series-3 of the same session is used; this one "
            "stands in if that fails quality control"
        )
    assert len(list((tmp_path / "out/nifti").iterdir())) == 3 + 3  # those that may stand in


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
    assert reasons["series-22"].startswith("incomplete series: a gap of 12 mm between slices")
    assert reasons["series-23"].startswith("several volumes: two slices have the same position")
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


def test_a_drawing_on_an_image_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "an example of a key, 0123456789abcdef")
    for number in (0, 1):
        person = {"PatientID": f"P{number}"}
        for file in write_series(tmp_path / f"data/{number}", MPRAGE, person=person, seed=number):
            content = pydicom.dcmread(file)
            if number:  # an overlay plane, of which dcm2niix makes a volume of its own
                shape = {0x10: content.Rows, 0x11: content.Columns, 0x100: 1, 0x102: 0}
                for element, value in shape.items():
                    content.add_new((0x6000, element), "US", value)
                content.add_new((0x6000, 0x40), "CS", "G")
                content.add_new((0x6000, 0x50), "SS", [1, 1])
                content.add_new((0x6000, 0x3000), "OW", bytes(150) + b"\xff" * 50)
            content.save_as(file)
    outcome = run(tmp_path / "data", tmp_path / "out")
    images = [nib.load(outcome.folder / path) for path in outcome.scans["path"]]
    seen = [np.asarray(nib.as_closest_canonical(image).dataobj) for image in images]
    assert any(np.array_equal(voxels, head(1)[::-1]) for voxels in seen)


def test_placeholders_of_ages_are_na_with_a_note(tmp_path: Path) -> None:
    for number, tags in enumerate(
        [
            {"PatientAge": "000Y", "PatientBirthDate": "19700101"},
            {"PatientAge": "", "PatientBirthDate": "19000101"},
            {"PatientAge": "034Y"},
        ]
    ):
        person = {"PatientID": f"P{number}", **tags}
        write_series(tmp_path / "data" / str(number), MPRAGE, seed=number + 1, person=person)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert sorted(outcome.scans["age"].dropna()) == [34]
    assert "age of 2 series is not from 0 to 115 years" in outcome.notes


def test_a_number_of_several_people_is_nobodys_and_a_copied_folder_counts_once(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    for number, birth in enumerate(("19500101", "19600202")):
        who = {"PatientID": "ANON", "PatientBirthDate": birth}
        write_series(data / str(number), MPRAGE, study=str(number), seed=number, person=who)
    for number in range(2, 4):
        who = {"PatientID": f"P{number}"}
        write_series(data / str(number), MPRAGE, study=str(number), seed=number, person=who)
    shutil.copytree(data / "3", data / "3 (1)")
    outcome = run(data, tmp_path / "out")
    assert len(outcome.scans) == 2
    reasons = list(outcome.excluded.values())
    assert len(reasons) == 2
    assert all(reason.startswith("several persons: 2 birth dates") for reason in reasons)
