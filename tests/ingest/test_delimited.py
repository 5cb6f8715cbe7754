from __future__ import annotations

from pathlib import Path

import pytest

from neurofoundry.ingest import delimited
from neurofoundry.ingest.scan import UnusableError

CLEAN = "participant_id\tage\tcity\nsub-01\t34\tZürich\nsub-02\tn/a\tn/a\n"


def read(folder: Path, content: bytes | str, name: str = "participants.tsv") -> delimited.Table:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return delimited.read(file, key="participant_id")


@pytest.mark.parametrize(
    ("content", "name", "note"),
    [
        (CLEAN, "participants.tsv", None),
        ("\ufeff" + CLEAN, "participants.tsv", None),
        (CLEAN.replace("\n", "\r\n"), "participants.tsv", None),
        (CLEAN.replace("\n", "\r"), "participants.tsv", None),
        (CLEAN.replace("\n", "\n\n"), "participants.tsv", None),
        (CLEAN.replace("\t", " \t "), "participants.tsv", None),
        (CLEAN.replace("Zürich", '"Zürich"'), "participants.tsv", None),
        (CLEAN.replace("participant_id", "Participant_ID"), "participants.tsv", None),
        (CLEAN.encode("utf-16"), "participants.tsv", "not UTF-8: read as UTF-16"),
        (CLEAN.encode("utf-16-le"), "participants.tsv", "not UTF-8: read as UTF-16"),
        (b"\xef\xbb\xbf" + CLEAN.encode("cp1252"), "participants.tsv", "read as Windows-1252"),
        (f"A study, in 2024\t\t\n\n{CLEAN}", "participants.tsv", "the header is line 3"),
        (CLEAN + CLEAN.split("\n")[0], "participants.tsv", "lines that repeat the header"),
        (CLEAN + "\t\t\n", "participants.tsv", None),
        (CLEAN.replace("sub-01", '="sub-01"'), "participants.tsv", None),
        (CLEAN.replace("city", "\u00a0city"), "participants.tsv", None),
        (CLEAN.encode("latin-1"), "participants.tsv", "not UTF-8: read as Windows-1252"),
        (CLEAN.replace("\t", ","), "participants.csv", None),
        (CLEAN.replace("\t", ","), "participants.tsv", "separated by commas, expected tabs"),
        (CLEAN.replace("\t", ";"), "participants.tsv", "separated by semicolons, expected tabs"),
        (CLEAN.replace("\t", "  "), "participants.tsv", "separated by spaces, expected tabs"),
        (CLEAN.replace("\t", ";"), "participants.csv", "separated by semicolons, expected commas"),
    ],
)
def test_a_table_is_understood_however_it_was_saved(
    content: bytes | str, name: str, note: str | None, tmp_path: Path
) -> None:
    table = read(tmp_path, content, name)
    assert [dict(row.cells) for row in table.rows] == [
        {"participant_id": "sub-01", "age": "34", "city": "Zürich"},
        {"participant_id": "sub-02", "age": "n/a", "city": "n/a"},
    ]
    if note is None:
        assert not table.notes
    else:
        assert len(table.notes) == 1
        assert note in table.notes[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "unreadable table: it is empty"),
        (" \n\n", "unreadable table: it is empty"),
        ("id\tage\nsub-01\t3\n", "unreadable table: no column 'participant_id', found 'id', 'age'"),
        (b"PK\x03\x04\0\0\0\0", "unreadable table: not text (a spreadsheet?"),
        (b"\xff\xfeabc", "unreadable table: damaged UTF-16"),
        ("participant_id\tparticipant_id\nsub-01\t3\n", "unreadable table: duplicate column"),
        ("participant_id\tage\nsub-01 3\nsub-02 4\n", "unreadable table: the header has 2 fields"),
        (
            "participant_id\tage\tmmse\nsub-01\t60\t29\nparticipant_id\tmmse\tage\nsub-02\t29\t60\n",
            "unreadable table: line 3 is a header, too, with other columns than line 1",
        ),
        ("version https://git-lfs.github.com/spec/v1\n", "a pointer: the table itself"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(
    content: bytes | str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableError) as refused:
        read(tmp_path, content)
    assert str(refused.value).startswith(reason)


def test_a_row_with_too_few_or_too_many_fields_carries_its_problem(tmp_path: Path) -> None:
    rows = read(tmp_path, CLEAN + "sub-03\t50\nsub-04\t50\tBern\tx\nsub-05\t1\tBern\n").rows
    assert rows[2].problem == "broken row: line 4 of participants.tsv has 2 fields, expected 3"
    assert rows[3].problem == "broken row: line 5 of participants.tsv has 4 fields, expected 3"
    assert rows[2].cells == rows[3].cells == {}
    assert rows[4].cells["age"] == "1"


def test_a_quotation_mark_in_a_tab_separated_table_swallows_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path, 'participant_id\tnote\nsub-01\t5" tube\nsub-02\tx\n').rows
    assert [row.cells["note"] for row in rows] == ['5" tube', "x"]


