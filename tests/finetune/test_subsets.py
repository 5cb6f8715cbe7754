from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofoundry.finetune.subsets import folds, fraction_of, shortage
from neurofoundry.tasks import Classification, Task
from tests.support.tiny import AGE

THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))


def rows_of(counts: tuple[int, ...], *, scans: int = 2) -> pd.DataFrame:
    """Persons of each class, each with some scans."""
    targets = [float(index) for index, count in enumerate(counts) for _ in range(count)]
    persons = [f"a/{number}" for number in range(len(targets))]
    return pd.DataFrame({"person": np.repeat(persons, scans), "target": np.repeat(targets, scans)})


def rows_of_ages(persons: int) -> pd.DataFrame:
    ages = np.random.default_rng(persons).uniform(20, 90, persons)
    return pd.DataFrame({"person": [f"a/{n}" for n in range(persons)], "target": ages})


@settings(max_examples=15, deadline=None)
@given(
    counts=st.tuples(*[st.integers(0, 30)] * 3),
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=4),
    key=st.text(max_size=5),
)
def test_a_smaller_fraction_lies_within_a_larger_one(
    counts: tuple[int, ...], shares: list[float], key: str
) -> None:
    rows = rows_of(counts)
    subsets = [set(fraction_of(rows, THREE, share, key=key)["person"]) for share in sorted(shares)]
    for smaller, larger in itertools.pairwise(subsets):
        assert smaller <= larger


@settings(max_examples=15, deadline=None)
@given(counts=st.tuples(*[st.integers(0, 40)] * 3), share=st.floats(0.01, 1))
def test_every_class_nearly_keeps_its_share(counts: tuple[int, ...], share: float) -> None:
    chosen = fraction_of(rows_of(counts, scans=1), THREE, share, key="k")
    assert abs(len(chosen) - share * sum(counts)) <= 0.5 + 1e-9
    for index, count in enumerate(counts):
        assert abs((chosen["target"] == index).sum() - share * count) <= 1.5


def test_persons_are_chosen_and_never_some_of_their_scans() -> None:
    rows = rows_of((10, 10, 10), scans=3)
    chosen = fraction_of(rows, THREE, 0.4, key="k")
    assert (chosen["person"].value_counts() == 3).all()
    assert chosen["person"].nunique() == 12


def test_the_whole_is_everyone_in_the_same_order() -> None:
    rows = rows_of((7, 5, 6))
    pd.testing.assert_frame_equal(fraction_of(rows, THREE, 1.0, key="k"), rows)


def test_another_key_chooses_others_and_the_order_of_rows_does_not_matter() -> None:
    rows = rows_of((20, 20, 20))
    chosen = [set(fraction_of(rows, THREE, 0.3, key=key)["person"]) for key in ("k", "l")]
    shuffled = rows.sample(frac=1, random_state=1)
    assert chosen[0] != chosen[1]
    assert set(fraction_of(shuffled, THREE, 0.3, key="k")["person"]) == chosen[0]


def test_a_fraction_of_a_regression_spans_its_range() -> None:
    rows = rows_of_ages(80)
    chosen = fraction_of(rows, AGE, 0.1, key="k")
    quarters = np.digitize(chosen["target"], rows["target"].quantile([0.25, 0.5, 0.75]))
    assert np.bincount(quarters, minlength=4).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("counts", [(2, 2, 2), (2, 9, 40), (13, 12, 11)])
def test_every_fold_and_its_rest_hold_every_class_and_persons_stay_together(
    counts: tuple[int, ...],
) -> None:
    rows = rows_of(counts)
    fold = folds(rows, THREE)
    assert set(fold) == set(range(min(5, *counts)))
    assert (rows.assign(fold=fold).groupby("person")["fold"].nunique() == 1).all()
    for number in set(fold):
        assert set(rows["target"][fold == number]) == {0, 1, 2}
        assert set(rows["target"][fold != number]) == {0, 1, 2}


@pytest.mark.parametrize("persons", [2, 4, 7, 50])
def test_folds_of_a_regression_are_even(persons: int) -> None:
    sizes = np.bincount(folds(rows_of_ages(persons), AGE))
    assert len(sizes) == min(5, persons)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("rows", "task", "words"),
    [
        (rows_of((5, 1, 5)), THREE, "1 subject with diagnosis=MCI, 2 are needed"),
        (rows_of((5, 0, 5)), THREE, "0 subjects with diagnosis=MCI"),
        (rows_of_ages(1), AGE, "1 subject, 2 are needed"),
        (rows_of_ages(6).assign(target=50.0), AGE, "one value of age, 50, in all 6 scans"),
        (rows_of((2, 2, 2)), THREE, None),
        (rows_of_ages(2), AGE, None),
    ],
)
def test_a_shortage_is_said_in_words(rows: pd.DataFrame, task: Task, words: str | None) -> None:
    found = shortage(rows, task)
    assert found is None if words is None else words in str(found)
