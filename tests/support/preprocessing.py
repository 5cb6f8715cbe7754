"""What tests of preprocessing share: parameters that are cheap, and one scan at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from neurofoundry.contracts.volumes import Grid
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Image
from neurofoundry.preprocess.scan import Job, Result, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.runtime.files import hash_file

WriteCohort = Callable[[Mapping[str, Path]], Path]

PARAMS = PreprocessParams(grid=Grid(spacing=3.0), registration_spacing=4.0)

LAYOUT = Layout.of(PARAMS)
VOLUME, RESULT = LAYOUT.volume.format("a"), LAYOUT.result.format("a")
PICTURE, TRANSFORM = LAYOUT.picture.format("a"), LAYOUT.transform.format("a")
"""Files of the scan ``a``."""

GOOD_MEASURES = {
    "coverage": 1.0,
    "in_box": 1.0,
    "margin_mm": 12.0,
    "mask_ml": 1400.0,
    "mask_dice": 0.95,
    "template_correlation": 0.7,
    "template_nmi": 1.1,
    "local_correlation": 0.7,
    "brighter_grey": 0.02,
    "contrast": 0.9,
    "cnr": 6.0,
    "bias": 0.05,
    "ghosting": 0.02,
    "spike": 2.0,
    "rotation_deg": 8.0,
    "scale": 0.92,
    "determinant": 0.78,
    "stretch": 1.1,
}
"""Every measure that any registration gives, within all bounds."""


def preprocess_one(
    path: Path, out: Path, template: Template, params: PreprocessParams = PARAMS
) -> Result:
    """Preprocess a scan under the name ``a`` into the folder ``out``, which is made."""
    out.mkdir(exist_ok=True)
    job = Job(path, "a", hash_file(path), "k")
    return preprocess_scans([job], out=out, params=params, template=template)[0]


def write_heads(heads: Sequence[Head], folder: Path, name: str) -> list[Path]:
    """Write heads as NIfTI images of whole numbers, as scanners do."""
    paths = [folder / f"{name}-{number}.nii.gz" for number in range(len(heads))]
    for path, scan in zip(paths, heads, strict=True):
        nib.save(nib.Nifti1Image(scan.image.astype(np.int16), scan.affine), path)
    return paths


def image_of(head: Head) -> Image:
    """The image of a phantom as `read_scan` would give it."""
    return Image(head.image.astype(np.float32), head.affine)
