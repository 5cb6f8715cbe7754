"""The template as registration and quality control need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from neurofoundry import mni
from neurofoundry.preprocess.registration import Level
from neurofoundry.preprocess.resample import Array, Image, Mask, antialias, coarsen, resample

COMPARISON_MM = 4.0
"""Spacing at which a registered scan is compared with the template, whatever the parameters:
the bounds of quality hold at this resolution."""
COARSEST_MM = 16.0
MOST_POINTS = 40_000
"""At which a level is compared. All 260,000 at 2 mm move real heads by 0.2 mm, as two more steps
of the optimizer do, and cost a second."""
MARGIN_MM = 12.0
"""Around the brain, where the displacements of syn come to rest."""


@dataclass(frozen=True)
class Template:
    """What the scans are compared with, made once and handed to every worker."""

    centre: Array
    """Centroid of the brain, mm."""
    levels: tuple[Level, ...]
    """The template as registration sees it, coarse to fine."""
    fine: Image
    """Intensity, 0..1, around the brain at the spacing of registration; even numbers of voxels."""
    t1: Image
    grey: Image
    white: Image
    """Intensity and tissue probabilities at ``COMPARISON_MM``, 0..1."""
    depth: Image
    """Signed distance to the edge of the brain in mm, positive inside, at 2 mm."""


def build(registration_spacing: float) -> Template:
    """Read the template and derive what workers need. About 1 s."""
    t1 = load("t1")
    inside = t1.values > 0
    centre = apply_affine(t1.affine, np.argwhere(inside).mean(axis=0))
    spacings = [COARSEST_MM]
    while spacings[-1] > registration_spacing:
        spacings.append(max(spacings[-1] / 2, registration_spacing))
    comparison = coarsen(t1, COMPARISON_MM)
    grid = (comparison.affine, comparison.values.shape)
    brain = coarsen(Image(inside.astype(np.float32), t1.affine), 2.0)
    edge = brain.values > 0.5
    depth = ndimage.distance_transform_edt(edge) - ndimage.distance_transform_edt(~edge)
    # Distances are to the nearest voxel centre across the edge; the edge lies half a voxel nearer.
    depth = 2.0 * (depth - 0.5 * np.sign(depth))
    return Template(
        centre=centre,
        fine=_around(t1, inside, spacings[-1]),
        levels=tuple(_level(t1, centre, spacing) for spacing in spacings),
        t1=comparison,
        grey=resample(antialias(load("gm"), COMPARISON_MM), *grid),
        white=resample(antialias(load("wm"), COMPARISON_MM), *grid),
        depth=Image(depth.astype(np.float32), brain.affine),
    )


def load(name: Literal["t1", "gm", "wm"]) -> Image:
    """A map of the template, 0..1."""
    return Image(*mni.load(name))


def _around(t1: Image, inside: Mask, spacing: float) -> Image:
    """The image on a grid that reaches at least ``MARGIN_MM`` beyond the brain."""
    places = apply_affine(t1.affine, np.argwhere(inside))
    low, high = places.min(axis=0) - MARGIN_MM, places.max(axis=0) + MARGIN_MM
    shape = 2 * np.ceil((high - low) / spacing / 2).astype(int)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high - spacing * (shape - 1)) / 2
    return resample(antialias(t1, spacing), affine, shape.tolist())


def _level(t1: Image, centre: Array, spacing: float) -> Level:
    coarse = coarsen(t1, spacing)
    # One voxel beyond the brain, where its edge shows.
    voxels = np.argwhere(ndimage.binary_dilation(coarse.values > 0.1))
    if len(voxels) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(voxels), MOST_POINTS, replace=False)
        voxels = voxels[np.sort(chosen)]
    points = apply_affine(coarse.affine, voxels) - centre
    return Level(spacing, points.astype(np.float32), coarse.values[tuple(voxels.T)])
