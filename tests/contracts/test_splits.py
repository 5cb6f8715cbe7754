from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from neurofoundry.contracts.encoder import PretrainedOn, read_pretrained
from neurofoundry.contracts.sketches import sketch
from neurofoundry.contracts.splits import Splits, find_leaks, guard_leaks
from neurofoundry.contracts.tables import write_table
from neurofoundry.errors import DataError
from tests.contracts.test_sketches import brain
from tests.support.scans import scans

SHARES = {"pretrain": 0.3, "train": 0.35, "val": 0.12, "test": 0.23}


def test_shares_are_met() -> None:
    splits = Splits(**SHARES)
    found = pd.Series([splits.assign(f"a/{i}", seed=3) for i in range(20_000)])
    for name, share in SHARES.items():
        # five standard deviations of a binomial share
        assert abs((found == name).mean() - share) < 5 * np.sqrt(share * (1 - share) / 20_000)


def test_a_person_stays_whoever_else_is_there_and_moves_with_the_seed() -> None:
    splits = Splits(**SHARES)
    first = {person: splits.assign(person, seed=3) for person in ("a/1", "a/2", "b/1")}
    assert first == {person: splits.assign(person, seed=3) for person in reversed(first)}
    assert any(
        splits.assign(f"a/{i}", seed=3) != splits.assign(f"a/{i}", seed=4) for i in range(20)
    )


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match=r"is 1\.1, expected 1"):
        Splits(pretrain=0.4, train=0.35, val=0.12, test=0.23)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**SHARES, "folds": 5}, "folds has no effect with mode hash"),
        ({**SHARES, "column": "set"}, "column has no effect with mode hash"),
        ({**SHARES, "mode": "folds", "folds": 5}, "train has no effect with mode folds"),
        ({"mode": "folds"}, "mode folds needs folds, such as 5"),
        ({"mode": "folds", "folds": 2}, "greater than or equal to 3"),
        ({"mode": "folds", "folds": 5, "pretrain": 1}, "nobody is left for the folds"),
        ({"mode": "stratified"}, "mode stratified needs a share for train, val, test"),
        ({}, "mode hash needs a share for train, val, test"),
        ({"mode": "published"}, "needs a column of the datasets' tables, or a file"),
        ({"mode": "published", "column": "set", "train": 1}, "needs a share for val, test"),
        ({"mode": "published", "file": "../splits.tsv"}, "expected a path below the data root"),
    ],
)
def test_keys_that_are_missing_or_have_no_effect_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Splits(**values)


def test_folds_share_what_pretraining_leaves() -> None:
    shares = Splits(mode="folds", folds=4, pretrain=0.2).shares
    assert shares == {"pretrain": 0.2, "1": 0.2, "2": 0.2, "3": 0.2, "4": 0.2}


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


def test_a_copy_of_a_pretrained_image_under_another_hash_is_a_leak() -> None:
    drawn = {seed: sketch(brain(seed)) for seed in (1, 2)}
    seen = PretrainedOn(frozenset(), frozenset({"a" * 64}), sketches=(drawn[1],))
    table = pd.DataFrame(
        {
            "scan_id": ["copy", "other", "unknown", "trained"],
            "person": list("ABCD"),
            "sha256": [letter * 64 for letter in "bcde"],
            "split": ["test", "test", "test", "train"],
            "sketch": [drawn[1], drawn[2], None, drawn[1]],
        }
    )
    with pytest.raises(DataError, match=r"1 subjects[^;]*a copy of the image of copy"):
        guard_leaks(table, pretrained=seen)
    guard_leaks(table.iloc[1:], pretrained=seen)
    guard_leaks(table.drop(columns="sketch"), pretrained=seen)
