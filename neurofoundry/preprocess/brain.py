"""The brain of a scan: found in the scan alone, then corrected by the template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.preprocess import bias, mask_command, surface
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, Mask, coarsen, resample

EMPTY_SHARE, STRIPPED_ML = 0.5, (600.0, 2200.0)
"""What tells a scan that shows a brain alone. Heads have 2500 ml and more."""
TRUSTED_OUTSIDE_MM, TRUSTED_INSIDE_MM = 7.0, 3.0
"""Beyond this distance from the template's edge, the template knows better than the surface."""
RIM_MM, DEEP_MM = 2.0, 10.0
"""How far inside the template's edge the dark rim may reach, and from where on all is brain."""
DARK = 0.4
"""Fluid, bone and air, as a share of the deep brain's brightness. Chosen on a real head with a mask
that was edited by hand, see docs/measurements.md."""
SPIKE_MM = 2.0
"""Half the width of what sticks out of the brain into the skull base."""


@dataclass(frozen=True)
class Brain:
    """A brain as the scan alone shows it."""

    head: Image
    """The scan as registration needs it: coarse, and without shading."""
    inside: Mask
    """The brain's voxels of ``head``."""
    surface: Array
    """Vertices (v, 3) of the brain's surface, mm of the scan."""
    mask: Image | None
    """On the scan's grid, where it is known better than by the surface."""
    log_bias: Image | None
    """Logarithm of the shading that was removed."""

    def brightness(self) -> tuple[np.floating, np.floating]:
        """Return the intensity of the background, and the highest of the brain but for outliers."""
        values = self.head.values
        return np.percentile(values, 2), np.percentile(values[self.inside], 99.5)

    def intensities(self) -> Image:
        """Return the brain alone, 0..1, and 0 outside. Raises UnusableScanError if it is empty."""
        if not self.inside.any():
            raise UnusableScanError("no brain: the surface that should hold it is empty")
        low, high = self.brightness()
        if high <= low:
            raise UnusableScanError("no brain: what should be it is as dark as the background")
        values = ((self.head.values - low) / (high - low)).clip(0, 1) * self.inside
        return Image(values.astype(np.float32), self.head.affine)

    def centroid(self) -> Array:
        """Return the brain's centre, (3,), mm of the scan."""
        centre: Array = apply_affine(self.head.affine, np.argwhere(self.inside).mean(axis=0))
        return centre


def find_brain(scan: Image, params: PreprocessParams) -> Brain:
    """Find the brain as the parameters say. Raises UnusableScanError where there is none."""
    background = float(scan.values.min())
    head = coarsen(scan, min(surface.SPACING_MM, params.registration_spacing), outside=background)
    mask = mask_command.run(scan, params.mask) if params.mask is not None else stripped(scan)
    if mask is None:
        vertices = surface.find_surface(coarsen(head, surface.SPACING_MM, outside=background))
        inside = surface.fill(vertices, head.affine, head.values.shape)
    else:
        vertices = surface.wrap(mask)
        inside = resample(mask, head.affine, head.values.shape).values > 0.5
    if params.bias_correction == "none":
        return Brain(head, inside, vertices, mask, None)
    log_bias = bias.estimate(head, inside)
    return Brain(bias.correct(head, log_bias), inside, vertices, mask, log_bias)


def stripped(scan: Image) -> Image | None:
    """Return the mask of a scan that others have skull-stripped; None for any other scan.

    A stripped scan has one value wherever there is no brain, and shows nothing larger than one.
    """
    outside = scan.values == scan.values.min()
    if outside.mean() < EMPTY_SHARE:
        return None
    largest = ndimage.binary_fill_holes(largest_component(~outside))
    ml = largest.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if not STRIPPED_ML[0] <= ml <= STRIPPED_ML[1]:
        return None
    return Image(largest.astype(np.float32), scan.affine)


def largest_component(mask: Mask) -> Mask:
    """Return the largest connected component of a mask; nothing of an empty one."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = mask & (labels == sizes.argmax())
    return largest


def trust_template(mask: Mask, depth: NDArray[np.float32]) -> Mask:
    """Let the template overrule the mask far from its own edge, ``depth`` mm inside of it."""
    corrected: Mask = (mask & (depth > -TRUSTED_OUTSIDE_MM)) | (depth > TRUSTED_INSIDE_MM)
    return corrected


def rim(
    values: NDArray[np.float32], mask: Mask, depth: NDArray[np.float32], dark: float, spacing: float
) -> Mask:
    """Return the voxels of ``mask`` that are not brain although the surface encloses them.

    The surface is smooth: it spans fluid between brain and skull, and leaks into the air of the
    skull base. ``values`` are intensities of a T1-weighted scan, ``dark`` that of its background,
    ``depth`` mm inside the template's edge, ``spacing`` mm.
    """
    deep = values[mask & (depth > DEEP_MM)]
    if deep.size == 0:
        return np.zeros_like(mask)
    bright = values - dark > DARK * (float(np.median(deep)) - dark)
    kept = mask & (bright | (depth > RIM_MM))
    if steps := round(SPIKE_MM / spacing):
        kept = ndimage.binary_opening(kept, iterations=steps) | (kept & (depth > 0))
    return mask & ~kept
