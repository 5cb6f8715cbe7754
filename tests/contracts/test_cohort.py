from __future__ import annotations

import hmac
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from neurofoundry.contracts.cohort import SCANS, scan_path
from neurofoundry.contracts.encoder import PretrainedOn, read_pretrained
from neurofoundry.contracts.splits import Splits, find_leaks, guard_leaks
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES
from neurofoundry.errors import DataError
from neurofoundry.tasks import Classification, Condition, Regression, parse_task

SHARES = {"pretrain": 0.3, "train": 0.35, "val": 0.12, "test": 0.23}


def scans(**columns: list) -> pd.DataFrame:
    """A table of scans, one a person, but for the columns given."""
    count = max((len(values) for values in columns.values()), default=2)
    table = pd.DataFrame(
        {
            "scan_id": [f"a_sub-{i:02d}_ses-1" for i in range(count)],
            "dataset": "a",
            "subject": [f"sub-{i:02d}" for i in range(count)],
            "session": "ses-1",
            "person": [f"a/sub-{i:02d}" for i in range(count)],
            "source": "bids",
            "path": [f"a/sub-{i:02d}.nii.gz" for i in range(count)],
            "sha256": [f"{i:064x}" for i in range(count)],
            "split": "train",
            "age": 60.5,
            "sex": "F",
            "site": "a",
            "scanner": None,
            "field_strength": 3.0,
        }
    )
    return table.assign(**columns)


class TestTables:
    def test_a_table_reads_back_as_written(self, tmp_path: Path) -> None:
        table = scans(age=[60.5, np.nan], usable=[True, False], reason=[None, "no brain"])
        table["volume_sha256"] = ["0" * 64, None]
        write_table(table, tmp_path / "scans.tsv", VOLUMES)
        assert "n/a" in (tmp_path / "scans.tsv").read_text()
        assert "\ttrue\t" in (tmp_path / "scans.tsv").read_text()
        found = read_table(tmp_path / "scans.tsv", VOLUMES)
        assert found["usable"].tolist() == [True, False]
        assert found["age"].isna().tolist() == [False, True]
        assert found["reason"].isna().tolist() == [True, False]
        assert found["scanner"].isna().all()
        pd.testing.assert_frame_equal(
            found[["scan_id", "person", "sha256", "split"]],
            table[["scan_id", "person", "sha256", "split"]],
            check_dtype=False,
        )

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("split", ["train", "holdout"]),
            ("scan_id", ["same", "same"]),
            ("scan_id", ["a b", "c"]),
            ("age", [60.0, 200.0]),
            ("sex", ["F", "female"]),
            ("sha256", ["0" * 64, "abc"]),
            ("site", ["a", None]),
        ],
    )
    def test_a_value_that_breaks_the_contract_is_named(
        self, tmp_path: Path, column: str, values: list
    ) -> None:
        with pytest.raises(DataError, match=f"column '{column}'"):
            write_table(scans(**{column: values}), tmp_path / "scans.tsv", SCANS)
        assert not list(tmp_path.iterdir())

    def test_a_missing_column_or_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="column 'site'"):
            write_table(scans().drop(columns="site"), tmp_path / "scans.tsv", SCANS)
        with pytest.raises(DataError, match="cannot be read"):
            read_table(tmp_path / "scans.tsv", SCANS)

    def test_a_converted_scan_lies_in_the_cohort_and_another_in_the_data(self) -> None:
        roots = {"data": Path("data"), "cohort": Path("cohort")}
        assert scan_path({"source": "bids", "path": "x.nii"}, **roots) == Path("data/x.nii")
        assert scan_path({"source": "dicom", "path": "x.nii"}, **roots) == Path("cohort/x.nii")


class TestSplits:
    def test_shares_are_met(self) -> None:
        splits = Splits(**SHARES)
        found = pd.Series([splits.assign(f"a/{i}", seed=3) for i in range(20_000)])
        for name, share in SHARES.items():
            # five standard deviations of a binomial share
            assert abs((found == name).mean() - share) < 5 * np.sqrt(share * (1 - share) / 20_000)

    def test_a_person_stays_whoever_else_is_there_and_moves_with_the_seed(self) -> None:
        splits = Splits(**SHARES)
        first = {person: splits.assign(person, seed=3) for person in ("a/1", "a/2", "b/1")}
        assert first == {person: splits.assign(person, seed=3) for person in reversed(first)}
        assert any(
            splits.assign(f"a/{i}", seed=3) != splits.assign(f"a/{i}", seed=4) for i in range(20)
        )

    def test_shares_must_sum_to_one(self) -> None:
        with pytest.raises(ValidationError, match=r"is 1\.1, expected 1"):
            Splits(pretrain=0.4, train=0.35, val=0.12, test=0.23)


