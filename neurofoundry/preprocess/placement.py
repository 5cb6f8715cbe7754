"""Where a scan lies in MNI space: a linear map to it and, for syn, a warp before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from nibabel.affines import apply_affine

from neurofoundry.preprocess import registration, surface, warp
from neurofoundry.preprocess.brain import Brain, elsewhere, settle, without_shading
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, look_up, resample
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.warp import Warp

FOUND = 0.15
"""Mutual information with the whole head, in nats at 4 mm, below which a brain is sought elsewhere,
too. Old heads have 0.26 and more where they are placed right, and at most 0.13 elsewhere."""


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

    def then(self, to_other: Matrix) -> Placement:
        """Return where another image lies to which ``to_other`` leads from the scan, in mm."""
        return replace(self, affine=to_other @ self.affine, to_scan=to_other @ self.to_scan)

    def in_mni(self, points: Array) -> Array:
        """Return where points (n, 3) of the scan lie in MNI space, in mm."""
        moved: Array = apply_affine(np.linalg.inv(self.to_scan), points)
        return self.warp.back(moved) if self.warp else moved


@dataclass(frozen=True)
class _Located:
    """Where a brain lies roughly."""

    brain: Brain
    affine: Matrix
    fit: float
    """Mutual information, in nats."""

    @property
    def plausible(self) -> bool:
        """Whether a brain can have this shape and size."""
        return bool(registration.plausible(self.affine[None, :3])[0])


def place(
    brains: Sequence[Brain],
    intensities: Sequence[Image],
    params: PreprocessParams,
    template: Template,
) -> list[tuple[Placement, Brain]]:
    """Register brains to the template together; ``intensities`` are what each shows, 0..1.

    A brain comes back as scan and template together show it. What the scan alone shows tells where
    it lies roughly; at every level it is then cut and completed where the template has it.
    """
    if not brains:
        return []
    device = torch.device(params.device)
    centre = template.centre
    located = [
        each if each.fit >= FOUND else _look_elsewhere(each, template, device)
        for each in _locate(brains, intensities, template, device)
    ]
    affines = [each.affine for each in located]
    found = [each.brain for each in located]
    if params.bias_correction == "n4":
        found = [without_shading(brain) for brain in found]
    for level in registration.finer(template.levels)[1:]:
        shown = [brain.intensities() for brain in found]
        affines, _ = registration.refine(shown, affines, [level], centre, device)
        found = [_settle(brain, a, template) for brain, a in zip(found, affines, strict=True)]
    if params.registration == "rigid":
        # The shape is that of the whole brain; how it lies is told by what is within it.
        shown = [brain.intensities() for brain in found]
        affines, _ = registration.refine(
            shown, affines, [template.within], centre, device, rigid=True
        )
        placements = [Placement(a, registration.closest_rigid(a, centre)) for a in affines]
    elif params.registration == "affine":
        placements = [Placement(affine, affine) for affine in affines]
    else:
        straightened = [
            _straighten(brain, a, template) for brain, a in zip(found, affines, strict=True)
        ]
        warps = warp.register(template.fine, straightened, device)
        placements = [Placement(a, a, each) for a, each in zip(affines, warps, strict=True)]
    return list(zip(placements, found, strict=True))


def brain_mask(brain: Brain, grid: Matrix, shape: tuple[int, ...], placement: Placement) -> Mask:
    """Return the brain on a grid of MNI space."""
    if brain.mask is None:
        return surface.fill(placement.in_mni(brain.surface), grid, shape)
    if placement.warp is None:
        values = resample(brain.mask, grid, shape, transform=placement.to_scan).values
        return values > 0.5
    voxels = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    points = placement.in_scan(apply_affine(grid, voxels))
    return (look_up(brain.mask, points) > 0.5).reshape(shape)


def _locate(
    brains: Sequence[Brain], intensities: Sequence[Image], template: Template, device: torch.device
) -> list[_Located]:
    """Find where brains lie, by the whole heads: no mask of ours has a say in which is right."""
    affines, fits = registration.orient(
        intensities,
        [brain.uncut() for brain in brains],
        [brain.centroid() for brain in brains],
        template.levels,
        template.judged,
        template.centre,
        device,
    )
    return [
        _Located(_settle(brain, affine, template), affine, fit)
        for brain, affine, fit in zip(brains, affines, fits, strict=True)
    ]


def _look_elsewhere(first: _Located, template: Template, device: torch.device) -> _Located:
    """Return the brain where its surface may have grown instead, if it fits far better there."""
    best = first
    for brain in elsewhere(first.brain):
        (other,) = _locate([brain], [brain.intensities()], template, device)
        if other.plausible and other.fit > max(best.fit, registration.CONVINCING * first.fit):
            best = other
        if best.fit >= FOUND:
            break
    return best


def _settle(brain: Brain, affine: Matrix, template: Template) -> Brain:
    """Return the brain where ``affine`` puts the template's."""
    head, to_template = brain.head, np.linalg.inv(affine).astype(np.float64)
    depth = resample(
        template.depth, head.affine, head.values.shape, transform=to_template, outside=-100
    )
    return settle(brain, depth.values)


def _straighten(brain: Brain, affine: Matrix, template: Template) -> Image:
    """Return the brain on the template's grid, 0..1, by the affine map alone."""
    fine = template.fine
    shape = fine.values.shape
    mask = brain_mask(brain, fine.affine, shape, Placement(affine, affine))
    head = resample(brain.head, fine.affine, shape, transform=affine).values
    low, high = brain.brightness()
    straight = ((head - low) / (high - low)).clip(0, 1) * mask
    return Image(straight.astype(np.float32), fine.affine)
