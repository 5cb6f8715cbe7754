from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from neurofoundry.errors import DataError
from tests.support.building import DIAGNOSIS, Outcome, bids, run, write_scan


def test_ages_sexes_and_paths_of_a_plain_dataset_reach_the_table(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 2, "participant_id\tage\tsex\nsub-01\t34.5\tF\nsub-02\t60\tm\n")
    scans = run(tmp_path / "data", tmp_path / "out").scans
    assert list(scans.index) == ["ds_sub-01_ses-1", "ds_sub-02_ses-1"]
    first = scans.loc["ds_sub-01_ses-1"]
    assert (first["dataset"], first["subject"], first["session"]) == ("ds", "sub-01", "ses-1")
    assert (first["person"], first["source"]) == ("ds/sub-01", "bids")
    assert (first["age"], first["sex"], first["site"]) == (34.5, "F", "ds")
    assert first["path"] == "ds/sub-01/anat/sub-01_T1w.nii.gz"
    assert scans.loc["ds_sub-02_ses-1", "sex"] == "M"


def test_the_more_specific_table_wins_and_na_never_does(tmp_path: Path) -> None:
    ds = bids(
        tmp_path / "data" / "ds",
        ["a", "b"],
        "participant_id\tage\tsex\tsite\tdiagnosis\nsub-a\t50\tF\tX\tCN\nsub-b\t60\tM\tX\tCN\n",
    )
    shutil.rmtree(ds / "sub-a")
    for number, session in enumerate(("ses-1", "ses-2")):
        write_scan(ds / f"sub-a/{session}/anat/sub-a_{session}_T1w.nii.gz", 100 + number)
    (ds / "sub-a/sub-a_sessions.tsv").write_text(
        "session_id\tage_at_scan\tdiagnosis\nses-1\t50.2\tn/a\nses-2\t53.7\tAD\n"
    )
    (ds / "sub-a/ses-2/sub-a_ses-2_scans.tsv").write_text(
        "filename\tsite\tsex\nanat/sub-a_ses-2_T1w.nii.gz\tY\tn/a\n"
    )
    scans = run(
        tmp_path / "data",
        tmp_path / "out",
        columns={"age": {"from": ["age", "age_at_scan"]}, "diagnosis": DIAGNOSIS},
    ).scans
    columns = ["age", "sex", "site", "diagnosis"]
    assert scans.loc["ds_sub-a_ses-1", columns].tolist() == [50.2, "F", "X", "CN"]
    assert scans.loc["ds_sub-a_ses-2", columns].tolist() == [53.7, "F", "Y", "AD"]
    assert scans.loc["ds_sub-b_ses-1", columns].tolist() == [60, "M", "X", "CN"]


def test_of_several_t1w_the_plainest_name_then_the_lowest_run_is_used(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 1)
    bids(ds, ["runs", "acqs", "broken"])
    for name, files in {
        "sub-runs": ["run-10_T1w", "run-2_T1w", "acq-a_run-1_T1w"],
        "sub-acqs": ["acq-b_T1w", "acq-a_rec-x_T1w", "acq-a_T1w"],
        "sub-broken": ["run-1_T1w", "run-2_T1w"],
    }.items():
        shutil.rmtree(ds / name)
        for number, file in enumerate(files):
            write_scan(ds / f"{name}/anat/{name}_{file}.nii.gz", hash_free_seed(name, number))
    (ds / "sub-broken/anat/sub-broken_run-1_T1w.nii.gz").write_bytes(b"")
    outcome = run(tmp_path / "data", tmp_path / "out")
    used = set(outcome.scans["path"].str.rpartition("/")[2])
    assert used == {
        "sub-01_T1w.nii.gz",
        "sub-runs_run-2_T1w.nii.gz",
        "sub-acqs_acq-a_T1w.nii.gz",
        "sub-broken_run-2_T1w.nii.gz",
    }
    assert outcome.excluded == {
        "ds/sub-runs/anat/sub-runs_run-10_T1w.nii.gz": (
            "several T1w: sub-runs_run-2_T1w.nii.gz of the same session is used; this one "
            "stands in if that fails quality control"
        ),
        "ds/sub-runs/anat/sub-runs_acq-a_run-1_T1w.nii.gz": (
            "several T1w: sub-runs_run-2_T1w.nii.gz of the same session is used; this one "
            "stands in if that fails quality control"
        ),
        "ds/sub-acqs/anat/sub-acqs_acq-b_T1w.nii.gz": (
            "several T1w: sub-acqs_acq-a_T1w.nii.gz of the same session is used; this one "
            "stands in if that fails quality control"
        ),
        "ds/sub-acqs/anat/sub-acqs_acq-a_rec-x_T1w.nii.gz": (
            "several T1w: sub-acqs_acq-a_T1w.nii.gz of the same session is used; this one "
            "stands in if that fails quality control"
        ),
        "ds/sub-broken/anat/sub-broken_run-1_T1w.nii.gz": "empty file: 0 bytes",
    }