class TestLeaks:
    def test_a_clean_cohort_passes(self) -> None:
        guard_leaks(
            scans(split=["train", "test"]), pretrained=PretrainedOn(frozenset({"a/sub-00"}))
        )

    def test_a_person_in_two_splits_is_found(self) -> None:
        table = scans(split=["train", "test"], person=["a/x", "a/x"])
        assert [leak.splits for leak in find_leaks(table)] == [("test", "train")]
        with pytest.raises(DataError, match="the subject a/x is in test and train"):
            guard_leaks(table)

    def test_the_same_image_under_two_names_is_found(self) -> None:
        with pytest.raises(DataError, match="the image 000000000000 is in"):
            guard_leaks(scans(split=["train", "test"], sha256=["0" * 64] * 2))

    @pytest.mark.parametrize("split", ["val", "test", "ood"])
    def test_a_held_out_person_must_not_have_been_pretrained_on(self, split: str) -> None:
        with pytest.raises(DataError, match="a/sub-01 was pretrained on"):
            guard_leaks(
                scans(split=["train", split]), pretrained=PretrainedOn(frozenset({"a/sub-01"}))
            )

    def test_a_held_out_image_must_not_have_been_pretrained_on_under_another_name(
        self, tmp_path: Path
    ) -> None:
        table = scans(split=["train", "ood"])
        write_table(pd.DataFrame({"person": ["elsewhere/x"]}), tmp_path / "subjects.tsv")
        guard_leaks(table, pretrained=read_pretrained(tmp_path))
        assert read_pretrained(tmp_path).images is None
        write_table(pd.DataFrame({"sha256": table["sha256"][1:]}), tmp_path / "images.tsv")
        with pytest.raises(DataError, match=r"the image of \S+ was pretrained on.* is in ood"):
            guard_leaks(table, pretrained=read_pretrained(tmp_path))
        write_table(pd.DataFrame({"sha256": table["sha256"][:1]}), tmp_path / "images.tsv")
        guard_leaks(table, pretrained=read_pretrained(tmp_path))

    def test_a_held_out_person_is_found_behind_salted_hashes(self, tmp_path: Path) -> None:
        table = scans(split=["train", "val"])
        seen = [
            hmac.digest(b"grain", person.encode(), "sha256").hex() for person in table["person"]
        ]
        hashed = pd.DataFrame({"person_hash": seen, "salt": "grain"})
        write_table(hashed[:1], tmp_path / "subjects.tsv")
        guard_leaks(table, pretrained=read_pretrained(tmp_path))
        write_table(hashed, tmp_path / "subjects.tsv")
        with pytest.raises(DataError, match="a/sub-01 was pretrained on"):
            guard_leaks(table, pretrained=read_pretrained(tmp_path))

    def test_an_encoder_without_a_list_says_nothing_of_anybody(self, tmp_path: Path) -> None:
        seen = read_pretrained(tmp_path)
        assert seen.persons is None
        guard_leaks(scans(split=["train", "val"]), pretrained=seen)


class TestTask:
    alzheimers = Classification(
        column="diagnosis",
        classes=("CN", "AD"),
        eligible={"age": Condition(min=55)},
    )
    age = Regression(column="age", min_subjects=1)

    def cohort(self) -> pd.DataFrame:
        labels = ["CN", "AD", "CN", "AD"] * 3
        return scans(
            split=[split for split in ("train", "val", "test") for _ in range(4)],
            diagnosis=labels,
            age=[60.0] * 12,
        )

    def test_eligible_and_labelled_scans_are_selected(self) -> None:
        table = scans(diagnosis=["CN", "AD", "MS", None, "AD"], age=[60, 54.9, 60, 60, np.nan])
        assert self.alzheimers.select(table).index.tolist() == [0]
        assert self.age.select(table).index.tolist() == [0, 1, 2, 3]
        assert self.alzheimers.targets(table.iloc[:2]).tolist() == [0.0, 1.0]

    def test_conditions(self) -> None:
        values = pd.Series(["1", "2", None, "x"])
        assert Condition(min=2).holds(values).tolist() == [False, True, False, False]
        assert Condition(max=1).holds(values).tolist() == [True, False, False, False]
        assert Condition(one_of=("x",)).holds(values).tolist() == [False, False, False, True]
        for wrong in ({}, {"min": 1, "one_of": ["x"]}):
            with pytest.raises(ValidationError, match="either min and/or max, or one_of"):
                Condition(**wrong)

    def test_a_cohort_that_serves_has_no_gap(self) -> None:
        assert self.alzheimers.gap(self.cohort()) is None
        assert self.age.gap(self.cohort()) is None

    def test_each_gap_is_told_in_words(self) -> None:
        table = self.cohort()
        no_case = table[~((table["split"] == "val") & (table["diagnosis"] == "AD"))]
        assert self.alzheimers.gap(no_case) == (
            "split 'val' has 0 subjects with diagnosis=AD, 2 are needed"
        )
        assert self.alzheimers.gap(table.drop(columns="diagnosis")) == (
            "no dataset has the column 'diagnosis'"
        )
        outside = pd.concat([table, scans(split=["ood"], diagnosis=["CN"])])
        assert "split 'ood' has 1 subjects" in str(self.alzheimers.gap(outside))
        twice = table.assign(person="a/one")
        assert "has 1 subjects" in str(self.alzheimers.gap(twice))

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"kind": "classification", "column": "sex"}, "at least two classes"),
            ({"kind": "classification", "column": "sex", "classes": ["F", "F"]}, "duplicate"),
            ({"kind": "regression", "column": "age", "classes": ["F", "M"]}, "no classes"),
            ({"kind": "survival", "column": "age"}, "classification"),
        ],
    )
    def test_a_declaration_that_makes_no_sense_is_refused(self, values: dict, words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            parse_task(values)
