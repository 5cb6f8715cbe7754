from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml

from benchmarks.splits import TASKS, cohort
from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import EXCLUDED
from neurofoundry.contracts.splits import Splits
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.ingest import report, splits
from tests.support.building import DIAGNOSIS, EVERY_SPLIT, SEX, bids, run, write_scan

AGE = {"kind": "regression", "column": "age"}


def test_the_log_tells_how_far_the_work_is_and_what_came_of_it(
    tmp_path: Path, logged: io.StringIO
) -> None:
    ds = bids(tmp_path / "data" / "ds", 12)
    (ds / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    (ds / "sub-02/anat/sub-02_T1w.json").write_text("{broken")
    run(
        tmp_path / "data",
        tmp_path / "out",
        splits=EVERY_SPLIT,
        tasks={"sex": {**SEX, "required": False}},
    )
    lines = [
        line.partition(" INFO ")[2] for line in logged.getvalue().splitlines() if " INFO " in line
    ]
    assert any(line.startswith("reading ds: 12/12 subjects") for line in lines)
    assert any(line.startswith("inspecting images: 12/12 images") for line in lines)
    assert next(line for line in lines if "images" in line).endswith(", 1 failed")
    assert "ds: 11 scans of 11 persons" in lines
    assert "excluded: 1 × empty file" in lines
    assert any(line.startswith("note: ds/sub-02/anat/sub-02_T1w.json: not valid") for line in lines)
    start = next(number for number, line in enumerate(lines) if line.split()[0] == "split")
    assert lines[start].split() == ["split", "persons", "scans", "sex"]
    assert sum(int(line.split()[1]) for line in lines[start + 1 :]) == 11


def test_every_gap_is_listed_and_the_excluded_files_can_be_read(
    tmp_path: Path, logged: io.StringIO
) -> None:
    ds = bids(tmp_path / "data" / "ds", 6)
    (ds / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    write_scan(ds / "sub-02/anat/sub-02_T2w.nii.gz", 70)
    write_scan(ds / "sub-02/anat/sub-02_FLAIR.nii.gz", 71)
    out = tmp_path / ".cohort.partial"
    dementia = {"kind": "classification", "column": "diagnosis", "classes": ["CN", "AD"]}
    tasks = {
        "sex": SEX,
        "dementia": dementia,
        "age": {**AGE, "required": False},
        "other": {**dementia, "required": False},
    }
    with pytest.raises(DataError) as refused:
        run(
            tmp_path / "data",
            out,
            tasks=tasks,
            columns={"diagnosis": DIAGNOSIS},
            splits={**EVERY_SPLIT, "pretrain": 0.0001, "train": 0.5999},
        )
    message = str(refused.value)
    for text in (
        "5 scans of 5 persons can be used; excluded: 2 × not T1w, 1 × empty file.",
        "split 'pretrain' has 0 persons, 2 are needed",
        "task 'sex': split '",
        "task 'dementia': no dataset has the column 'diagnosis'",
        ".cohort.partial/excluded.tsv",
        "required: false",
    ):
        assert text in message
    assert "task 'age'" not in message
    assert "task 'other'" not in message
    assert str(tmp_path) not in message + logged.getvalue()
    excluded = read_table(out / "excluded.tsv", EXCLUDED)
    assert len(excluded) == 3
    assert not (out / "scans.tsv").exists()


def test_optional_tasks_that_cannot_be_estimated_are_reported(
    tmp_path: Path, logged: io.StringIO
) -> None:
    bids(tmp_path / "data" / "ds", 3)
    outcome = run(tmp_path / "data", tmp_path / "out", tasks={"age": {**AGE, "required": False}})
    gap = (
        "split 'train' has 0 subjects with a label, 2 are needed. No other way to split these "
        "persons will do: 3 have a value of age, and train and test need 2 each, val 1. Add "
        "persons, or leave out a class."
    )
    assert outcome.work.summary["not_estimable"] == {"age": gap}
    assert f"WARNING task 'age' cannot be estimated: {gap}" in logged.getvalue()


@pytest.mark.parametrize("mode", ["hash", "stratified"])
def test_nothing_usable_says_why(mode: str, tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    for number in (1, 2):
        (ds / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz").write_bytes(b"")
    splits = {**EVERY_SPLIT, "mode": mode}
    with pytest.raises(DataError) as refused:
        run(tmp_path / "data", tmp_path / "out", tasks={"sex": SEX}, splits=splits)
    assert "not one scan can be used" in str(refused.value)
    assert "ds/sub-01/anat/sub-01_T1w.nii.gz: empty file: 0 bytes" in str(refused.value)


@pytest.mark.parametrize("ill", [8, 12])
def test_a_task_that_can_be_learned_and_not_judged_is_told_at_the_start(ill: int) -> None:
    rows = cohort(1, exact=True)
    few = rows.drop(rows.index[rows["diagnosis"] == "AD"][ill:])
    params = Splits(mode="stratified", pretrain=0.2, train=0.36, val=0.15, test=0.29)
    dealt = splits.assign(few, params, TASKS, seed=1)
    said = report.without_numbers(dealt, TASKS, params, seed=1)
    if ill == 12:
        assert said == []
        return
    (line,) = said
    assert line.startswith("task 'diagnosis' will have no numbers, as evaluate.min_subjects is 5")
    assert "split 'test' has " in line
    words = line.partition("ingest.splits=")[2].partition(", which")[0]
    again = splits.assign(few, Splits(**yaml.safe_load(words)), TASKS, seed=1)
    assert folds.gap(TASKS["diagnosis"], again) is None
    assert folds.unjudged(TASKS["diagnosis"], again) is None
