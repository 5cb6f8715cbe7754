from __future__ import annotations

from pathlib import Path

from neurofoundry.contracts.cohort import read_alternates
from neurofoundry.runtime.files import hash_file
from tests.support.building import bids, head, run, write_scan


def test_an_image_of_two_persons_is_excluded_in_both_and_one_of_a_person_kept_once(
    tmp_path: Path,
) -> None:
    ds = bids(tmp_path / "data" / "ds", 4)
    twin = bids(tmp_path / "data" / "twin", 2, seed=1)
    write_scan(ds / "sub-02/anat/sub-02_T1w.nii.gz", head(1))  # that of sub-01
    write_scan(twin / "sub-01/anat/sub-01_T1w.nii.gz", head(3).astype("float32"))  # of ds/sub-03
    write_scan(ds / "sub-05/ses-1/anat/sub-05_ses-1_T1w.nii.gz", 55)
    write_scan(ds / "sub-05/ses-2/anat/sub-05_ses-2_T1w.nii.gz", 55)
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert list(outcome.scans.index) == [
        "ds_sub-04_ses-1",
        "ds_sub-05_ses-1",
        "twin_sub-02_ses-1",
    ]
    t1w = "{0}/sub-{1}/anat/sub-{1}_T1w.nii.gz".format
    for path, other in [
        (t1w("ds", "01"), t1w("ds", "02")),
        (t1w("ds", "02"), t1w("ds", "01")),
        (t1w("ds", "03"), t1w("twin", "01")),
        (t1w("twin", "01"), t1w("ds", "03")),
    ]:
        assert outcome.excluded[path].startswith(
            f"duplicate: the same image as {other}, of another person"
        )
    assert outcome.excluded["ds/sub-05/ses-2/anat/sub-05_ses-2_T1w.nii.gz"] == (
        "duplicate: the same image as ds/sub-05/ses-1/anat/sub-05_ses-1_T1w.nii.gz, of the same "
        "person"
    )


def test_the_other_images_of_a_session_may_stand_in_the_best_first(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    anat = ds / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").unlink()
    for number in (10, 2, 1, 3):
        write_scan(anat / f"sub-01_run-{number}_T1w.nii.gz", 70 + number)
    write_scan(anat / "sub-01_run-3_T1w.nii.gz", 71)  # run 1 again: nothing would be gained
    write_scan(anat / "sub-01_run-4_T1w.nii.gz", head(80)[:, :, :4])  # not usable itself
    run(tmp_path / "data", tmp_path / "out")
    cohort = tmp_path / "out"
    table = read_alternates(cohort)
    names = "ds/sub-01/anat/sub-01_run-{}_T1w.nii.gz"
    assert table["path"].tolist() == [names.format(2), names.format(10)]
    assert set(table["scan_id"]) == {"ds_sub-01_ses-1"}
    assert table["sha256"].tolist() == [
        hash_file(tmp_path / "data" / path) for path in table["path"]
    ]


def test_an_image_that_may_stand_in_is_part_of_the_data_version(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    second = write_scan(ds / "sub-01/anat/sub-01_run-2_T1w.nii.gz", 70)
    before = run(tmp_path / "data", tmp_path / "before").work.data_version
    write_scan(second, 71)
    assert run(tmp_path / "data", tmp_path / "after").work.data_version != before
