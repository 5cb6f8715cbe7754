from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neurofoundry.errors import UsageError
from tests.support.building import DIAGNOSIS, Outcome, bids, run, write_scan


def with_column(tmp_path: Path, name: str, cells: list[str], **params: Any) -> Outcome:
    """A dataset whose subjects have ``cells`` in the column ``name``."""
    labels = [f"{number:02d}" for number in range(1, len(cells) + 1)]
    table = f"participant_id\t{name}\n" + "".join(
        f"sub-{label}\t{cell}\n" for label, cell in zip(labels, cells, strict=True)
    )
    bids(tmp_path / "data" / "ds", labels, table)
    return run(tmp_path / "data", tmp_path / "out", **params)


def values(outcome: Outcome, column: str) -> list[Any]:
    return outcome.scans[column].astype(object).where(outcome.scans[column].notna()).tolist()


def same(values: list[Any], expected: list[Any]) -> bool:
    return [None if value != value else value for value in values] == expected


def test_ages_are_read_as_people_write_them(tmp_path: Path) -> None:
    cells = ["45", "45.5", "45,5", "90+", "45 years", "045Y", "n/a", "", "-3", "130", "1950-02-03"]
    outcome = with_column(tmp_path, "age", cells)
    assert same(values(outcome, "age"), [45, 45.5, 45.5, 90, 45, 45, None, None, None, None, None])
    assert "age is of the form '9999-99-99' in 1 scans, expected 0 to 120" in outcome.notes
    assert b"1950" not in outcome.bytes()


def test_ages_with_a_unit_of_their_own_are_converted(tmp_path: Path) -> None:
    cells = ["18 months", "018M", "36 mo", "4 yrs", "45y", "89 +", "30 parsecs"]
    outcome = with_column(tmp_path, "age", cells)
    assert same(values(outcome, "age"), [1.5, 1.5, 3, 4, 45, 89, None])


def test_sexes_are_read_as_people_write_them(tmp_path: Path) -> None:
    cells = ["F", "m", "female", "MALE", "Weiblich", "2", "other", "NaN"]
    outcome = with_column(tmp_path, "sex", cells)
    assert same(values(outcome, "sex"), ["F", "M", "F", "M", "F", None, None, None])
    assert "sex is 'other' in 1 scans, expected one of F, M: set to n/a" in outcome.notes


def test_m_beside_h_may_be_mujer(tmp_path: Path) -> None:
    outcome = with_column(tmp_path, "sex", ["H", "M", "M"])
    assert outcome.scans["sex"].isna().all()
    assert "sex is 'M, or mujer, as others are H' in 2 scans" in outcome.notes


@pytest.mark.parametrize("name", ["age_months", "Age [mo]"])
def test_the_name_of_a_column_says_the_unit_of_its_ages(name: str, tmp_path: Path) -> None:
    columns = {"age": {"from": [name]}}
    outcome = with_column(tmp_path, name, ["36", "3 years", "37,5", "n/a"], columns=columns)
    assert same(values(outcome, "age"), [3, 3, 3.12, None])
    assert f"'{name}' is read as months: converted to years" in outcome.notes
    declared = tmp_path / "data/ds/participants.json"
    declared.write_text(f'{{"{name}": {{"Units": "years"}}}}')
    outcome = run(tmp_path / "data", tmp_path / "again", columns=columns)
    assert same(values(outcome, "age"), [36, 3, 37.5, None])


def test_ages_that_lie_apart_are_noted(tmp_path: Path) -> None:
    outcome = with_column(tmp_path, "age", ["24", "25", "26", "27", "28", "99"])
    assert "age is far from all other values in 1 scans: 99 (1)" in outcome.notes


def test_labels_outside_the_declared_values_become_na_and_the_scans_stay(tmp_path: Path) -> None:
    cells = ["CN", "AD", "ad", "MCI", "MCI", "n/a"]
    outcome = with_column(tmp_path, "diagnosis", cells, columns={"diagnosis": DIAGNOSIS})
    assert same(values(outcome, "diagnosis"), ["CN", "AD", "AD", None, None, None])
    assert "diagnosis is 'MCI' in 2 scans, expected one of CN, AD: set to n/a" in outcome.notes


