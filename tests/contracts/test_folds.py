from __future__ import annotations

import pandas as pd
import pytest

from neurofoundry.contracts import folds
from neurofoundry.tasks import parse_task
from tests.support.scans import scans

SEX = parse_task({"kind": "classification", "column": "sex", "classes": ["F", "M"]})


def table(per_fold: int, count: int = 3) -> pd.DataFrame:
    """Persons of both sexes, ``per_fold`` of each in every fold."""
    fold = [f"{n}/{count}" for n in range(1, count + 1) for _ in range(2 * per_fold)]
    made = scans(split=["test"] * len(fold))
    return made.assign(fold=fold, sex=["F", "M"] * (len(fold) // 2))


def test_the_next_fold_validates_and_the_first_after_the_last() -> None:
    cohort = scans(split=["test", "test", "test", "pretrain", "ood"])
    cohort["fold"] = ["1/3", "2/3", "3/3", None, "2/3"]
    assert folds.count(cohort) == 3
    expected = [["test", "val", "train"], ["train", "test", "val"], ["val", "train", "test"]]
    for number, roles in enumerate(expected, 1):
        assert folds.in_fold(cohort, number)["split"].tolist() == [*roles, "pretrain", "ood"]


def test_a_cohort_without_folds_is_as_it_is() -> None:
    cohort = scans(split=["train", "test"])
    assert folds.count(cohort) == 0
    assert folds.in_fold(cohort, 0) is cohort


def test_every_fold_needs_persons_to_train_on_and_one_of_each_class_to_validate_on() -> None:
    assert folds.gap(SEX, table(2)) is None
    assert folds.gap(SEX, table(1)) == (
        "in fold 1, split 'train' has 1 subject with sex=F, 2 are needed"
    )
    cohort = table(3, 5)
    lacking = cohort[(cohort["fold"] != "3/5") | (cohort["sex"] == "F")]
    assert folds.gap(SEX, lacking) == (
        "in fold 2, split 'val' has 0 subjects with sex=M, 1 is needed"
    )


@pytest.mark.parametrize("split", ["test", "ood"])
def test_all_folds_together_need_the_least_number_to_test(split: str) -> None:
    cohort = table(3)
    if split == "ood":
        cohort = pd.concat([cohort, cohort[:2].assign(split="ood")])
    else:
        cohort = cohort[(cohort["sex"] == "F") | (cohort.index < 2)]
    assert f"split '{split}' has 1 subject with sex=" in str(folds.gap(SEX, cohort))


@pytest.mark.parametrize(("ill", "folds_to_do"), [(3, 0), (4, 4), (6, 5), (30, 5)])
def test_it_is_known_how_many_folds_would_do(ill: int, folds_to_do: int) -> None:
    cohort = scans(split=["train", "val", "test"] * 20)
    cohort["sex"] = ["M" if number < ill else "F" for number in range(60)]
    said = folds.would_do(SEX, cohort)
    assert f"folds: {folds_to_do}}}" in said if folds_to_do else said == ""
    for number in range(3, 6):
        dealt = cohort.assign(split="test", fold=_dealt(cohort, number))
        assert folds_to_do != number or folds.gap(SEX, dealt) is None


def _dealt(cohort: pd.DataFrame, count: int) -> pd.Series:
    return (cohort.groupby("sex").cumcount() % count + 1).astype(str) + f"/{count}"


def test_of_nobody_in_a_fold_all_stay_what_they_are() -> None:
    none = pd.DataFrame({"split": ["test"], "fold": ["1/3"]}).iloc[:0]
    assert folds.in_fold(none, 2).equals(none)
