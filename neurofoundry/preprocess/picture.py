"""Three planes of a registered scan, with the outlines of its brain and of the template's."""

from __future__ import annotations

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

PIXEL_MM = 1.5
PLANES = ((0, 4.0), (1, -20.0), (2, 10.0))
"""Axis and position (mm): sagittal beside the midline, coronal, axial."""
MASK_COLOUR = (255, 70, 60)
TEMPLATE_COLOUR = (60, 200, 255)


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
    planes = [mni.plane(axis, position, PIXEL_MM) for axis, position in PLANES]
    panels = [_slice(scan, placement, plane) for plane in planes]
    top = np.percentile(np.concatenate([panel.ravel() for panel in panels]), 99.5)
    beyond = float(depth.values.min())
    for plane, panel in zip(planes, panels, strict=True):
        np.clip(panel * (255 / max(top, 1e-6)), 0, 255, out=panel)
        points, shape = plane.reshape(-1, 3), plane.shape[:2]
        in_template = apply_affine(placement.to_template, points)
        inside_template = look_up(depth, in_template, outside=beyond) > 0
        inside_mask = look_up(mask, points, order=0) > 0
        panel[_edge(inside_template.reshape(shape))] = TEMPLATE_COLOUR
        panel[_edge(inside_mask.reshape(shape))] = MASK_COLOUR
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((height - p.shape[0], 0), (0, 0), (0, 0))) for p in panels]
    with atomic(path) as temporary:
        Pillow.fromarray(np.concatenate(padded, axis=1).astype(np.uint8)).save(temporary, "PNG")


def _slice(scan: Image, placement: Placement, plane: Array) -> NDArray[np.float32]:
    """Return the scan's intensities at points (h, w, 3) of MNI space, as grey of three channels."""
    points = placement.in_scan(plane.reshape(-1, 3))
    grey = look_up(scan, points, outside=float(scan.values.min())).reshape(plane.shape[:2])
    return np.repeat(grey[..., None], 3, axis=2)


def _edge(inside: Mask) -> Mask:
    edge: Mask = inside & ~ndimage.binary_erosion(inside)
    return edge
