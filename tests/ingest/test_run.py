from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neurofoundry.contracts.cohort import EXCLUDED
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError, UsageError
from tests.support.building import DIAGNOSIS, bids, run, write_scan

SPLITS = {"pretrain": 0.3, "train": 0.3, "val": 0.2, "test": 0.2}
SEX = {"kind": "classification", "column": "sex", "classes": ["F", "M"]}
AGE = {"kind": "regression", "column": "age"}


def test_tables_are_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    bids(data / "one", 9)
    bids(data / "two", 5, seed=1)
    (data / "one/sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"")
    write_scan(data / "one/sub-04/anat/sub-04_T2w.nii.gz", 70)
    outcomes = [
        run(data, tmp_path / f"out{workers}", splits=SPLITS, workers=workers)
        for workers in (1, 2, 7)
    ]
    assert len({outcome.bytes() for outcome in outcomes}) == 1
    assert len({outcome.work.data_version for outcome in outcomes}) == 1
    assert len(outcomes[0].work.data_version) == 64


def test_a_second_run_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 4)
    first = run(tmp_path / "data", tmp_path / "out").bytes()
    (tmp_path / "out" / "nifti").mkdir()
    (tmp_path / "out" / "nifti" / ".convert-x").touch()
    again = run(tmp_path / "data", tmp_path / "out")
    assert again.bytes() == first
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "excluded.tsv",
        "notes.tsv",
        "scans.tsv",
        "splits.tsv",
    ]


