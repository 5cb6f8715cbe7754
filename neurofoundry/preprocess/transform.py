"""Transforms on disk, as ITK and ANTs read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurofoundry.preprocess.resample import Matrix

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
