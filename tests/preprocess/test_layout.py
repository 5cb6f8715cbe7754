from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK

from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, Volumes
from neurofoundry.preprocess import run
from neurofoundry.preprocess.layout import Layout, beginnings
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.runtime.stage import Workspace
from tests.support.preprocessing import PARAMS, WriteCohort

VALIDATOR = shutil.which(
    "bids-validator-deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


def cohort(*rows: tuple[str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["dataset", "subject", "session"])
    return table.assign(scan_id=["_".join(row) for row in rows])


def test_names_begin_with_labels_of_bids() -> None:
    found = beginnings(cohort(("oasis", "sub-01", "ses-1"), ("oasis", "sub-01", "ses-m12")))
    assert found == {
        "oasis_sub-01_ses-1": "sub-oasis01/ses-1/anat/sub-oasis01_ses-1",
        "oasis_sub-01_ses-m12": "sub-oasis01/ses-m12/anat/sub-oasis01_ses-m12",
    }


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "sub-1b", "ses-1"), ("a1", "sub-b", "ses-1")],
        [("a", "P-01", "ses-1"), ("a", "P01", "ses-1")],
        [("a", "P01", "ses-1"), ("a", "p01", "ses-1")],  # one file where letters have no case
        [("a", "01", "ses-1"), ("a", "sub-01", "ses-1")],
        [("a", "01", "ses-1.5"), ("a", "01", "ses-15")],
        [("", "-", "-"), ("-", "_", "_")],
    ],
)
def test_scans_whose_labels_look_the_same_are_kept_apart(rows: list[tuple[str, str, str]]) -> None:
    found = list(beginnings(cohort(*rows)).values())
    assert len({name.lower() for name in found}) == 2
    for name in found:
        sub, ses = name.split("/")[:2]
        assert sub.removeprefix("sub-").isalnum()
        assert ses.removeprefix("ses-").isalnum()


def test_names_say_what_is_in_the_files() -> None:
    half = PreprocessParams(grid=Grid(spacing=1.5), registration="syn", template=Path("2009c"))
    layout = Layout.of(half)
    assert layout.volume.format("sub-1") == "sub-1_space-MNI152_res-1p5_desc-preproc_T1w.nii"
    assert layout.warps[0] == "{}_from-T1w_to-MNI152_mode-image_desc-syn_xfm.nii.gz"
    assert len(layout.files) == 6


@pytest.fixture
def made(head_files: list[Path], write_cohort: WriteCohort, tmp_path: Path) -> Path:
    """An output of two heads and of a file that is no head."""
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(head_files[2].read_bytes()[:30_000])
    table = write_cohort({"head0": head_files[0], "head1": head_files[1], "cut": cut})
    folder = tmp_path / "volumes"
    folder.mkdir()
    work = Workspace(folder, data_version="f" * 64, data_reference="dvc:0a1b.dir")
    run.preprocess(work, data=Path("/"), cohort=table, params=PARAMS, workers=1)
    return folder


def test_an_output_is_a_dataset_of_bids_derivatives_that_anything_opens(made: Path) -> None:
    (volume,) = made.glob("sub-headshead0/ses-1/anat/*.nii")
    assert volume.name == "sub-headshead0_ses-1_space-MNI152NLin2009aSym_res-3_desc-preproc_T1w.nii"
    assert Volumes(made).path("head0") == volume
    np.testing.assert_allclose(nib.load(volume).affine, PARAMS.grid.affine)
    assert SimpleITK.ReadImage(str(volume)).GetSize() == PARAMS.grid.shape
    described = json.loads((made / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["SourceDatasets"] == [{"URL": "dvc:0a1b.dir", "Version": "f" * 64}]
    table = read_table(made / "scans.tsv", VOLUMES).set_index("scan_id")
    assert pd.isna(table.loc["cut", "volume"])
    if VALIDATOR is None:
        pytest.skip("pip install bids-validator-deno, and BIDS's own validator looks, too")
    assert problems(made) == []
    (made / ".bidsignore").unlink()  # it can fail
    assert "NOT_INCLUDED" in problems(made)


def problems(folder: Path) -> list[str]:
    """The errors that BIDS's own validator finds."""
    words = [str(VALIDATOR), "--format", "json", str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    issues = json.loads(told)["issues"]["issues"]
    return [each["code"] for each in issues if each["severity"] == "error"]
