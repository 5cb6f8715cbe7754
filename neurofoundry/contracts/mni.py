"""The MNI152 template as nilearn ships it (ICBM 2009a nonlinear symmetric, 1 mm), and its planes.

Fonov et al., NeuroImage 54 (2011) 313-327. It shows the brain without the skull.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.volumes import BOX_MM, DAMAGED
from neurofoundry.errors import UsageError


@cache
def load(name: Literal["t1", "gm", "wm"]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a map of nilearn (x, y, z), scaled to 0..1, and its affine. Neither may be changed.

    Raises UsageError.
    """
    # Importing nilearn itself takes a second.
    spec = importlib.util.find_spec("nilearn")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj, np.float32)
    except (OSError, *DAMAGED) as error:
        raise UsageError(
            f"The template {path} cannot be read: {error}. It comes with nilearn: "
            "pip install --force-reinstall nilearn."
        ) from error
    return values / np.float32(255), image.affine


def plane(axis: int, position: float, pixel: float) -> NDArray[np.float64]:
    """Return points (rows, columns, 3), in mm, of a plane across the standard box.

    The plane is at ``position`` mm of ``axis``, with a point every ``pixel`` mm, rows from the top.
    """
    across, up = (other for other in range(3) if other != axis)
    columns, rows = (
        np.arange(low + pixel / 2, high, pixel) for low, high in (BOX_MM[across], BOX_MM[up])
    )
    points = np.empty((len(rows), len(columns), 3))
    points[..., axis] = position
    points[..., across] = columns
    points[..., up] = rows[::-1, None]
    return points
