"""Transforms on disk, as ITK and ANTs read them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from neurofoundry.preprocess.resample import Matrix
from neurofoundry.preprocess.warp import Warp

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_itk(path: Path, to_scan: Matrix) -> None:
    """Write the map from MNI mm to the scan's mm as an ITK text transform.

    ITK's transforms map points of the fixed image (the template) to the moving one (the scan),
    which is how the scan is resampled onto the template, and ITK counts mm towards the left and
    the back (LPS) where NIfTI counts them towards the right and the front (RAS).
    """
    lps = RAS_TO_LPS @ to_scan @ RAS_TO_LPS
    numbers = " ".join(repr(float(value)) for value in [*lps[:3, :3].ravel(), *lps[:3, 3]])
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(
        "#Insight Transform File V1.0\n"
        "#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\n"
        "FixedParameters: 0 0 0\n"
    )
    temporary.replace(path)


def write_warp(forward: Path, inverse: Path, warp: Warp) -> None:
    """Write the displacements of a warp and of its inverse as NIfTI vector images.

    To resample a scan onto the template: ``antsApplyTransforms -i SCAN -r TEMPLATE -t FORWARD
    -t TO-MNI.txt``. To take an image of the template to the scan: ``-t [TO-MNI.txt,1] -t INVERSE``.
    """
    for path, field in ((forward, warp.forward), (inverse, warp.inverse)):
        vectors = (field * np.array([-1, -1, 1], np.float32))[..., None, :]  # LPS, as ITK counts
        image = nib.Nifti1Image(vectors, warp.affine)
        image.header.set_intent("vector")
        image.header.set_xyzt_units("mm")
        image.set_sform(warp.affine, code="mni")
        image.set_qform(warp.affine, code="mni")
        temporary = path.with_name(f".{path.name}.tmp.nii.gz")
        # No time and no name in the file: it has to be the same every run.
        with temporary.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            packed.write(image.to_bytes())
        temporary.replace(path)
