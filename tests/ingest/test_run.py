from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.building import DIAGNOSIS, EVERY_SPLIT, bids, run, write_scan


def test_tables_are_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    bids(data / "one", 9)
    bids(data / "two", 5, seed=1)
    (data / "one/sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"")
    write_scan(data / "one/sub-04/anat/sub-04_T2w.nii.gz", 70)
    outcomes = [
        run(data, tmp_path / f"out{workers}", splits=EVERY_SPLIT, workers=workers)
        for workers in (1, 2, 7)
    ]
    assert len({outcome.bytes() for outcome in outcomes}) == 1
    assert len({outcome.work.data_version for outcome in outcomes}) == 1
    assert len(outcomes[0].work.data_version) == 64


def test_a_second_run_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "ds", 4)
    first = run(tmp_path / "data", tmp_path / "out").bytes()
    (tmp_path / "out" / "nifti").mkdir()
    (tmp_path / "out" / "nifti" / ".convert-x").touch()
    again = run(tmp_path / "data", tmp_path / "out")
    assert again.bytes() == first
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "alternates.tsv",
        "contrasts.tsv",
        "excluded.tsv",
        "labels.tsv",
        "notes.tsv",
        "scans.tsv",
        "splits.tsv",
    ]


def test_the_data_version_follows_everything_that_was_used_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ds = bids(data / "ds", 3)

    def version() -> str:
        return run(data, tmp_path / "out").work.data_version

    first = version()
    (ds / "README").write_text("hello")
    (ds / "sub-01/anat/.hidden").write_text("x")
    assert version() == first
    shutil.move(data, tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "out").work.data_version == first
    shutil.move(tmp_path / "moved", data)
    table = ds / "participants.tsv"
    table.write_text(table.read_text().replace("30", "31"))
    second = version()
    write_scan(ds / "sub-01/anat/sub-01_T1w.nii.gz", 80)
    third = version()
    (ds / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    assert len({first, second, third, version()}) == 4


def test_real_clinical_folders_become_a_cohort(real_mri: Path, tmp_path: Path) -> None:
    outcome = run(real_mri, tmp_path / "out", columns={"diagnosis": DIAGNOSIS})
    assert list(outcome.scans.index) == [
        "ms-ljubljana_sub-01_ses-1",
        "ms-ljubljana_sub-01_ses-2",
        "ms-ljubljana_sub-03_ses-2",
        "ms-ljubljana_sub-04_ses-1",
        "niivue_sub-chris_ses-1",
    ]
    assert outcome.excluded == {
        "ms-ljubljana/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz": (
            "not T1w: its name ends in 'FLAIR'"
        )
    }
    assert "diagnosis is 'MS' in 4 scans" in outcome.notes
