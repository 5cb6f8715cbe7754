from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.errors import DataError
from neurofoundry.preprocess import plan
from neurofoundry.preprocess.plan import Cost
from tests.support.preprocessing import PARAMS, WriteCohort


def test_a_plan_is_counted_from_the_scans_that_were_tried(
    head_files: list[Path], write_cohort: WriteCohort, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = write_cohort({f"head{number}": path for number, path in enumerate(head_files)})
    with caplog.at_level("INFO", logger="neurofoundry"):
        cost = plan.plan(data=Path("/"), cohort=cohort, params=PARAMS, tries=2)
    assert caplog.messages[-1].startswith("plan preprocess: 2/2 scans, ")
    assert (cost.scans, cost.tried) == (4, 2)
    assert cost.seconds > 0.05
    assert cost.megabytes == pytest.approx(64 * 64 * 50 * 2 / 1e6, rel=0.5)
    assert not list(cohort.parent.glob("**/plan*"))


def test_hours_and_disk_are_those_of_the_whole_cohort() -> None:
    cost = Cost(scans=7200, tried=5, seconds=8.0, megabytes=11.0)
    assert cost.hours(1) == pytest.approx(16)
    assert cost.hours(32) == pytest.approx(0.5)
    assert "0.5 hours on 32 cores" in cost.describe(32)
    assert "79.2 GB" in cost.describe(32)
    assert Cost(3, 3, 3600.0, 1.0).hours(8) == 1  # a scan is not shared between cores


def test_a_cohort_without_a_volume_cannot_be_planned(
    write_cohort: WriteCohort, tmp_path: Path
) -> None:
    path = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40)), np.diag([4.0, 4, 4, 1])), path)
    with pytest.raises(DataError, match="empty: every value is 0"):
        plan.plan(data=Path("/"), cohort=write_cohort({"a": path}), params=PARAMS, tries=3)
