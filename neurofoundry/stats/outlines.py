"""How well an outline agrees with another one: overlap, distance, volume, and single lesions."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

SIZES = {"small": (0.0, 1.0), "medium": (1.0, 10.0), "large": (10.0, math.inf)}
"""Sizes of lesions, from and below, in ml."""

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels that touch by a corner are one lesion."""

OUTLINE_METRICS = {
    "dice": "Dice",
    "hd95_mm": "95th percentile of the distance of surfaces, mm",
    "volume_error_ml": "Absolute error of the volume, ml",
    "lesion_f1": "F1 of lesions",
    **{f"sensitivity_{size}": f"Share of {size} lesions that are found" for size in SIZES},
    "nothing_found": "Share of empty label images on which nothing is outlined",
}
"""The names of the metrics, and what they are in words."""


def compare(found: Mask, truth: Mask, *, spacing: float, voxel_ml: float) -> dict[str, float]:
    """Return ``OUTLINE_METRICS`` of a scan, both masks (z, y, x) on one grid of ``spacing`` mm.

    NaN where a metric says nothing: of an empty label image Dice and distance, of a scan without
    lesions of a size the share of these. ``voxel_ml`` is the volume of a voxel in the scan.
    """
    volume_error = abs(int(found.sum()) - int(truth.sum())) * voxel_ml
    if not truth.any():
        nothing = dict.fromkeys(OUTLINE_METRICS, math.nan)
        return nothing | {"volume_error_ml": volume_error, "nothing_found": float(not found.any())}
    both = 2 * int((found & truth).sum())
    return {
        "dice": both / (int(found.sum()) + int(truth.sum())),
        "hd95_mm": hausdorff95(found, truth, spacing),
        "volume_error_ml": volume_error,
        **lesions(found, truth, voxel_ml),
        "nothing_found": math.nan,
    }


def hausdorff95(found: Mask, truth: Mask, spacing: float) -> float:
    """Return the larger of the 95th percentiles of the distances from either surface to the other,
    mm; NaN where nothing is found. MONAI's implementation."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    if not found.any():
        return math.nan
    one, other = (
        torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (found, truth)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an option that MONAI gives itself
        distance = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, spacing=[spacing] * 3
        )
    return float(distance)


def lesions(found: Mask, truth: Mask, voxel_ml: float) -> dict[str, float]:
    """Return the F1 of lesions, and the shares of those of each size that are found.

    A lesion is found where a voxel of it is outlined; what is outlined without a voxel of any
    lesion is a false one.
    """
    true, count = ndimage.label(truth, NEIGHBOURS)
    outlined, of_found = ndimage.label(found, NEIGHBOURS)
    sizes = np.bincount(true.ravel(), minlength=count + 1)[1:] * voxel_ml
    hit = np.isin(np.arange(1, count + 1), true[found])
    false = of_found - len(np.unique(outlined[truth & found]))
    shares = {}
    for size, (low, high) in SIZES.items():
        among = (sizes >= low) & (sizes < high)
        shares[f"sensitivity_{size}"] = float(hit[among].mean()) if among.any() else math.nan
    hits = int(hit.sum())
    return {"lesion_f1": 2 * hits / (hits + count + false) if count + false else math.nan, **shares}
