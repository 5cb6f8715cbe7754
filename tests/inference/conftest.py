from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from tests.support.inference import write_encoder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("inference") / "encoder")


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of NIfTI files: two heads, one of them in a folder, and one that is cut short."""
    folder = tmp_path_factory.mktemp("inference") / "raw"
    (folder / "later").mkdir(parents=True)
    atlas = build_atlas(2)
    for index, name in enumerate(("first.nii.gz", "later/second.nii")):
        subject = sample_subject(PhantomParams(seed=3), index)
        scan = head(subject, subject.sessions[0][0], SITES[subject.site], atlas, 3.0)
        nib.save(nib.Nifti1Image(scan.image.astype(np.int16), scan.affine), folder / name)
    content = (folder / "first.nii.gz").read_bytes()
    (folder / "torn.nii.gz").write_bytes(content[: len(content) // 2])
    return folder
