from __future__ import annotations

import pytest

from neurofoundry.ingest.matching import match, meant


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("sub-01", "1"),
        ("sub-01", "1.0"),
        ("sub-1", "001"),
        ("sub-01", "Sub-01"),
        ("sub-02", "SUB_02"),
        ("sub-02", "sub02"),
        ("sub-002S0413", "002_S_0413"),
        ("sub-A01", "a-1"),
        ("sub-Zo\u00eb", "Zoe\u0308"),
    ],
)
def test_a_label_is_known_however_a_spreadsheet_spells_it(folder: str, key: str) -> None:
    assert match([folder, "sub-other"], [key, "9"], "sub-") == {folder: key}


@pytest.mark.parametrize(
    ("folders", "keys"),
    [
        (["sub-1", "sub-01"], ["001"]),  # which of the two?
        (["sub-001"], ["1", "01"]),
        (["sub-101"], ["11"]),  # a zero inside a number counts
        (["sub-11"], ["1-1"]),
        (["sub-10"], ["1"]),
    ],
)
def test_what_could_be_another_is_not_matched(folders: list[str], keys: list[str]) -> None:
    assert match(folders, keys, "sub-") == {}


def test_a_label_of_its_own_comes_first() -> None:
    assert match(["sub-1", "sub-01"], ["sub-01", "1"], "sub-") == {"sub-01": "sub-01", "sub-1": "1"}


@pytest.mark.parametrize(
    ("name", "column", "others"),
    [
        ("participant_id", "subject", ["age"]),
        ("participant_id", "ParticipantID", ["age"]),
        ("participant_id", "particpant_id", ["age", "sex"]),
        ("subject", "Patient ID", ["object", "project"]),
        ("subject", "record_id", ["record", "patience"]),
        ("session", "session_id", ["season", "age"]),
        ("session", "VISCODE", ["visit_date", "visual"]),
        ("path", "file_name", ["pathology", "age"]),
        ("age", "age_at_scan", ["stage", "page", "weight"]),
        ("age", "Age (years)", ["percentage"]),
        ("sex", "Gender", ["sextant"]),
        ("diagnosis", "diagnosys", ["prognosis"]),
    ],
)
def test_a_column_under_nearly_its_name_is_found(name: str, column: str, others: list[str]) -> None:
    assert meant(name, [*others, column]) == column
    assert meant(name, others) is None