def test_codes_and_words_for_nothing_can_be_values(tmp_path: Path) -> None:
    stroke = {"from": ["lesion"], "values": {"no": ["none", 0], "yes": [1]}}
    outcome = with_column(
        tmp_path, "lesion", ["none", "0", "1.0", "1", "n/a"], columns={"stroke": stroke}
    )
    assert same(values(outcome, "stroke"), ["no", "no", "yes", "yes", None])


def test_columns_are_kept_as_they_are_without_declared_values(tmp_path: Path) -> None:
    outcome = with_column(
        tmp_path, "Score", ["12", "x y", "n/a"], columns={"mmse": {"from": ["score"]}}
    )
    assert same(values(outcome, "mmse"), ["12", "x y", None])


def test_a_regression_label_must_be_a_number(tmp_path: Path) -> None:
    outcome = with_column(
        tmp_path,
        "mmse",
        ["12", "27,5", "Meier"],
        columns={"mmse": {"from": ["mmse"]}},
        tasks={"mmse": {"kind": "regression", "column": "mmse", "required": False}},
    )
    assert same(values(outcome, "mmse"), ["12", "27.5", None])
    assert b"Meier" not in outcome.bytes()


def with_scores(tmp_path: Path, cells: list[str], **column: Any) -> Outcome:
    return with_column(
        tmp_path,
        "score",
        cells,
        columns={"score": {"from": ["score"], **column}},
        tasks={"score": {"kind": "regression", "column": "score", "required": False}},
    )


def test_codes_for_missing_and_numbers_out_of_range_become_na(tmp_path: Path) -> None:
    cells = ["24", "30", "-4", "-9.0", "999", "31", "28"]
    outcome = with_scores(tmp_path, cells, missing=[-4, -9, "999"], range=[0, 30])
    assert same(values(outcome, "score"), ["24", "30", None, None, None, None, "28"])
    assert "score is of the form '99' in 1 scans, expected 0 to 30: set to n/a" in outcome.notes
    assert "far from" not in outcome.notes


def test_codes_that_nobody_declared_are_used_and_noted(tmp_path: Path) -> None:
    cells = [str(20 + n % 11) for n in range(16)] + ["-4", "999", "999", "19500203"]
    outcome = with_scores(tmp_path, cells)
    assert values(outcome, "score")[-4:] == ["-4", "999", "999", "19500203"]
    assert "score is far from all other values in 4 scans: -4 (1), 999 (2), of the" in outcome.notes
    assert "ingest.columns.score.missing" in outcome.notes
    assert "1950" not in outcome.notes


