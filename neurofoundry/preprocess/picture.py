"""Three planes of a registered scan: with the outlines of its brain and of the template's, or of
another contrast with the edges of the T1w image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from neurofoundry.contracts import mni
from neurofoundry.preprocess.placement import Placement
from neurofoundry.preprocess.resample import Array, Image, Mask, look_up
from neurofoundry.runtime.files import atomic

Panel = NDArray[np.float32]
"""Grey or colours of a plane, (h, w, 3), 0..255."""

PIXEL_MM = 1.5
PLANES = ((0, 4.0), (1, -20.0), (2, 10.0))
"""Axis and position (mm): sagittal beside the midline, coronal, axial."""
MASK_COLOUR = (255, 70, 60)
TEMPLATE_COLOUR = (60, 200, 255)
FINE_MM, BLUR, STRONG = 1.0, 1.2, 80
"""Of pictures with edges: mm and pixels, and the percentile from which slopes are edges."""


def write(
    path: Path,
    scan: Image,
    placement: Placement,
    *,
    mask: Image,
    depth: Image,
) -> None:
    """Write a PNG: the scan, the edge of its brain mask (red), the template's brain (blue).

    ``mask`` lies in MNI space, as does ``depth``, the signed distance to the template's edge. The
    template's outline has the size of the subject.
    """
    beyond = float(depth.values.min())

    def outline(plane: Array, panel: Panel) -> None:
        points, shape = plane.reshape(-1, 3), plane.shape[:2]
        in_template = apply_affine(placement.to_template, points)
        inside_template = look_up(depth, in_template, outside=beyond) > 0
        inside_mask = look_up(mask, points, order=0) > 0
        panel[_rim(inside_template.reshape(shape))] = TEMPLATE_COLOUR
        panel[_rim(inside_mask.reshape(shape))] = MASK_COLOUR

    _draw(path, scan, placement, outline, PIXEL_MM)


def write_further(
    path: Path, scan: Image, placement: Placement, *, t1w: Image, of_t1w: Placement
) -> None:
    """Write a PNG: another contrast, and the edges that the T1w image has there (red).

    Where the two were brought together, they lie on the edges of what is seen.
    """

    def outline(plane: Array, panel: Panel) -> None:
        panel[_edges(_slice(t1w, of_t1w, plane))] = MASK_COLOUR

    _draw(path, scan, placement, outline, FINE_MM)


def _draw(
    path: Path,
    scan: Image,
    placement: Placement,
    outline: Callable[[Array, Panel], None],
    pixel_mm: float,
) -> None:
    """Write a PNG of a scan's planes; ``outline`` draws upon the panel of each."""
    planes = [mni.plane(axis, position, pixel_mm) for axis, position in PLANES]
    panels = [np.repeat(_slice(scan, placement, plane)[..., None], 3, axis=2) for plane in planes]
    top = np.percentile(np.concatenate([panel.ravel() for panel in panels]), 99.5)
    for plane, panel in zip(planes, panels, strict=True):
        np.clip(panel * (255 / max(top, 1e-6)), 0, 255, out=panel)
        outline(plane, panel)
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((height - p.shape[0], 0), (0, 0), (0, 0))) for p in panels]
    with atomic(path) as temporary:
        Pillow.fromarray(np.concatenate(padded, axis=1).astype(np.uint8)).save(temporary, "PNG")


def _slice(scan: Image, placement: Placement, plane: Array) -> NDArray[np.float32]:
    """Return the scan's intensities at points (h, w, 3) of MNI space, (h, w)."""
    points = placement.in_scan(plane.reshape(-1, 3))
    return look_up(scan, points, outside=float(scan.values.min())).reshape(plane.shape[:2])


def _edges(grey: NDArray[np.float32]) -> Mask:
    """Return where a plane's slope is steep and its curvature changes sign (Marr and Hildreth)."""
    curvature = ndimage.gaussian_laplace(grey, BLUR)
    slope = ndimage.gaussian_gradient_magnitude(grey, BLUR)
    edges: Mask = _rim(curvature > 0) & (slope > np.percentile(slope, STRONG))
    return edges


def _rim(inside: Mask) -> Mask:
    rim: Mask = inside & ~ndimage.binary_erosion(inside)
    return rim
