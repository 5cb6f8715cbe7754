from __future__ import annotations

from pathlib import Path

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
