from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.volumes import Grid
from neurofoundry.nn import encoders
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess.params import PreprocessParams

RECIPE = PreprocessParams(grid=Grid(spacing=6.0), registration_spacing=4.0)


def write_encoder(
    folder: Path, *, recipe: PreprocessParams | dict[str, Any] | None = RECIPE
) -> Path:
    """Untrained weights for 6 mm, that say how their volumes are made."""
    if isinstance(recipe, PreprocessParams):
        left_out = {"outliers", "overrides", "device", "batch", "template"}
        recipe = recipe.model_dump(mode="json", exclude=left_out)
    folder.mkdir(parents=True)
    params = EncoderParams(stem_stride=2, width=0.125)
    encoder = encoders.build(params, seed=5)
    plan = Plan(
        name="simclr",
        encoder=params,
        features=encoder.features,
        grid=RECIPE.grid.describe(),
        preprocess=recipe or {},
        method="simclr",
        licence="none",
    )
    encoders.save(folder, encoder, plan)
    return folder


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
