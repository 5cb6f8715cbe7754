"""Three planes of a registered scan, with what was found in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from PIL import Image as Pillow
from scipy import ndimage

from neurofoundry.contracts import mni
from neurofoundry.preprocess.resample import Image, Mask, Matrix, look_up
from neurofoundry.preprocess.warp import Warp

PIXEL_MM = 1.5
PLANES = ((0, 4.0), (1, -20.0), (2, 10.0))
"""Axis and position (mm): sagittal beside the midline, coronal, axial."""
MASK_COLOUR = (255, 70, 60)
TEMPLATE_COLOUR = (60, 200, 255)


def write(
    path: Path,
    scan: Image,
    to_scan: Matrix,
    *,
    mask: Image,
    depth: Image,
    to_template: Matrix,
    warp: Warp | None = None,
) -> None:
    """Write a PNG: the scan, the edge of its brain mask (red), the template's brain (blue).

    ``to_scan`` maps MNI mm to the scan's mm; ``to_template`` maps MNI mm to where the affine
    registration puts them in the template, so that its outline has the size of the subject;
    ``warp`` moves points before ``to_scan`` does.
    """
    panels = []
    for axis, position in PLANES:
        points = mni.plane(axis, position, PIXEL_MM)
        shape, points = points.shape[:2], points.reshape(-1, 3)
        places = apply_affine(to_scan, warp(points) if warp else points)
        grey = look_up(scan, places, outside=float(scan.values.min())).reshape(shape)
        panels.append(np.repeat(grey[..., None], 3, axis=2))
    top = np.percentile(np.concatenate([panel.ravel() for panel in panels]), 99.5)
    for (axis, position), panel in zip(PLANES, panels, strict=True):
        points = mni.plane(axis, position, PIXEL_MM).reshape(-1, 3)
        shape = panel.shape[:2]
        np.clip(panel * (255 / max(top, 1e-6)), 0, 255, out=panel)
        beyond = float(depth.values.min())
        inside_template = look_up(depth, apply_affine(to_template, points), outside=beyond) > 0
        inside_mask = look_up(mask, points, order=0) > 0
        panel[_edge(inside_template.reshape(shape))] = TEMPLATE_COLOUR
        panel[_edge(inside_mask.reshape(shape))] = MASK_COLOUR
    height = max(panel.shape[0] for panel in panels)
    rows = [np.pad(p, ((height - p.shape[0], 0), (0, 0), (0, 0))) for p in panels]
    temporary = path.with_name(f".{path.name}.tmp")
    Pillow.fromarray(np.concatenate(rows, axis=1).astype(np.uint8)).save(temporary, "PNG")
    temporary.replace(path)


def _edge(inside: Mask) -> Mask:
    return inside & ~ndimage.binary_erosion(inside)
