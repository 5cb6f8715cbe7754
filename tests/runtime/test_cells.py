from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofoundry.runtime.cells import guard_cell, read_cell


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+49 30", "-x", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "-1-1", "--1"],
)
def test_what_a_spreadsheet_could_run_is_text(text: str) -> None:
    assert guard_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-0.5", "+3", "-1e-5", "-.5", "-inf", "a=1", "", "n/a", "'quoted'", "sub-01", "−1"]
)
def test_numbers_and_ordinary_text_stay_as_they_are(text: str) -> None:
    assert guard_cell(text) == text


@given(st.text(st.sampled_from("'=+-@\t\r1.ex"), max_size=6))
def test_every_text_is_read_back(text: str) -> None:
    assert read_cell(guard_cell(text)) == text
