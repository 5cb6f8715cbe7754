"""Transforms on disk, as ITK and ANTs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.affines import from_matvec

from neurofoundry.preprocess.resample import Matrix
from neurofoundry.preprocess.warp import Warp
from neurofoundry.runtime.files import atomic

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI counts mm towards the right and the front (RAS), ITK towards the left and the back."""


def write_affine(path: Path, to_scan: Matrix) -> None:
    """Write the map from mm of MNI space to mm of the scan as an ITK transform (.txt).

    ITK's transforms map points of the fixed image (the template) to the moving one (the scan),
    which is how the scan is resampled onto the template.
    """
    lps = RAS_TO_LPS @ to_scan @ RAS_TO_LPS
    transform = SimpleITK.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    with atomic(path) as temporary:
        SimpleITK.WriteTransform(transform, str(temporary))


def read_affine(path: Path) -> Matrix:
    """Read what `write_affine` wrote: the map from mm of MNI space to mm of the scan."""
    transform = SimpleITK.AffineTransform(SimpleITK.ReadTransform(str(path)))
    linear = np.reshape(transform.GetMatrix(), (3, 3))
    lps = from_matvec(linear, transform.GetTranslation())
    to_scan: Matrix = RAS_TO_LPS @ lps @ RAS_TO_LPS
    return to_scan


def write_warp(forward: Path, inverse: Path, warp: Warp) -> None:
    """Write the displacements of a warp and of its inverse as NIfTI vector images (.nii.gz).

    To resample a scan onto the template: ``antsApplyTransforms -i SCAN -r TEMPLATE -t FORWARD
    -t TO-MNI.txt``. To take an image of the template to the scan: ``-t [TO-MNI.txt,1] -t INVERSE``.
    """
    for path, field in ((forward, warp.forward), (inverse, warp.inverse)):
        vectors = (field * np.diag(RAS_TO_LPS)[:3].astype(np.float32))[..., None, :]
        image = nib.Nifti1Image(vectors, warp.affine)
        image.header.set_intent("vector")
        image.header.set_xyzt_units("mm")
        image.set_sform(warp.affine, code="mni")
        image.set_qform(warp.affine, code="mni")
        with atomic(path) as temporary:
            nib.save(image, temporary)


def read_warp(forward: Path, inverse: Path) -> Warp:
    """Read what `write_warp` wrote."""
    images: list[Any] = [nib.load(path) for path in (forward, inverse)]
    there, back = (
        np.asarray(image.dataobj, np.float32)[..., 0, :]
        * np.diag(RAS_TO_LPS)[:3].astype(np.float32)
        for image in images
    )
    return Warp(there, back, images[0].affine)
