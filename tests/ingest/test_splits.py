from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from neurofoundry.contracts import folds
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
        ({"split_column": "gone"}, "splits.column: no table of any dataset has the column 'gone'"),
        (
            {"splits": {"mode": "published", "file": "gone.tsv"}},
            "splits.file: 'gone.tsv': no such file below the data folder",
        ),
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


def test_published_splits_are_honoured_and_others_go_by_their_hash(tmp_path: Path) -> None:
    data = published(tmp_path, ["pretrain", "Pretrain", "train", "test", "ood", "n/a", "fold9"])
    outcome = run(data, tmp_path / "out", split_column="set")
    assert outcome.scans["split"].tolist() == [
        "pretrain", "pretrain", "train", "test", "ood", "pretrain",
    ]  # fmt: skip
    assert outcome.excluded["ds/sub-07/anat/sub-07_T1w.nii.gz"].startswith(
        "unknown split: 'fold9' for this person, expected one of pretrain, train"
    )


def test_train_val_and_test_are_enough_in_the_words_of_others(tmp_path: Path) -> None:
    cells = ["Training", "train", "validation", "valid", "testing", "holdout", "n/a", "TEST"]
    data = published(tmp_path, cells)
    splits = {"mode": "published", "column": "set", "values": {"test": ["Holdout"]}}
    outcome = run(data, tmp_path / "out", splits=splits)
    assert outcome.scans["split"].tolist() == [
        "train", "train", "val", "val", "test", "test", "pretrain", "test",
    ]  # fmt: skip


def test_what_params_say_of_a_word_comes_before_what_it_usually_means(tmp_path: Path) -> None:
    data = published(tmp_path, ["training", "training", "validation"])
    splits = {"mode": "published", "column": "set", "values": {"test": ["validation"]}}
    assert run(data, tmp_path / "out", splits=splits).scans["split"].iloc[2] == "test"


def test_ood_comes_before_what_is_published(tmp_path: Path) -> None:
    data = published(tmp_path, ["train", "train", "test"])
    bids(data / "far", 2, "participant_id\tset\nsub-01\ttrain\nsub-02\ttest\n", seed=1)
    splits = {"mode": "published", "column": "set", "ood": {"dataset": ["far"]}}
    scans = run(data, tmp_path / "out", splits=splits).scans
    assert scans["split"].tolist() == ["train", "train", "test", "ood", "ood"]


class TestPublishedInAFile:
    SPLITS: ClassVar = {"mode": "published", "file": "splits.csv"}

    def run(self, tmp_path: Path, table: str, **more: Any) -> list[str]:
        bids(tmp_path / "data" / "a", 3)
        bids(tmp_path / "data" / "b", 2, seed=1)
        (tmp_path / "data" / "splits.csv").write_text(table)
        splits = {**self.SPLITS, **more}
        return list(run(tmp_path / "data", tmp_path / "out", splits=splits).scans["split"])

    def test_subjects_are_found_with_or_without_prefix_and_dataset(self, tmp_path: Path) -> None:
        table = (
            "dataset,subject,split\na,01,train\na,sub-02,validation\nb,01,test\nb,sub-02,\n"
            ",03,train\n"
        )
        assert self.run(tmp_path, table) == ["train", "val", "train", "test", "pretrain"]

    def test_the_file_is_part_of_the_data_version(self, tmp_path: Path) -> None:
        versions = set()
        for word in ("train", "test"):
            bids(tmp_path / "data" / "a", 3)
            table = f"subject,split\n01,train\n02,train\n03,{word}\n"
            (tmp_path / "data" / "splits.csv").write_text(table)
            work = run(tmp_path / "data", tmp_path / word, splits=self.SPLITS).work
            versions.add(work.data_version)
        assert len(versions) == 2

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("subject,split\n01,train\n", "1 labels are in several datasets (a, b)"),
            ("dataset,subject,split\na,01,train\na,01,test\n", "line 3 says 'test' of a subject"),
            ("subject,fold\n03,1\n", "no column 'split'; found subject, fold"),
            ("name,split\n03,1\n", "Expected participant_id or subject, and the split"),
        ],
    )
    def test_a_table_that_is_unclear_is_refused(
        self, table: str, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError) as refused:
            self.run(tmp_path, table)
        assert message in str(refused.value)
        assert str(tmp_path) not in str(refused.value)


class TestFolds:
    SPLITS: ClassVar = {"mode": "folds", "folds": 3, "repeats": 2, "ood": {"dataset": ["far"]}}

    def scans(self, tmp_path: Path, **more: Any) -> pd.DataFrame:
        bids(tmp_path / "data" / "ds", 18)
        bids(tmp_path / "data" / "far", 4, seed=1)
        splits = {**self.SPLITS, **more}
        return run(tmp_path / "data", tmp_path / "out", tasks={"sex": SEX}, splits=splits).scans

    def test_everybody_is_tested_once_a_repeat(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path)
        assert set(scans["split"]) == {"test", "ood"}
        assert folds.count(scans) == 6
        roles = pd.DataFrame({n: folds.in_fold(scans, n)["split"] for n in range(1, 7)})
        inside = scans["split"] == "test"
        for repeat in (roles[[1, 2, 3]], roles[[4, 5, 6]]):
            for role in ("train", "val", "test"):
                assert ((repeat[inside] == role).sum(axis=1) == 1).all()
        assert (roles[~inside] == "ood").all(axis=None)
        assert not roles[1].equals(roles[4])
        for number in range(1, 7):
            counts = scans.groupby([roles[number], "sex"]).size()
            assert counts[["train", "val", "test"]].between(2, 4).all()

    def test_those_for_pretraining_are_in_no_fold(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path, pretrain=1 / 3)
        alone = scans["split"] == "pretrain"
        assert alone.sum() == 6
        assert scans["fold"].isna().equals(alone)


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