def hash_free_seed(name: str, number: int) -> int:
    return 1000 + 10 * sum(map(ord, name)) + number


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("sub-x/anat/sub-x_FLAIR.nii.gz", "not T1w: its name ends in 'FLAIR'"),
        ("sub-x/anat/sub-x_acq-T1w_T2w.nii.gz", "not T1w: its name ends in 'T2w'"),
        ("sub-x/anat/sub-x_T1w.mgz", "not NIfTI: expected .nii or .nii.gz"),
        ("sub-x/anat/sub-x_ce-gd_T1w.nii.gz", "contrast agent: its name says ce-gd"),
        ("sub-x/anat/sub-x_part-phase_T1w.nii.gz", "not a magnitude image"),
        ("sub-x/anat/sub-y_T1w.nii.gz", "misnamed: expected a name that begins with sub-x_"),
        ("sub-x/anat/sub-x_ses-2_T1w.nii.gz", "misnamed: ses-2 contradicts its folders (sub-x)"),
        ("sub-x/sub-x_T1w.nii.gz", "misplaced: expected in a folder called anat"),
        ("sub-x/ses-1/anat/sub-x_T1w.nii.gz", "misnamed: expected a name that begins with sub-x_s"),
        ("sub-x/anat/sub-x_a\nb_T1w.nii.gz", "odd name: it has control characters"),
    ],
)
def test_other_images_are_excluded_with_their_reason(
    file: str, reason: str, tmp_path: Path
) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    write_scan(ds / file, 77)
    excluded = run(tmp_path / "data", tmp_path / "out").excluded
    assert excluded[f"ds/{file}".replace("\n", "\\n")].startswith(reason)


def test_a_scan_outside_the_session_folders_is_excluded(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 3)
    write_scan(ds / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", 8)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert "ds_sub-01_ses-2" in outcome.scans.index
    assert outcome.excluded["ds/sub-01/anat/sub-01_T1w.nii.gz"].startswith("misplaced")


def test_hidden_and_derived_files_are_ignored(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    for file in (
        "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/sub-09/anat/sub-09_T1w.nii.gz",
        "code/sub-09/anat/sub-09_T1w.nii.gz",
        ".git/sub-09/anat/sub-09_T1w.nii.gz",
        "sub-01/anat/._sub-01_T1w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
    ):
        write_scan(ds / file, 50)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert len(outcome.scans) == 2
    assert not outcome.excluded


def test_subjects_without_images_and_without_rows_are_named(tmp_path: Path) -> None:
    ds = bids(
        tmp_path / "data" / "ds", 3, "participant_id\tage\nsub-01\t30\nsub-07\t40\nsub-02\t50\n"
    )
    (ds / "sub-05" / "anat").mkdir(parents=True)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.excluded["ds/sub-05"].startswith("no T1w")
    assert outcome.excluded["ds/participants.tsv"] == (
        "no image: sub-07 is listed, but there is no such folder"
    )
    assert "2 subjects have no row" in outcome.notes
    assert outcome.scans["age"].isna().tolist() == [False, False, True]


def test_a_dataset_without_participants_is_used_and_says_so(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 2, None)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert len(outcome.scans) == 2
    assert "there is no such table: age, sex and labels are n/a" in outcome.notes


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"", "unreadable table: it is empty"),
        (b"x\tage\nsub-01\t3\n", "unreadable table: no column 'participant_id'"),
        (b"PK\x03\x04\0\0", "unreadable table: not text"),
    ],
)
def test_a_broken_participants_table_leaves_out_its_dataset_and_no_other(
    table: bytes, reason: str, tmp_path: Path
) -> None:
    bids(tmp_path / "data" / "good", 2)
    bids(tmp_path / "data" / "bad", 2, table, seed=1)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert set(outcome.scans["dataset"]) == {"good"}
    assert outcome.excluded["bad/participants.tsv"].startswith(reason)
    shutil.rmtree(tmp_path / "data" / "good")
    with pytest.raises(DataError, match="not one scan can be used") as refused:
        run(tmp_path / "data", tmp_path / "out")
    assert reason in str(refused.value)