def test_a_comma_is_what_the_column_says_or_the_range_allows(tmp_path: Path) -> None:
    unclear = with_scores(tmp_path / "a", ["1,234", "12"])
    assert same(values(unclear, "score"), [None, "12"])
    assert "1,234 may be 1.234" in unclear.notes
    decimal = with_scores(tmp_path / "b", ["1,234", "2,5"])
    assert values(decimal, "score") == ["1.234", "2.5"]
    thousands = with_scores(tmp_path / "c", ["1,234", "12,345,678.5"])
    assert values(thousands, "score") == ["1234", "12345678.5"]
    bounded = with_scores(tmp_path / "d", ["1,234", "12"], range=[0, 100])
    assert values(bounded, "score") == ["1.234", "12"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"range": [30, 0]}, "the lowest and the highest"),
        ({"range": [0, 30], "values": {"low": [1]}}, "give one of them"),
        ({"range": [0, 30]}, "`range` has no effect"),
    ],
)
def test_a_range_that_cannot_hold_is_an_error(
    tmp_path: Path, column: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        with_column(tmp_path, "a", ["1"], columns={"a": {"from": ["a"], **column}})


def test_field_strengths_that_no_magnet_has_become_na(tmp_path: Path) -> None:
    outcome = with_column(tmp_path, "field_strength", ["3", "0", "-1", "15000", "1.5"])
    assert same(values(outcome, "field_strength"), [3, None, None, None, 1.5])
    (tmp_path / "data/ds/T1w.json").write_text('{"MagneticFieldStrength": 30000}')
    again = run(tmp_path / "data", tmp_path / "out")
    assert same(values(again, "field_strength"), [3, None, None, None, 1.5])


def test_a_declared_column_that_no_dataset_has_is_left_out(tmp_path: Path) -> None:
    columns = {"diagnosis": DIAGNOSIS}
    outcome = with_column(tmp_path, "age", ["1", "2"], columns=columns)
    assert "diagnosis" not in outcome.scans
    assert outcome.scans["site"].tolist() == ["ds", "ds"]


def sessions(tmp_path: Path, rows: dict[str, tuple[str, str]]) -> Outcome:
    """One subject with sessions of (age, sex), and another one."""
    ds = bids(tmp_path / "data" / "ds", ["b", "c"])
    for number, session in enumerate(rows):
        write_scan(ds / f"sub-a/{session}/anat/sub-a_{session}_T1w.nii.gz", 60 + number)
    lines = "".join(f"{session}\t{age}\t{sex}\n" for session, (age, sex) in rows.items())
    (ds / "sub-a/sub-a_sessions.tsv").write_text(f"session_id\tage\tsex\n{lines}")
    return run(tmp_path / "data", tmp_path / "out")


def test_a_sex_that_contradicts_itself_is_na_everywhere(tmp_path: Path) -> None:
    outcome = sessions(tmp_path, {"ses-1": ("50", "F"), "ses-2": ("51", "M"), "ses-3": ("n/a", "")})
    assert outcome.scans.loc[outcome.scans["subject"] == "sub-a", "sex"].isna().all()
    assert outcome.scans.loc[outcome.scans["subject"] != "sub-a", "sex"].notna().all()
    assert "sex of ds/sub-a is F in one session and M in another" in outcome.notes
    assert len(outcome.scans) == 5


def test_who_travels_has_the_site_of_each_session(tmp_path: Path) -> None:
    """sessions.tsv speaks for a session; participants.tsv for those of whom it says nothing."""
    table = "participant_id\tsite\nsub-a\thome\nsub-b\thome\n"
    ds = bids(tmp_path / "data" / "ds", ["b"], table)
    for number, session in enumerate(("ses-1", "ses-2", "ses-3")):
        write_scan(ds / f"sub-a/{session}/anat/sub-a_{session}_T1w.nii.gz", 60 + number)
    (ds / "sub-a/sub-a_sessions.tsv").write_text(
        "session_id\tsite\nses-1\thome\nses-2\taway\nses-3\tn/a\n"
    )
    scans = run(tmp_path / "data", tmp_path / "out").scans
    sites = scans.sort_values("session").groupby("subject")["site"].agg(list)
    assert sites["sub-a"] == ["home", "away", "home"]
    assert sites["sub-b"] == ["home"]
    assert scans.loc[scans["subject"] == "sub-a", "split"].nunique() == 1


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ({"ses-2": ("50", "F"), "ses-10": ("49", "F")}, False),
        ({"ses-M00": ("50", "F"), "ses-M12": ("45", "F")}, False),
        ({"ses-2": ("50", "F"), "ses-10": ("55", "F")}, True),
        ({"ses-1": ("50", "F"), "ses-2": ("50", "F")}, True),
        ({"ses-pre": ("50", "F"), "ses-scan": ("45", "F")}, True),
    ],
)
def test_an_age_that_goes_backwards_is_na_everywhere(
    rows: dict[str, tuple[str, str]], kept: bool, tmp_path: Path
) -> None:
    outcome = sessions(tmp_path, rows)
    ages = outcome.scans.loc[outcome.scans["subject"] == "sub-a", "age"]
    assert ages.notna().all() if kept else ages.isna().all()
    assert ("age of sub-a goes backwards" in outcome.notes) is not kept


def test_a_class_that_its_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    task = {"kind": "classification", "column": "diagnosis", "classes": ["CN", "MCI"]}
    with pytest.raises(
        UsageError, match=r"the class 'MCI' is not a value of ingest\.columns\.diagnosis"
    ):
        with_column(
            tmp_path,
            "diagnosis",
            ["CN", "AD"],
            columns={"diagnosis": DIAGNOSIS},
            tasks={"dementia": task},
        )
