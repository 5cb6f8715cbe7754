"""Broken inputs end in a message that names the file and the problem."""

from __future__ import annotations

import json

import pandas as pd

from tests.evaluate.conftest import TASKS, fails, run


def test_a_run_may_stand_only_once(folders, tmp_path):
    path = folders.root / "models/runs.tsv"
    folders.edit(path, lambda t: t.iloc[[0, *range(len(t))]])
    fails(folders, tmp_path, str(path))


def test_volumes_of_another_cohort_are_refused(folders, tmp_path):
    folders.edit(folders.root / "volumes/scans.tsv", lambda t: t.iloc[1:])
    fails(folders, tmp_path, "volumes/scans.tsv", "Run preprocess again")


def test_a_test_subject_that_was_pretrained_on_fails_the_run(folders, tmp_path):
    def add(table):
        return table.assign(person=["clinic-external/sub-0003", *table["person"][1:]])

    folders.edit(folders.root / "encoder/subjects.tsv", add)
    fails(folders, tmp_path, "Leakage", "clinic-external/sub-0003")


def test_a_test_image_that_was_pretrained_on_under_another_name_fails_the_run(folders, tmp_path):
    scans = pd.read_csv(folders.root / "cohort/scans.tsv", sep="\t").query("split == 'test'")
    scans[["sha256"]][:1].to_csv(folders.root / "encoder/images.tsv", sep="\t", index=False)
    fails(folders, tmp_path, "Leakage", scans["scan_id"].iloc[0], "under this or another name")


def test_a_broken_stage_record_names_the_file(folders, tmp_path):
    path = folders.root / "models/stage.json"
    path.write_text("[1]")
    fails(folders, tmp_path, str(path), "expected an object")


def test_records_may_lack_what_only_people_read(folders, tmp_path):
    for name in ("cohort", "encoder"):
        (folders.root / name / "stage.json").unlink()
    (folders.root / "models/stage.json").write_text(json.dumps({"params": None}))
    (folders.root / "encoder/views.png").unlink()
    for picture in (folders.root / "volumes").glob("*.png"):
        picture.unlink()
    run(folders, tmp_path / "out", tasks={"sex": TASKS["sex"]})
    assert "Preprocessing left no pictures" in (tmp_path / "out/report.html").read_text()
