from __future__ import annotations

import math

import numpy as np
import pytest

from neurofoundry.ingest import numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("45", 45),
        (" -4 ", -4),
        ("45,5", 45.5),
        ("0,234", 0.234),
        ("1234,567", 1234.567),
        ("1,234.5", 1234.5),
        ("12,345,678", 12345678),
        ("1e3", 1000),
        ("1,5e2", 150),
        ("1,234", None),
        ("1,23,456", None),
        ("1.234.567", None),
        ("1\u202f234,5", 1234.5),
        ("1'234'567", 1234567),
        ("−4", -4),
        ("1e999", None),
        ("abc", None),
        ("", None),
    ],
)
def test_a_number_is_read_where_it_can_be_but_one(text: str, number: float | None) -> None:
    assert numbers.read(text, None) == number


def test_cells_that_disagree_about_commas_say_nothing() -> None:
    assert numbers.comma(["1,234"]) is None
    assert numbers.comma(["1,234", "1,5"]) == "decimal"
    assert numbers.comma(["1,234", "1,234.5"]) == "thousands"
    assert numbers.comma(["1,5", "1,234.5"]) is None


def test_dots_between_thousands_are_known_by_a_cell_that_can_be_nothing_else() -> None:
    assert numbers.comma(["1.234,5", "1.198", "987,5"]) == "dots"
    assert numbers.comma(["1.234.567", "987.500"]) == "dots"
    assert numbers.comma(["1.234", "2.345"]) is None
    assert numbers.read("1.234,5", "dots") == 1234.5
    assert numbers.readings("987,5", "dots") == {987.5}


def test_codes_lie_apart_and_long_tails_do_not() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(10, 31, 200).tolist()
    assert numbers.strays(scores) == {}
    assert numbers.strays([*scores, -1, 99, 999, 999]) == {-1: 1, 99: 1, 999: 2}
    for seed in range(20):
        lesions = np.random.default_rng(seed).lognormal(1, 0.8, 200).tolist()
        assert numbers.strays(lesions) == {}
    change = rng.normal(0, 3, 200).tolist()
    assert numbers.strays(change) == {}


def test_two_groups_few_values_and_nothing_have_no_strays() -> None:
    assert numbers.strays([1, 2, 3, 1000, 1001, 1002]) == {}
    assert numbers.strays([1, 2, 999]) == {}
    assert numbers.strays([]) == {}
    assert numbers.strays([1, 2, 3, 1, 2, 3, math.nan]) == {}
    assert numbers.strays([0] * 9 + [1]) == {}
