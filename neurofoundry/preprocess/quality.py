"""How well a scan was preprocessed, in numbers with bounds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.preprocess import brain
from neurofoundry.preprocess.params import QualityParams
from neurofoundry.preprocess.reading import UnusableScanError
from neurofoundry.preprocess.registration import closest_rigid, entropies, joint_histogram
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, resample
from neurofoundry.preprocess.template import COMPARISON_MM, Template
from neurofoundry.volumes import BOX_MM

MEASURES = {
    "coverage": "brain within the field of view",
    "in_box": "brain within the standard box",
    "mask_ml": "volume of the brain mask in ml",
    "mask_dice": "overlap of the brain mask with the template's",
    "template_correlation": "correlation with the template",
    "template_nmi": "normalized mutual information with the template",
    "local_correlation": "local correlation with the template",
    "contrast": "contrast of white against grey matter",
    "rotation_deg": "rotation against the header in degrees",
    "scale": "size of the brain relative to the template",
    "determinant": "volume of the brain relative to the template",
    "stretch": "largest over smallest scale of the registration",
}
"""Column of volumes/scans.tsv, and what it holds in words."""

WINDOW_MM = 20.0
"""Edge of the cubes within which ``local_correlation`` compares."""
GREY, WHITE = 0.6, 0.8
"""Probability from which a voxel of the template counts as tissue, for ``contrast``."""


def measure(
    scan: Image,
    intensities: Image,
    *,
    surface: Array,
    affine: Matrix,
    to_scan: Matrix,
    mask_ml: float,
    template: Template,
) -> dict[str, float]:
    """Every one of ``MEASURES``.

    ``intensities`` are the brain alone, 0..1; ``surface`` is the brain's as it was found (mm of
    the scan); ``affine`` and ``to_scan`` map mm of the template to mm of the scan. Raises
    UnusableScanError when the registered scan shows nothing that could be compared.
    """
    grid, shape = template.t1.affine, template.t1.values.shape
    inside = resample(template.depth, grid, shape, outside=-100).values > 0
    expected = template.t1.values
    found = resample(intensities, grid, shape, transform=affine).values
    grey = found[inside & (template.grey.values > GREY)]
    white = found[inside & (template.white.values > WHITE)]
    if grey.std() + white.std() == 0:
        raise UnusableScanError(
            "registration failed: the scan is uniform where its brain should be"
        )
    filled = brain.fill(apply_affine(np.linalg.inv(affine), surface), grid, shape)
    joint = joint_histogram(
        torch.from_numpy(expected[inside]), torch.from_numpy(found[inside])[None]
    )
    first, second, both = (float(entropy) for entropy in entropies(joint))
    rotation = closest_rigid(affine, template.centre)[:3, :3]
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    low, high = np.transpose(BOX_MM)
    boxed = apply_affine(np.linalg.inv(to_scan), surface)
    measures = {
        "coverage": in_view(scan, apply_affine(affine @ grid, np.argwhere(inside))).mean(),
        "in_box": ((boxed > low) & (boxed < high)).all(axis=1).mean(),
        "mask_ml": mask_ml,
        "mask_dice": 2 * (filled & inside).sum() / (filled.sum() + inside.sum()),
        "template_correlation": np.corrcoef(expected[inside], found[inside])[0, 1],
        "template_nmi": (first + second) / both,
        "local_correlation": _local_correlation(expected, found, inside),
        "contrast": (white.mean() - grey.mean()) / (white.std() + grey.std()),
        "rotation_deg": np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))),
        "scale": np.cbrt(scales.prod()),
        "determinant": scales.prod(),
        "stretch": scales.max() / scales.min(),
    }
    return {name: round(float(value), 4) for name, value in measures.items()}


def judge(measures: Mapping[str, float], bounds: QualityParams) -> str | None:
    """Why a scan is not usable, in words; None when it is."""
    reasons = []
    for name in type(bounds).model_fields:
        value, bound = measures[name], getattr(bounds, name)
        # The comparisons are such that a value that is not a number breaks its bound.
        if bound.min is not None and not value >= bound.min:
            reasons.append(f"{MEASURES[name]}: {value:.3g}, expected at least {bound.min:g}")
        elif bound.max is not None and not value <= bound.max:
            reasons.append(f"{MEASURES[name]}: {value:.3g}, expected at most {bound.max:g}")
    return "; ".join(reasons) or None


def in_view(scan: Image, points: Array) -> Mask:
    """Which of ``points`` (n, 3) in mm lie within the scan's voxels: (n,)."""
    voxels = apply_affine(np.linalg.inv(scan.affine), points)
    return ((voxels >= -0.5) & (voxels <= np.array(scan.values.shape) - 0.5)).all(axis=1)


def _local_correlation(
    first: NDArray[np.float32], second: NDArray[np.float32], inside: Mask
) -> float:
    """Mean over ``inside`` of the correlation within the part of a cube that lies inside."""
    size = round(WINDOW_MM / COMPARISON_MM)
    share = ndimage.uniform_filter(inside.astype(np.float64), size, mode="constant")[inside]

    def mean(values: NDArray[np.float32]) -> Array:
        within = np.where(inside, values, 0).astype(np.float64)
        return ndimage.uniform_filter(within, size, mode="constant")[inside] / share

    a, b = mean(first), mean(second)
    a_variance = np.maximum(mean(first * first) - a**2, 0)
    b_variance = np.maximum(mean(second * second) - b**2, 0)
    covariance = mean(first * second) - a * b
    return float(np.mean(covariance / np.sqrt(np.maximum(a_variance * b_variance, 1e-10))))