def test_the_data_version_follows_everything_that_was_used_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ds = bids(data / "ds", 3)

    def version() -> str:
        return run(data, tmp_path / "out").work.data_version

    first = version()
    (ds / "README").write_text("hello")
    (ds / "sub-01/anat/.hidden").write_text("x")
    assert version() == first
    shutil.move(data, tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "out").work.data_version == first
    shutil.move(tmp_path / "moved", data)
    table = ds / "participants.tsv"
    table.write_text(table.read_text().replace("30", "31"))
    second = version()
    write_scan(ds / "sub-01/anat/sub-01_T1w.nii.gz", 80)
    third = version()
    (ds / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    assert len({first, second, third, version()}) == 4


def test_adding_subjects_moves_nobody(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 12)
    before = run(tmp_path / "data", tmp_path / "out", splits=SPLITS).scans["split"]
    bids(tmp_path / "data" / "ds", 30)
    bids(tmp_path / "data" / "another", 6, seed=1)
    after = run(tmp_path / "data", tmp_path / "out", splits=SPLITS).scans["split"]
    assert len(after) == 36
    assert before.equals(after[before.index])
    assert before.nunique() == 4


def test_sessions_and_shared_subjects_stay_in_one_split(tmp_path: Path) -> None:
    one = tmp_path / "data" / "one"
    bids(tmp_path / "data" / "two", 12, seed=1)
    for number in range(1, 13):
        for session in ("ses-1", "ses-2"):
            name = f"sub-{number:02d}"
            file = one / name / session / "anat" / f"{name}_{session}_T1w.nii.gz"
            write_scan(file, 200 + 10 * number + int(session[-1]))
    outcome = run(
        tmp_path / "data", tmp_path / "out", splits=SPLITS, shared_subjects=[["two", "one"]]
    )
    by_person = outcome.scans.groupby("person")["split"]
    assert by_person.nunique().eq(1).all()
    assert by_person.size().eq(3).all()
    assert set(outcome.scans["person"].str.partition("/")[0]) == {"two"}


def test_whole_datasets_and_sites_are_kept_apart(tmp_path: Path) -> None:
    table = "participant_id\tsite\n" + "".join(f"sub-{n:02d}\t{'XY'[n % 2]}\n" for n in range(1, 9))
    bids(tmp_path / "data" / "a", 8, table)
    bids(tmp_path / "data" / "b", 3, seed=1)
    splits = {**SPLITS, "ood": {"dataset": ["b"], "site": ["X"]}}
    scans = run(tmp_path / "data", tmp_path / "out", splits=splits).scans
    apart = (scans["dataset"] == "b") | (scans["site"] == "X")
    assert ((scans["split"] == "ood") == apart).all()
    assert apart.sum() == 7


def test_a_person_with_one_scan_in_a_site_kept_apart_is_kept_apart_whole(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "a", 12)
    for session, site in (("ses-1", "X"), ("ses-2", "Y")):
        write_scan(ds / f"sub-m/{session}/anat/sub-m_{session}_T1w.nii.gz", ord(site))
        (ds / f"sub-m/{session}/sub-m_{session}_scans.tsv").write_text(
            f"filename\tsite\nanat/sub-m_{session}_T1w.nii.gz\t{site}\n"
        )
    splits = {**SPLITS, "ood": {"site": ["X"]}}
    scans = run(tmp_path / "data", tmp_path / "out", splits=splits).scans
    assert scans.loc[scans["split"] == "ood", "session"].tolist() == ["ses-1", "ses-2"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"splits": {**SPLITS, "ood": {"dataset": ["gone"]}}},
            "ood.dataset: no dataset is called 'gone'. Found: ds",
        ),
        ({"splits": {**SPLITS, "ood": {"site": ["gone"]}}}, "ood.site: no site is called 'gone'"),
        ({"shared_subjects": [["ds", "gone"]]}, "shared_subjects: no dataset is called 'gone'"),
        ({"split_column": "gone"}, "split_column: no table of any dataset has the column 'gone'"),
    ],
)
def test_parameters_that_would_have_no_effect_are_refused(
    params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    bids(tmp_path / "data" / "ds", 2)
    with pytest.raises(UsageError) as refused:
        run(tmp_path / "data", tmp_path / "out", **params)
    assert message in str(refused.value)


def published(tmp_path: Path, cells: list[str]) -> Path:
    rows = "".join(f"sub-{number:02d}\t{cell}\n" for number, cell in enumerate(cells, 1))
    bids(tmp_path / "data" / "ds", len(cells), f"participant_id\tset\n{rows}")
    return tmp_path / "data"


def test_published_splits_are_honoured(tmp_path: Path) -> None:
    data = published(tmp_path, ["pretrain", "Pretrain", "train", "test", "ood", "n/a", "valid"])
    outcome = run(data, tmp_path / "out", split_column="set")
    assert outcome.scans["split"].tolist() == [
        "pretrain", "pretrain", "train", "test", "ood", "pretrain",
    ]  # fmt: skip
    assert outcome.excluded["ds/sub-07/anat/sub-07_T1w.nii.gz"].startswith(
        "unknown split: 'set' says 'valid' about this person, expected one of pretrain, train"
    )


def test_a_person_published_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    data = published(tmp_path, ["pretrain", "pretrain", "n/a"])
    for session, split in (("ses-1", "train"), ("ses-2", "test")):
        scan = data / f"ds/sub-m/{session}/anat/sub-m_{session}_T1w.nii.gz"
        write_scan(scan, ord(split[1]))
        (data / f"ds/sub-m/{session}/sub-m_{session}_scans.tsv").write_text(
            f"filename\tset\nanat/{scan.name}\t{split}\n"
        )
    with pytest.raises(DataError, match="the subject ds/sub-m is in test and train"):
        run(data, tmp_path / "out", split_column="set")


def test_every_gap_is_listed_and_the_excluded_files_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ds = bids(tmp_path / "data" / "ds", 6)
    (ds / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    write_scan(ds / "sub-02/anat/sub-02_T2w.nii.gz", 70)
    write_scan(ds / "sub-02/anat/sub-02_FLAIR.nii.gz", 71)
    out = tmp_path / ".cohort.partial"
    dementia = {"kind": "classification", "column": "diagnosis", "classes": ["CN", "AD"]}
    tasks = {
        "sex": SEX,
        "dementia": dementia,
        "age": {**AGE, "required": False},
        "other": {**dementia, "required": False},
    }
    with pytest.raises(DataError) as refused:
        run(
            tmp_path / "data",
            out,
            tasks=tasks,
            columns={"diagnosis": DIAGNOSIS},
            splits={**SPLITS, "pretrain": 0.0001, "train": 0.5999},
        )
    message = str(refused.value)
    for part in (
        "5 scans of 5 persons can be used; excluded: 2 × not T1w, 1 × empty file.",
        "split 'pretrain' has 0 persons, 2 are needed",
        "task 'sex': split '",
        "task 'dementia': no dataset has the column 'diagnosis'",
        ".cohort.partial/excluded.tsv",
        "required: false",
    ):
        assert part in message
    assert "task 'age'" not in message
    assert "task 'other'" not in message
    assert str(tmp_path) not in message + capsys.readouterr().err
    excluded = read_table(out / "excluded.tsv", EXCLUDED)
    assert len(excluded) == 3
    assert not (out / "scans.tsv").exists()


def test_tasks_that_may_stay_without_an_answer_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bids(tmp_path / "data" / "ds", 3)
    outcome = run(tmp_path / "data", tmp_path / "out", tasks={"age": {**AGE, "required": False}})
    gap = "split 'train' has 0 subjects with a label, 2 are needed"
    assert outcome.work.summary["not_estimable"] == {"age": gap}
    assert f"task 'age' cannot be estimated: {gap}" in capsys.readouterr().err


def test_the_balance_of_splits_adds_up(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "a", 20)
    bids(tmp_path / "data" / "b", 15, seed=1)
    write_scan(tmp_path / "data/b/sub-99/ses-1/anat/sub-99_ses-1_T1w.nii.gz", 501)
    write_scan(tmp_path / "data/b/sub-99/ses-2/anat/sub-99_ses-2_T1w.nii.gz", 502)
    outcome = run(tmp_path / "data", tmp_path / "out", tasks={"sex": SEX}, splits=SPLITS)
    balance = pd.read_csv(tmp_path / "out/splits.tsv", sep="\t", keep_default_na=False)
    assert list(balance.columns) == ["split", "site", "label", "value", "persons", "scans"]
    scans = outcome.scans.reset_index()
    scans["sex"] = scans["sex"].astype(object).fillna("n/a")
    for row in balance.itertuples():
        chosen = scans[(scans["split"] == row.split) & (scans["site"] == row.site)]
        if row.label != "all":
            chosen = chosen[chosen[row.label] == row.value]
        assert (row.persons, row.scans) == (chosen["person"].nunique(), len(chosen))
    assert balance.loc[balance["label"] == "sex", "scans"].sum() == 37
    assert outcome.work.summary["scans"] == 37
    assert outcome.work.summary["persons"] == 36
    assert sum(outcome.work.summary["by_split"].values()) == 36


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    for number in (1, 2):
        (ds / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        run(tmp_path / "data", tmp_path / "out", tasks={"sex": SEX})
    assert "not one scan can be used" in str(refused.value)
    assert "ds/sub-01/anat/sub-01_T1w.nii.gz: empty file: 0 bytes" in str(refused.value)


def test_real_clinical_folders_become_a_cohort(real_mri: Path, tmp_path: Path) -> None:
    outcome = run(real_mri, tmp_path / "out", columns={"diagnosis": DIAGNOSIS})
    assert list(outcome.scans.index) == [
        "ms-ljubljana_sub-01_ses-1",
        "ms-ljubljana_sub-01_ses-2",
        "ms-ljubljana_sub-03_ses-2",
        "ms-ljubljana_sub-04_ses-1",
        "niivue_sub-chris_ses-1",
    ]
    assert outcome.excluded == {
        "ms-ljubljana/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz": (
            "not T1w: its name ends in 'FLAIR'"
        )
    }
    assert "diagnosis is 'MS' in 4 scans" in outcome.notes
