from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.errors import DataError
from neurofoundry.preprocess import plan
from neurofoundry.preprocess.plan import Plan
from tests.preprocess.conftest import WriteCohort
from tests.preprocess.test_scan import PARAMS


def test_a_plan_is_counted_from_the_scans_that_were_tried(
    head_files: list[Path], write_cohort: WriteCohort
) -> None:
    cohort = write_cohort({f"head{number}": path for number, path in enumerate(head_files)})
    found = plan.plan(data=Path("/"), cohort=cohort, params=PARAMS, tries=2)
    assert (found.scans, found.tried) == (4, 2)
    assert found.seconds > 0.05
    assert found.megabytes == pytest.approx(64 * 64 * 50 * 2 / 1e6, rel=0.5)
    assert not list(cohort.parent.glob("**/plan*"))


def test_hours_and_disk_are_those_of_the_whole_cohort() -> None:
    found = Plan(scans=7200, tried=5, seconds=8.0, megabytes=11.0)
    assert found.hours(1) == pytest.approx(16)
    assert found.hours(32) == pytest.approx(0.5)
    assert "0.5 hours on 32 cores" in found.describe(32)
    assert "79.2 GB" in found.describe(32)
    assert Plan(3, 3, 3600.0, 1.0).hours(8) == 1  # a scan is not shared between cores


def test_a_cohort_without_a_volume_cannot_be_planned(
    write_cohort: WriteCohort, tmp_path: Path
) -> None:
    path = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40)), np.diag([4.0, 4, 4, 1])), path)
    with pytest.raises(DataError, match="empty: every value is 0"):
        plan.plan(data=Path("/"), cohort=write_cohort({"a": path}), params=PARAMS, tries=3)
