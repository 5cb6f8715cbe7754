from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurofoundry.errors import DataError, UsageError
from tests.support.building import DIAGNOSIS, head, run, write_scan


def rows(cells: str, images: int = 4) -> str:
    """Return lines with the path of each image and ``cells`` about it."""
    return "".join(f"images/{n}.nii.gz\t{cells.format(n)}\n" for n in range(images))


def table(folder: Path, text: str, images: int = 4, name: str = "cohort.tsv") -> Path:
    for number in range(images):
        write_scan(folder / f"images/{number}.nii.gz", number)
    (folder / name).write_text(text)
    return folder


def test_a_plain_table_becomes_a_cohort(tmp_path: Path) -> None:
    table(
        tmp_path / "data",
        "path,dataset,subject,session,age,sex,site,diagnosis\n"
        "images/0.nii.gz,A,1,1,40,f,X,CN\n"
        "images/1.nii.gz,A,1,2,41,f,X,AD\n"
        "images/2.nii.gz,A,sub-2,,50,M,,n/a\n"
        "images/3.nii.gz,,7,,n/a,,Y,\n",
        name="cohort.csv",
    )
    scans = run(tmp_path / "data", tmp_path / "out", columns={"diagnosis": DIAGNOSIS}).scans
    assert scans["person"].tolist() == ["A/sub-1", "A/sub-1", "A/sub-2", "data/sub-7"]
    assert scans["session"].tolist() == ["ses-1", "ses-2", "ses-1", "ses-1"]
    assert scans["age"].tolist()[:3] == [40, 41, 50]
    assert scans["site"].tolist() == ["X", "X", "A", "Y"]
    assert scans["diagnosis"].tolist()[:2] == ["CN", "AD"]
    assert set(scans["source"]) == {"table"}
    assert scans["path"].tolist()[0] == "images/0.nii.gz"


