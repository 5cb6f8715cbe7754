from __future__ import annotations

from pathlib import Path

from neurofoundry.contracts.cohort import scan_path


def test_a_converted_scan_lies_in_the_cohort_and_another_in_the_data() -> None:
    roots = {"data": Path("data"), "cohort": Path("cohort")}
    assert scan_path({"source": "bids", "path": "x.nii"}, **roots) == Path("data/x.nii")
    assert scan_path({"source": "dicom", "path": "x.nii"}, **roots) == Path("cohort/x.nii")
