"""Where a scan lies in MNI space: a linear map to it and, for syn, a warp before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import apply_affine

from neurofoundry.preprocess import registration, surface, warp
from neurofoundry.preprocess.brain import Brain, trust_template
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, look_up, resample
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.warp import Warp


@dataclass(frozen=True)
class Placement:
    """The maps between MNI space and a scan."""

    affine: Matrix
    """From mm of the template to mm of the scan, with twelve degrees of freedom."""
    to_scan: Matrix
    """From mm of MNI space to mm of the scan: ``affine``, or the rigid map closest to it."""
    warp: Warp | None = None
    """Moves points of MNI space before ``to_scan`` does."""

    @property
    def to_template(self) -> Matrix:
        """From mm of MNI space to mm of the template, where the subject keeps its own size."""
        to_template: Matrix = np.linalg.inv(self.affine) @ self.to_scan
        return to_template

    def in_scan(self, points: Array) -> Array:
        """Return where points (n, 3) of MNI space lie in the scan, in mm."""
        moved: Array = apply_affine(self.to_scan, self.warp(points) if self.warp else points)
        return moved

    def in_mni(self, points: Array) -> Array:
        """Return where points (n, 3) of the scan lie in MNI space, in mm."""
        moved: Array = apply_affine(np.linalg.inv(self.to_scan), points)
        return self.warp.back(moved) if self.warp else moved


def place(
    brains: Sequence[Brain],
    intensities: Sequence[Image],
    params: PreprocessParams,
    template: Template,
) -> list[Placement]:
    """Register brains to the template together; ``intensities`` are what each shows, 0..1."""
    if not brains:
        return []
    device = torch.device(params.device)
    centroids = [brain.centroid() for brain in brains]
    affines = registration.register(
        intensities, centroids, template.levels, template.centre, device
    )
    if params.registration == "rigid":
        rigid = [registration.closest_rigid(affine, template.centre) for affine in affines]
        return [Placement(*maps) for maps in zip(affines, rigid, strict=True)]
    if params.registration == "affine":
        return [Placement(affine, affine) for affine in affines]
    straightened = [
        _straighten(brain, affine, template) for brain, affine in zip(brains, affines, strict=True)
    ]
    warps = warp.register(template.fine, straightened, device)
    return [Placement(affine, affine, each) for affine, each in zip(affines, warps, strict=True)]


def brain_mask(brain: Brain, depth: Image, placement: Placement) -> Mask:
    """Return the brain on the grid of ``depth``, which lies in MNI space.

    ``depth`` is the signed distance to the template's edge, mm, positive inside.
    """
    affine, shape = depth.affine, depth.values.shape
    if brain.mask is None:
        filled = surface.fill(placement.in_mni(brain.surface), affine, shape)
        return trust_template(filled, depth.values)
    if placement.warp is None:
        values = resample(brain.mask, affine, shape, transform=placement.to_scan).values
        return values > 0.5
    voxels = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    points = placement.in_scan(apply_affine(affine, voxels))
    return (look_up(brain.mask, points) > 0.5).reshape(shape)


def _straighten(brain: Brain, affine: Matrix, template: Template) -> Image:
    """Return the brain on the template's grid, 0..1, by the affine map alone."""
    fine = template.fine
    shape = fine.values.shape
    depth = resample(template.depth, fine.affine, shape, outside=-100)
    mask = brain_mask(brain, depth, Placement(affine, affine))
    head = resample(brain.head, fine.affine, shape, transform=affine).values
    low, high = brain.brightness()
    straight = ((head - low) / (high - low)).clip(0, 1) * mask
    return Image(straight.astype(np.float32), fine.affine)