def test_without_a_subject_column_the_path_or_the_file_names_the_person(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_scan(data / "sub-a/ses-2/t1.nii.gz", 9)
    table(data, "path\nsub-a/ses-2/t1.nii.gz\nimages/1.nii.gz\n./images/2.nii.gz\n")
    outcome = run(data, tmp_path / "out", datasets=[{"name": "d", "kind": "table", "path": "."}])
    assert outcome.scans["subject"].tolist() == ["sub-a", "sub-images-1", "sub-images-2"]
    assert outcome.scans["session"].tolist() == ["ses-2", "ses-1", "ses-1"]
    assert "every file counts as one person" in outcome.notes


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("images/9.nii.gz\t9\t50", "no such file"),
        ("/etc/images/9.nii.gz\t9\t50", "leads outside the dataset: found an absolute path"),
        ("C:\\images\\9.nii.gz\t9\t50", "leads outside the dataset: found an absolute path"),
        (
            "../outside.nii.gz\t9\t50",
            "leads outside the dataset: the path leaves the table's folder",
        ),
        ("images/link.nii.gz\t9\t50", "leads outside the dataset"),
        ("images/gone.nii.gz\t9\t50", "broken link"),
        ("images/0.mgz\t9\t50", "not NIfTI: expected .nii or .nii.gz, found '.mgz'"),
        ("images/x_FLAIR.nii.gz\t9\t50", "not T1w: its name says 'flair'"),
        ("n/a\t9\t50", "no image: the row has no path"),
        ("x" * 300 + ".nii.gz\t9\t50", "no path that can be used: File name too long"),
        ("images/\0.nii.gz\t9\t50", "broken row: line 6 of cohort.tsv holds a NUL character"),
        ("images/0.nii.gz\t9", "broken row: line 6 of cohort.tsv has 2 fields, expected 3"),
        ("images/0.nii.gz\t0\t40", "duplicate row: it repeats line 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_excluded_and_no_other(
    row: str, reason: str, tmp_path: Path
) -> None:
    data = table(
        tmp_path / "data",
        "path\tsubject\tage\n"
        + "".join(f"images/{number}.nii.gz\t{number}\t40\n" for number in range(4))
        + f"{row}\n",
    )
    write_scan(tmp_path / "outside.nii.gz", 70)
    write_scan(data / "images/x_FLAIR.nii.gz", 71)
    write_scan(data / "images/x.nii.gz", 72).rename(data / "images/0.mgz")
    (data / "images/link.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    (data / "images/gone.nii.gz").symlink_to(data / "nothing.nii.gz")
    outcome = run(data, tmp_path / "out")
    assert outcome.scans["subject"].tolist() == ["sub-0", "sub-1", "sub-2", "sub-3"]
    assert outcome.excluded["cohort.tsv, line 6"].startswith(reason)
    assert b"/etc/" not in outcome.bytes()


def test_a_file_listed_for_two_persons_belongs_to_nobody(tmp_path: Path) -> None:
    rows = "path\tsubject\n" + "".join(f"images/{n}.nii.gz\t{n}\n" for n in range(4))
    data = table(tmp_path / "data", rows + "images/0.nii.gz\tother\n")
    outcome = run(data, tmp_path / "out")
    assert outcome.scans["subject"].tolist() == ["sub-1", "sub-2", "sub-3"]
    reason = outcome.excluded["cohort.tsv, line 2"]
    assert reason == outcome.excluded["cohort.tsv, line 6"]
    assert "listed for 2 persons (data/sub-0, data/sub-other)" in reason


def test_several_rows_of_a_session_leave_the_first(tmp_path: Path) -> None:
    rows = "path\tsubject\nimages/1.nii.gz\ta\nimages/0.nii.gz\ta\nimages/2.nii.gz\tb\n"
    outcome = run(table(tmp_path / "data", rows), tmp_path / "out")
    assert outcome.scans["path"].tolist() == ["images/1.nii.gz", "images/2.nii.gz"]
    assert outcome.excluded["images/0.nii.gz"].startswith("several T1w: 1.nii.gz")


def test_a_declared_table_must_have_paths(tmp_path: Path) -> None:
    data = table(tmp_path / "data", "file\tsubject\nimages/1.nii.gz\ta\n")
    declared = {"name": "d", "kind": "table", "path": "cohort.tsv"}
    with pytest.raises(DataError, match="no column 'path', found 'file', 'subject'"):
        run(data, tmp_path / "out", datasets=[declared])
    with pytest.raises(UsageError, match=r"expected one \.tsv or \.csv with a column 'path'"):
        run(data, tmp_path / "out", datasets=[{**declared, "path": "."}])


def test_copies_under_two_names_are_found_in_tables_too(tmp_path: Path) -> None:
    data = table(
        tmp_path / "data",
        "path\tsubject\n" + "".join(f"images/{number}.nii.gz\t{number}\n" for number in range(4)),
    )
    write_scan(data / "images/3.nii.gz", head(0).astype("float64"))
    outcome = run(data, tmp_path / "out")
    assert outcome.scans["subject"].tolist() == ["sub-1", "sub-2"]
    assert outcome.excluded["images/3.nii.gz"].startswith("duplicate: the same image as images/0")


def _twice(data: Path, column: str) -> None:
    """Write a table of one person, scanned twice, and of another, named in a ``column``."""
    for number in range(3):
        write_scan(data / f"{number}.nii.gz", number + 1)
    rows = "0.nii.gz\tA\t1\n1.nii.gz\tA\t2\n2.nii.gz\tB\t1\n"
    (data / "list.tsv").write_text(f"PATH\t{column}\tSession\n{rows}")


@pytest.mark.parametrize("column", ["subject", "Subject", "SUBJECT", "\u200bSubject"])
def test_columns_are_known_in_any_case(column: str, tmp_path: Path) -> None:
    _twice(tmp_path / "data", column)
    scans = run(tmp_path / "data", tmp_path / "out").scans
    assert scans["person"].nunique() == 2
    assert sorted(scans["session"]) == ["ses-1", "ses-1", "ses-2"]


@pytest.mark.parametrize("column", ["Subject_ID", "participant_id", "Patient", "SubjectNumber"])
def test_a_column_that_is_nearly_the_subject_is_not_overlooked(column: str, tmp_path: Path) -> None:
    _twice(tmp_path / "data", column)
    with pytest.raises(DataError, match=f"did you mean '{column}'"):
        run(tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize("column", ["session_id", "Sesion", "data_set"])
def test_other_columns_that_are_nearly_known_stop_the_run_too(column: str, tmp_path: Path) -> None:
    for number in range(2):
        write_scan(tmp_path / f"data/{number}.nii.gz", number + 1)
    (tmp_path / "data/list.csv").write_text(f"path,subject,{column}\n0.nii.gz,A,1\n1.nii.gz,A,2\n")
    with pytest.raises(DataError, match=f"did you mean '{column}'"):
        run(tmp_path / "data", tmp_path / "out")


def test_the_table_itself_may_be_the_data(tmp_path: Path) -> None:
    data = table(
        tmp_path / "data", "path,subject\nimages/0.nii.gz,a\nimages/1.nii.gz,b\n", name="a.csv"
    )
    table(data, "path,subject\nimages/2.nii.gz,c\nimages/3.nii.gz,d\n", name="b.csv")
    with pytest.raises(DataError, match=r"several tables: a.csv, b.csv.*--data"):
        run(data, tmp_path / "out")
    scans = run(data / "b.csv", tmp_path / "out").scans
    assert scans["person"].tolist() == ["data/sub-c", "data/sub-d"]
    assert scans["path"].tolist() == ["images/2.nii.gz", "images/3.nii.gz"]
    declared = [{"name": "d", "kind": "table", "path": "."}]
    with pytest.raises(UsageError, match="declares datasets"):
        run(data / "b.csv", tmp_path / "out", datasets=declared)
    (data / "c.csv").write_text("file_path,subject\nimages/2.nii.gz,c\n")
    with pytest.raises(DataError, match="Did you mean 'file_path'"):
        run(data / "c.csv", tmp_path / "out")


def test_absolute_paths_below_the_data_root_are_used(tmp_path: Path) -> None:
    data = tmp_path / "data"
    link = tmp_path / "link"
    link.symlink_to(data)
    rows = "".join(
        f"{tmp_path}/data/x/../images/{number}.nii.gz\t{number}\n" for number in range(2)
    )
    for number in range(2):
        write_scan(data / f"images/{number}.nii.gz", number)
    (data / "lists").mkdir()
    (data / "lists" / "a.tsv").write_text("path\tsubject\n" + rows)
    scans = run(link, tmp_path / "out").scans
    assert scans["path"].tolist() == ["images/0.nii.gz", "images/1.nii.gz"]


def test_paths_as_windows_writes_them_are_used_and_lead_nowhere_else(tmp_path: Path) -> None:
    rows = (r"images\0.nii.gz", r".\images\1.nii.gz", r"..\2.nii.gz", r"\\server\3.nii.gz")
    lines = "".join(f"{path}\t{number}\n" for number, path in enumerate(rows))
    outcome = run(table(tmp_path / "data", f"path\tsubject\n{lines}"), tmp_path / "out")
    assert outcome.scans["path"].tolist() == ["images/0.nii.gz", "images/1.nii.gz"]
    assert sum("leads outside" in reason for reason in outcome.excluded.values()) == 2


def test_ages_of_a_table_have_the_unit_of_the_line_below_the_header(tmp_path: Path) -> None:
    data = table(tmp_path / "data", "path\tsubject\tage\nUnits:\t\tmonths\n" + rows("{0}\t3{0}"))
    out = run(data, tmp_path / "out")
    assert out.scans["age"].tolist() == [2.5, 2.58, 2.67, 2.75]
    assert "'age' is in months, by the line below the header" in out.notes


def test_one_who_may_be_counted_twice_is_noted(tmp_path: Path) -> None:
    text = "path\tsubject\tsession\n"
    for number, label in enumerate(["001", "1", "7.0", ""]):
        text += f"images/{number}.nii.gz\t{label}\t{number}\n"
    out = run(table(tmp_path / "data", text), tmp_path / "out")
    assert set(out.scans["subject"]) == {"sub-001", "sub-1", "sub-7", "sub-images-3"}
    assert "data/sub-001 and data/sub-1: the labels are nearly alike" in out.notes
    assert "1 lines have no subject" in out.notes


def test_rows_about_one_image_or_session_that_disagree_are_told(tmp_path: Path) -> None:
    text = "path\tsubject\tage\tsite\n" + rows("{0}\t4{0}\tX")
    text += "images/0.nii.gz\t0\t50\tX\nimages/4.nii.gz\t1\t60\tX\n"
    out = run(table(tmp_path / "data", text, images=5), tmp_path / "out")
    assert np.isnan(out.scans["age"].iloc[0])
    assert out.scans["site"].iloc[0] == "X"
    assert out.excluded["cohort.tsv, line 6"].endswith("and says otherwise in age: n/a")
    assert "have different ages or sexes: sub-1 ses-1." in out.notes


def test_a_column_that_is_nearly_a_label_is_noted(tmp_path: Path) -> None:
    data = table(
        tmp_path / "data",
        "path,subject,Age_at_scan\nimages/0.nii.gz,a,20\nimages/1.nii.gz,b,30\n",
        name="a.csv",
    )
    outcome = run(data, tmp_path / "out")
    assert "no column 'age': did you mean 'Age_at_scan'? Name it in ingest.columns" in outcome.notes
    outcome = run(data, tmp_path / "out", columns={"age": {"from": ["age_at_scan"]}})
    assert outcome.scans["age"].tolist() == [20, 30]
    assert "did you mean" not in outcome.notes