def test_a_broken_row_excludes_its_subject_and_no_other(tmp_path: Path) -> None:
    bids(
        tmp_path / "data" / "ds",
        3,
        "participant_id\tage\tsex\nsub-01\t30\tF\nsub-02\t31\nsub-03\t32\tM\nsub-04\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert list(outcome.scans["subject"]) == ["sub-01", "sub-03"]
    problem = "broken row: line 3 of participants.tsv has 2 fields, expected 3"
    assert outcome.excluded["ds/sub-02/anat/sub-02_T1w.nii.gz"] == problem
    assert outcome.excluded["ds/participants.tsv"].startswith("broken row: line 5")


@pytest.mark.parametrize("table", ["sub-01/sub-01_sessions.tsv", "sub-01/sub-01_scans.tsv"])
def test_a_broken_table_of_a_subject_excludes_its_scans(table: str, tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 3)
    (ds / table).write_text("nothing\tof\tuse\n")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert list(outcome.scans["subject"]) == ["sub-02", "sub-03"]
    reason = outcome.excluded["ds/sub-01/anat/sub-01_T1w.nii.gz"]
    assert reason.startswith("unreadable table: no column")
    assert table.rpartition("_")[2] in reason


def test_names_with_spaces_and_unicode_work_in_folders_and_tables(tmp_path: Path) -> None:
    composed, decomposed = "Zoe\u0308", "Zo\u00eb"
    ds = bids(
        tmp_path / "data" / "Universität  Köln",
        ["with space", composed, "[bold]x"],
        f"participant_id\tage\nsub-with space\t30\nsub-{decomposed}\t40\n[bold]x\t50\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert sorted(outcome.scans["age"]) == [30, 40, 50]
    assert outcome.scans["path"].map(lambda path: (tmp_path / "data" / path).is_file()).all()
    assert not outcome.excluded
    assert ds.name in set(outcome.scans["dataset"])


def test_labels_that_look_alike_once_written_as_ids_stay_apart(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", ["a b", "a.b", "a-b"])
    ids = list(run(tmp_path / "data", tmp_path / "out").scans.index)
    assert len(set(ids)) == 3
    assert "ds_sub-a-b_ses-1" in ids


def test_file_names_that_are_not_utf8_are_excluded(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    name = os.fsdecode(b"sub-01_acq-\xff_T1w.nii.gz")
    write_scan(ds / "sub-01/anat/spare.nii.gz", 9).rename(ds / "sub-01/anat" / name)
    excluded = run(tmp_path / "data", tmp_path / "out").excluded
    assert excluded["ds/sub-01/anat/sub-01_acq-\\xff_T1w.nii.gz"].startswith("odd name")


def test_links_are_followed_within_the_dataset_and_nowhere_else(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 3)
    elsewhere = bids(tmp_path / "elsewhere", ["09", "10"], seed=1)
    annex = tmp_path / "store/files/md5/ab" / ("c" * 30)
    write_scan(tmp_path / "x.nii.gz", 99)
    annex.parent.mkdir(parents=True)
    (tmp_path / "x.nii.gz").rename(annex)

    def link(place: str, target: Path) -> None:
        (ds / place).parent.mkdir(parents=True, exist_ok=True)
        (ds / place).symlink_to(target)

    (ds / ".git/annex/objects").mkdir(parents=True)
    write_scan(ds / ".git/annex/objects/key.nii.gz", 98)
    link("sub-04/anat/sub-04_T1w.nii.gz", ds / ".git/annex/objects/key.nii.gz")
    link("sub-05/anat/sub-05_T1w.nii.gz", annex)
    link("sub-06/anat/sub-06_T1w.nii.gz", tmp_path / "nowhere.nii.gz")
    link("sub-07/anat/sub-07_T1w.nii.gz", elsewhere / "sub-09/anat/sub-09_T1w.nii.gz")
    link("sub-08/anat/sub-08_T1w.nii.gz", ds / "sub-08/anat/sub-08_T1w.nii.gz")
    link("sub-10", elsewhere / "sub-10")
    link("sub-11", tmp_path / "nowhere")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert list(outcome.scans["subject"]) == [f"sub-0{number}" for number in range(1, 6)]
    categories = {
        path: reason.partition(":")[0]
        for path, reason in outcome.excluded.items()
        if path != "ds/participants.tsv"
    }
    assert categories == {
        "ds/sub-06/anat/sub-06_T1w.nii.gz": "broken link",
        "ds/sub-07/anat/sub-07_T1w.nii.gz": "leads outside the dataset",
        "ds/sub-08/anat/sub-08_T1w.nii.gz": "broken link",
        "ds/sub-10": "leads outside the dataset",
        "ds/sub-11": "broken link",
    }


@pytest.mark.parametrize(
    ("store", "is_content"),
    [
        (".git/annex/objects/Xx/0q/MD5E-s9--ab.nii.gz/MD5E-s9--ab.nii.gz", True),
        (".git/modules/sub/annex/objects/Xx/0q/SHA256E-s9--ab.nii.gz/SHA256E-s9--ab.nii.gz", True),
        ("ria/6b9/2f-uuid/annex/objects/Xx/0q/MD5E-s9--ab.nii.gz/MD5E-s9--ab.nii.gz", True),
        (f"dvc/files/md5/ab/{'c' * 30}", True),
        (f"shared-cache/ab/{'0' * 30}", True),
        ("annex/objects/secret.nii.gz", False),
        (f"ab/{'c' * 29}", False),
        ("elsewhere/sub-01_T1w.nii.gz", False),
    ],
)
def test_links_into_stores_of_contents_are_followed(
    store: str, is_content: bool, tmp_path: Path
) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    content = write_scan(tmp_path / "x.nii.gz", 99)
    target = tmp_path / "stores" / store
    target.parent.mkdir(parents=True)
    content.rename(target)
    (ds / "sub-03/anat").mkdir(parents=True)
    (ds / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to(target)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert ("ds_sub-03_ses-1" in outcome.scans.index) == is_content
    if not is_content:
        reason = outcome.excluded["ds/sub-03/anat/sub-03_T1w.nii.gz"]
        assert reason.startswith("leads outside the dataset")


def test_a_linked_dataset_folder_is_a_dataset(tmp_path: Path) -> None:
    bids(tmp_path / "disk" / "adni", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ds").symlink_to(tmp_path / "disk" / "adni")
    assert len(run(tmp_path / "data", tmp_path / "out").scans) == 2


def test_sidecars_are_inherited_and_give_scanner_and_field_strength_alone(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 3)
    (ds / "T1w.json").write_text(
        json.dumps({"Manufacturer": "Philips", "MagneticFieldStrength": 3, "PatientName": "Meier"})
    )
    (ds / "sub-01/anat/sub-01_T1w.json").write_text(
        json.dumps(
            {"ManufacturersModelName": "Achieva of Dr. Meier ", "MagneticFieldStrength": 1.5}
        )
    )
    (ds / "sub-02/anat/sub-02_T1w.json").write_text("{broken")
    (ds / "sub-03/sub-09_T1w.json").write_text(json.dumps({"Manufacturer": "GE"}))
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["scanner"].tolist() == ["Philips Achieva", "Philips", "Philips"]
    assert outcome.scans["field_strength"].tolist() == [1.5, 3, 3]
    assert "ds/sub-02/anat/sub-02_T1w.json\tnot valid JSON" in outcome.notes
    assert b"Meier" not in outcome.bytes()


def test_ages_in_other_units_become_years(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2, "participant_id\tage\nsub-01\t30\nsub-02\tn/a\n")
    (ds / "participants.json").write_text(json.dumps({"age": {"Units": "months"}}))
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist()[0] == 2.5
    assert "'age' is in months: converted to years" in outcome.notes


def test_a_dictionary_of_a_subject_converts_the_ages_of_its_sessions(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2, "participant_id\tage\nsub-01\tn/a\nsub-02\t40\n")
    shutil.rmtree(ds / "sub-01")
    for number in (1, 2):
        write_scan(ds / f"sub-01/ses-{number}/anat/sub-01_ses-{number}_T1w.nii.gz", 80 + number)
    (ds / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\nses-1\t36\nses-2\t48\n")
    (ds / "sub-01/sub-01_sessions.json").write_text(json.dumps({"Age": {"Units": "mo"}}))
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist() == [3, 4, 40]
    assert "sub-01_sessions.json\t'age' is in mo: converted to years" in outcome.notes


@pytest.mark.parametrize(
    ("described", "cells", "ages"),
    [
        ({"Units": "months"}, ["37,5", "95+"], [3.12, 7.92]),
        ({"Units": "months"}, ["36", "8 years"], [3, 8]),
        ({"Units": "years (rounded to the nearest month)"}, ["34", "71"], [34, 71]),
        ({"Units": "years at week 0 of the trial"}, ["34", "89+"], [34, 89]),
        ({"Units": ["Months"]}, ["36", "48"], [3, 4]),
        ({"units": "wk"}, ["52.18", "104.36"], [1, 2]),
        ({"Units": "Tage"}, ["365.25", "730.5"], [1, 2]),
        ({"Description": "age at scan in months"}, ["36", "48"], [3, 4]),
        ({"Units": "", "Description": "age"}, ["36", "48"], [36, 48]),
        ({"Units": "lustra"}, ["7", "14"], [None, None]),
        ({"Units": "weeks of gestation"}, ["40.3", "41"], [None, None]),
        ({"Description": "postmenstrual age in weeks"}, ["40", "41"], [None, None]),
        ({"Description": "z-scored age"}, ["-0.3", "1.2"], [None, None]),
        ({"LongName": "Age in decades"}, ["5.4", "6.1"], [None, None]),
        ({"Levels": {"4": "40-49", "5": "50 to 59"}}, ["4", "5"], [None, None]),
        ({"Levels": {"90": "90 or older: >89"}}, ["45", "90"], [45, 90]),
    ],
)
def test_units_of_ages_are_understood_or_the_ages_are_na(
    described: dict[str, object], cells: list[str], ages: list[float | None], tmp_path: Path
) -> None:
    table = "participant_id\tage\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells))
    ds = bids(tmp_path / "data" / "ds", ["0", "1"], table)
    (ds / "participants.json").write_text(json.dumps({"AGE": described}))
    outcome = run(tmp_path / "data", tmp_path / "out")
    found = [None if age != age else age for age in outcome.scans["age"]]
    assert found == pytest.approx(ages)
    assert (None in ages) == ("no known unit: set to n/a" in outcome.notes)


def _longitudinal(root: Path, labels: list[str], table: str, **tables: str) -> Path:
    """Write sub-01 with sessions, and sub-02 without; ``table`` is participants.tsv."""
    ds = bids(root, ["02"], table)
    for number, name in enumerate(labels):
        write_scan(ds / f"sub-01/ses-{name}/anat/sub-01_ses-{name}_T1w.nii.gz", 90 + number)
    for name, content in tables.items():
        (ds / f"sub-01/sub-01_{name}.tsv").write_text(content)
    return ds


def _ages(outcome: Outcome) -> dict[str, float | None]:
    rows = outcome.scans[outcome.scans["subject"] == "sub-01"]
    return {
        session: None if age != age else age
        for session, age in zip(rows["session"], rows["age"], strict=True)
    }


def test_padded_numbers_of_sessions_match_and_others_are_noted(tmp_path: Path) -> None:
    _longitudinal(
        tmp_path / "data" / "ds",
        ["01", "02", "04"],
        "participant_id\tsex\nsub-01\tF\nsub-02\tF\n",
        sessions="session_id\tage\nses-1\t36\n2\t48\nses-3\t50\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert _ages(outcome) == {"ses-01": 36, "ses-02": 48, "ses-04": None}
    assert "no such session folder, so not used: ses-3" in outcome.notes
    assert "sessions without a row: ses-04" in outcome.notes


def test_a_later_session_does_not_get_the_age_of_the_first(tmp_path: Path) -> None:
    _longitudinal(
        tmp_path / "data" / "ds",
        ["m120", "bl", "m12"],
        "participant_id\tage\tsex\nsub-01\t60\tF\nsub-02\t40\tF\n",
        sessions="session_id\tage\nbl\tn/a\nm120\tn/a\nm12\t61\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert _ages(outcome) == {"ses-bl": 60, "ses-m12": 61, "ses-m120": None}
    assert set(outcome.scans["sex"]) == {"F"}
    assert "used for the first session alone" in outcome.notes


def test_a_table_of_participants_may_have_a_row_for_every_session(tmp_path: Path) -> None:
    _longitudinal(
        tmp_path / "data" / "ds",
        ["1", "2"],
        "participant_id\tsession_id\tage\tsite\n"
        "sub-01\tses-1\t60\tX\nsub-01\tses-2\t65\tY\nsub-02\tses-1\t40\tX\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert _ages(outcome) == {"ses-1": 60, "ses-2": 65}
    assert outcome.scans["site"].tolist() == ["X", "Y", "X"]
    assert "disagree" not in outcome.notes


def test_codes_are_read_by_their_levels(tmp_path: Path) -> None:
    ds = bids(
        tmp_path / "data" / "ds",
        4,
        "participant_id\tage\tsex\n01\t20\t1\n02\t30\t2.0\n03\t40\tF\n04\t40\t3\n",
    )
    levels = {"1": "male", "2": {"Description": "Female sex"}, "3": "intersex"}
    (ds / "participants.json").write_text(json.dumps({"Sex": {"Levels": levels}}))
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["sex"].fillna("n/a").tolist() == ["M", "F", "F", "n/a"]
    assert "codes of 'sex' are read by its Levels: 1 is male, 2 is Female" in outcome.notes


def test_labels_spelled_otherwise_find_their_folders_with_a_note(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 3, "participant_id\tage\n1.0\t20\nSub-02\t30\n7\t40\n")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist()[:2] == [20, 30]
    assert "2 labels are spelled otherwise than their folders" in outcome.notes
    assert outcome.excluded["ds/participants.tsv"].startswith("no image: sub-7 is listed")


@pytest.mark.parametrize("header", ["subject", "Participant", "ID", "particpant_id"])
def test_a_table_without_quite_its_first_column_stops_the_run(header: str, tmp_path: Path) -> None:
    bids(tmp_path / "data" / "good", 2)
    bids(tmp_path / "data" / "bad", 2, f"{header}\tage\nsub-01\t3\nsub-02\t4\n", seed=1)
    with pytest.raises(DataError, match=f"bad/participants.tsv.*Did you mean '{header}'"):
        run(tmp_path / "data", tmp_path / "out")


def test_phenotype_tables_and_the_sessions_of_all_are_read_and_give_way(tmp_path: Path) -> None:
    ds = tmp_path / "data" / "ds"
    _longitudinal(ds, ["1", "2"], "participant_id\tsex\tsite\nsub-01\tF\tX\nsub-02\tM\tX\n")
    (ds / "sessions.tsv").write_text(
        "participant_id\tsession_id\tage\nsub-01\tses-1\t60\nsub-01\tses-2\t65\n9\t1\t70\n"
    )
    (ds / "phenotype").mkdir()
    (ds / "phenotype" / "a.tsv").write_text(
        "participant_id\tage\tsite\tdiagnosis\n1\t50\tY\tCN\nsub-02\t40\tY\tAD\n"
    )
    (ds / "phenotype" / "b.tsv").write_text("nothing\tof\tuse\n")
    outcome = run(tmp_path / "data", tmp_path / "out", columns={"diagnosis": DIAGNOSIS})
    assert outcome.scans["age"].tolist() == [60, 65, 40]
    assert outcome.scans["diagnosis"].tolist() == ["CN", "CN", "AD"]
    assert set(outcome.scans["site"]) == {"X"}
    assert "not read: unreadable table: no column 'participant_id'" in outcome.notes
    assert "1 subjects have no folder: not used" in outcome.notes


def test_the_note_on_a_missing_table_tells_what_other_tables_say(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2, None)
    (ds / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\n1\t44\n")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist()[0] == 44
    assert "there is no such table: what other tables do not say is n/a" in outcome.notes


@pytest.mark.parametrize("name", ["participants.csv", "PARTICIPANTS.TSV"])
def test_a_table_saved_under_another_name_is_read_and_another_table_noted(
    name: str, tmp_path: Path
) -> None:
    ds = bids(tmp_path / "data" / "ds", 2, None)
    (ds / name).write_text("participant_id,age\nsub-01,20\nsub-02,30\n")
    for hidden in ("~$clinic.xlsx", "._clinic.csv", ".~lock.clinic.csv#"):
        (ds / hidden).touch()
    (ds / "clinic.csv").touch()
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist() == [20, 30]
    assert outcome.notes.count("none of the tables that have labels") == 1


def test_what_tables_of_one_rank_contradict_is_na(tmp_path: Path) -> None:
    ds = bids(
        tmp_path / "data" / "ds", 2, "participant_id\tage\tsex\nsub-01\t60\tF\nsub-02\t61\tF\n"
    )
    (ds / "phenotype").mkdir()
    for name, diagnosis, ad, sex in (("bl", "CN", "AD", "F"), ("m12", "AD", "ad", "M")):
        (ds / f"phenotype/{name}.tsv").write_text(
            f"participant_id\tdiagnosis\tsex\nsub-01\t{diagnosis}\tF\nsub-02\t{ad}\t{sex}\n"
        )
    (ds / "sub-01/sub-01_sessions.tsv").write_text("session_id\tsex\n1\tM\n")
    outcome = run(tmp_path / "data", tmp_path / "out", columns={"diagnosis": DIAGNOSIS})
    assert outcome.scans["diagnosis"].fillna("n/a").tolist() == ["n/a", "AD"]
    assert outcome.scans["sex"].fillna("n/a").tolist() == ["n/a", "F"]
    assert "'diagnosis' of 1 subjects or sessions is another in m12.tsv" in outcome.notes
    assert "sex of 1 scans is F in one table and M in another" in outcome.notes


def test_a_table_of_scans_has_units_too_and_its_rows_meet_images_or_are_noted(
    tmp_path: Path,
) -> None:
    ds = bids(tmp_path / "data" / "ds", 2, None)
    (ds / "scans.json").write_text(json.dumps({"age": {"Units": "months"}}))
    for number, folder in ((1, "anat/"), (2, "")):
        (ds / f"sub-0{number}/sub-0{number}_scans.tsv").write_text(
            f"filename\tage\n{folder}sub-0{number}_T1w.nii.gz\t36\nfunc/x_bold.nii.gz\t36\n"
        )
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert outcome.scans["age"].tolist()[0] == 3
    assert "sub-02_scans.tsv\t1 rows name no image" in outcome.notes


def test_tables_and_dictionaries_that_were_not_fetched_are_told(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 3)
    for name in ("participants.json", "sub-01/sub-01_sessions.tsv"):
        (ds / name).symlink_to(".git/annex/objects/x/y/KEY/KEY")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert "participants.json\ta link to nothing: fetch it" in outcome.notes
    (why,) = outcome.excluded.values()
    assert why.startswith("broken link: the table itself is not there. Fetch it")


def test_a_visit_without_a_row_does_not_get_that_of_another(tmp_path: Path) -> None:
    _longitudinal(
        tmp_path / "data" / "ds",
        ["1", "2"],
        "participant_id\tvisit\tage\tdiagnosis\nsub-01\t2\t65\tAD\nsub-02\t1\t40\tCN\n"
        "sub-03\t1\t40\tCN\nsub-03\t2\t41\tCN\n",
    )
    outcome = run(tmp_path / "data", tmp_path / "out", columns={"diagnosis": DIAGNOSIS})
    assert _ages(outcome) == {"ses-1": None, "ses-2": 65}
    assert outcome.scans["diagnosis"].fillna("n/a").tolist() == ["n/a", "AD", "CN"]
    assert "sessions without a row: ses-1" in outcome.notes
