from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neurofoundry.errors import DataError, UsageError
from tests.support.building import EVERY_SPLIT, SEX, bids, head, run, write_scan


def test_adding_subjects_moves_nobody(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 12)
    before = run(tmp_path / "data", tmp_path / "out", splits=EVERY_SPLIT).scans["split"]
    bids(tmp_path / "data" / "ds", 30)
    bids(tmp_path / "data" / "another", 6, seed=1)
    after = run(tmp_path / "data", tmp_path / "out", splits=EVERY_SPLIT).scans["split"]
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
        tmp_path / "data", tmp_path / "out", splits=EVERY_SPLIT, shared_subjects=[["two", "one"]]
    )
    by_person = outcome.scans.groupby("person")["split"]
    assert by_person.nunique().eq(1).all()
    assert by_person.size().eq(3).all()
    assert set(outcome.scans["person"].str.partition("/")[0]) == {"two"}


def test_whole_datasets_and_sites_are_held_out(tmp_path: Path) -> None:
    table = "participant_id\tsite\n" + "".join(f"sub-{n:02d}\t{'XY'[n % 2]}\n" for n in range(1, 9))
    bids(tmp_path / "data" / "a", 8, table)
    bids(tmp_path / "data" / "b", 3, seed=1)
    splits = {**EVERY_SPLIT, "ood": {"dataset": ["b"], "site": ["X"]}}
    scans = run(tmp_path / "data", tmp_path / "out", splits=splits).scans
    held_out = (scans["dataset"] == "b") | (scans["site"] == "X")
    assert ((scans["split"] == "ood") == held_out).all()
    assert held_out.sum() == 7


def test_a_person_with_one_scan_in_a_site_held_out_is_held_out_whole(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "a", 12)
    for session, site in (("ses-1", "X"), ("ses-2", "Y")):
        write_scan(ds / f"sub-m/{session}/anat/sub-m_{session}_T1w.nii.gz", ord(site))
        (ds / f"sub-m/{session}/sub-m_{session}_scans.tsv").write_text(
            f"filename\tsite\nanat/sub-m_{session}_T1w.nii.gz\t{site}\n"
        )
    splits = {**EVERY_SPLIT, "ood": {"site": ["X"]}}
    scans = run(tmp_path / "data", tmp_path / "out", splits=splits).scans
    assert scans.loc[scans["split"] == "ood", "session"].tolist() == ["ses-1", "ses-2"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"splits": {**EVERY_SPLIT, "ood": {"dataset": ["gone"]}}},
            "ood.dataset: no dataset is called 'gone'. Found: ds",
        ),
        (
            {"splits": {**EVERY_SPLIT, "ood": {"site": ["gone"]}}},
            "ood.site: no site is called 'gone'",
        ),
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
        "unknown split: 'set' is 'valid' for this person, expected one of pretrain, train"
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


def test_datasets_that_share_subjects_share_persons(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "one", 3)
    bids(tmp_path / "data" / "two", 2, seed=1)
    write_scan(tmp_path / "data/two/sub-01/anat/sub-01_T1w.nii.gz", head(1))
    outcome = run(tmp_path / "data", tmp_path / "out", shared_subjects=[["one", "two"]])
    persons = outcome.scans["person"].to_dict()
    assert persons == {
        "one_sub-01_ses-1": "one/sub-01",
        "one_sub-02_ses-1": "one/sub-02",
        "one_sub-03_ses-1": "one/sub-03",
        "two_sub-02_ses-1": "one/sub-02",
    }
    assert outcome.excluded["two/sub-01/anat/sub-01_T1w.nii.gz"].endswith("of the same person")


def test_the_balance_of_splits_adds_up(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "a", 20)
    bids(tmp_path / "data" / "b", 15, seed=1)
    write_scan(tmp_path / "data/b/sub-99/ses-1/anat/sub-99_ses-1_T1w.nii.gz", 501)
    write_scan(tmp_path / "data/b/sub-99/ses-2/anat/sub-99_ses-2_T1w.nii.gz", 502)
    outcome = run(tmp_path / "data", tmp_path / "out", tasks={"sex": SEX}, splits=EVERY_SPLIT)
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