@pytest.mark.parametrize("separator", [",", "\t"])
def test_quoted_fields_may_hold_separators_and_lines(separator: str, tmp_path: Path) -> None:
    lines = (
        'participant_id,"note\n(free)",age',
        'sub-01,"one\n\ntwo",60',
        'sub-02,5" tube,61',
        'sub-03,"6 feet,62',
        'sub-04,"a "",b"",\nc",63' if separator == "," else "sub-04,a b c,63",
    )
    text = "\n".join(lines) if separator == "," else "\n".join(lines).replace(",", "\t")
    rows = read(tmp_path, text, "participants.csv").rows
    assert [row.cells["age"] for row in rows] == ["60", "61", "62", "63"]
    assert rows[0].cells["note (free)"] == "one two"


def test_columns_of_one_name_are_one_where_they_agree(tmp_path: Path) -> None:
    text = "participant_id\tage\tage \nsub-01\t60\t60\nsub-02\tn/a\t61\nsub-03\t62\t63\n"
    table = read(tmp_path, text)
    assert [row.cells["age"] for row in table.rows] == ["60", "61", "n/a"]
    assert table.notes == (
        "columns of one name ('age') are read as one, and n/a in 1 cells where they differ",
    )


@pytest.mark.parametrize("word", ["", "N/A", "#NV", "#DIV/0!", "#WERT!", "-", ".", "####"])
def test_words_for_nothing_are_nothing(word: str) -> None:
    assert delimited.is_missing(word)
    assert not delimited.is_missing(f"{word}1")


def test_rows_that_repeat_a_key_agree_or_lose_what_differs(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "participant_id\tage\tsex\nsub-01\t3\tF\nsub-01\t3\tF\nsub-02\t3\tF\nsub-02\t4\tF\n",
    )
    rows, notes = table.index_by("participant_id")
    assert rows["sub-01"].cells["age"] == "3"
    assert dict(rows["sub-02"].cells) == {"participant_id": "sub-02", "age": "n/a", "sex": "F"}
    assert notes == ["lines 4 and 5 have the same participant_id and disagree in age: set to n/a"]


def test_a_table_with_only_a_key_needs_no_separator(tmp_path: Path) -> None:
    assert [row.fields for row in read(tmp_path, "participant_id\nsub-01\n").rows] == [("sub-01",)]


@pytest.mark.parametrize(
    "content",
    [
        "path\tage\t\t\na\t3\t\t\n",
        "sep=;\npath;age\na;3\n",
        "\u200bpath\u200b\tage\na\t3\n",
    ],
)
def test_what_spreadsheets_add_is_left_out(content: str, tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text(content, encoding="utf-8")
    assert delimited.read(file, key="path").rows[0].cells == {"path": "a", "age": "3"}


def test_separators_that_end_every_line_but_the_first_are_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, b"participant_id\tage\nsub-01\t20\t\nsub-02\t30\t\n")
    assert [row.cells for row in table.rows] == [
        {"participant_id": "sub-01", "age": "20"},
        {"participant_id": "sub-02", "age": "30"},
    ]


def test_columns_that_cannot_be_told_apart_or_named_are_noted(tmp_path: Path) -> None:
    table = read(tmp_path, b"participant_id\tage\tAge\t\nsub-01\t20\t21\tx\n")
    assert any("differ in case only" in note for note in table.notes)
    assert any("1 columns without a name are not read" in note for note in table.notes)
    empty = read(tmp_path, b"participant_id\tage\t\nsub-01\t20\t\n")
    assert empty.notes == ()
