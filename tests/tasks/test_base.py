from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from neurofoundry.tasks import Classification, Condition, Regression, parse_task
from tests.support.scans import scans


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
            "split 'val' has 0 subjects with diagnosis=AD, 1 is needed"
        )
        assert self.alzheimers.gap(table.drop(columns="diagnosis")) == (
            "no dataset has the column 'diagnosis'"
        )
        outside = pd.concat([table, scans(split=["ood"], diagnosis=["CN"])])
        assert "split 'ood' has 1 subject" in str(self.alzheimers.gap(outside))
        twice = table.assign(person="a/one")
        assert "has 1 subject" in str(self.alzheimers.gap(twice))

    @pytest.mark.parametrize(
        ("ill", "gap"),
        [
            ((2, 1, 2), None),
            ((2, 0, 3), "split 'val' has 0 subjects with diagnosis=AD, 1 is needed"),
            ((3, 1, 1), "split 'test' has 1 subject with diagnosis=AD, 2 are needed"),
            ((3, 1, 2), "split 'val' has 1 subject with diagnosis=AD, 2 are needed"),
        ],
    )
    def test_of_a_rare_class_val_has_what_train_and_test_leave_it(
        self, ill: tuple[int, ...], gap: str | None
    ) -> None:
        split = np.repeat(["train", "val", "test"], ill).tolist()
        rows = scans(split=split, diagnosis=["AD"] * len(split), age=[60.0] * len(split))
        healthy = self.cohort().query("diagnosis == 'CN'")
        assert self.alzheimers.gap(pd.concat([rows, healthy])) == gap

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
