"""The head outside the brain, drawn with signed distances in mm, negative inside.

The template is skull-stripped, so skull, scalp, face and neck are modelled: layers at random
distances from the hull of the brain, and simple solids where a head has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.lattice import Array, LatticeMap, Triple, lattice_axes, lattice_shape

SHELL_CHANNELS = ("hull", "vault", "lower", "skull_weight", "temporal_muscle")
FACE_CHANNELS = ("air", "bone", "eye", "orbit", "canal")

HEAD_LOW: Triple = (-112.0, -148.0, -150.0)
HEAD_HIGH: Triple = (112.0, 140.0, 118.0)
"""Corners (MNI mm) of the box that holds every head."""
_SHELL_SPACING = 3.0


def shell_map(inside: NDArray[np.bool_], low: Triple) -> LatticeMap:
    """Map the distances to the brain's hull and to face and neck, and how thick the layers are.

    ``inside`` is the brain's mask, 1 mm, whose first voxel lies at ``low``, mm.
    """
    shape = lattice_shape(HEAD_LOW, HEAD_HIGH, _SHELL_SPACING)
    x, y, z = lattice_axes(HEAD_LOW, shape, _SHELL_SPACING)
    coordinates = [
        np.broadcast_to(axis - np.float32(o), shape) for axis, o in zip((x, y, z), low, strict=True)
    ]
    hull = _hull_distance(inside, coordinates)
    side = np.abs(x)
    # Bone is thin at the temples and thick at the back of the head.
    skull_weight = (
        1 - 0.5 * bump(side, y, z, (72, -5, -5), 24) + 0.3 * bump(x, y, z, (0, -105, 10), 28)
    )
    channels = {
        "hull": ndimage.gaussian_filter(hull, 0.9),
        "vault": ndimage.gaussian_filter(hull, 3.0),
        "lower": _lower_head(x, y, z),
        "skull_weight": skull_weight,
        "temporal_muscle": bump(side, y, z, (70, 22, -12), 22),
    }
    values = np.stack([np.broadcast_to(channels[c], shape) for c in SHELL_CHANNELS], axis=-1)
    return LatticeMap(np.ascontiguousarray(values, np.float32), HEAD_LOW, _SHELL_SPACING)


def _hull_distance(inside: NDArray[np.bool_], coordinates: list[Array]) -> Array:
    """Return the signed distance (mm) to the brain's hull at ``coordinates``, in voxels."""
    soft = ndimage.gaussian_filter(inside.astype(np.float32), 1.5, truncate=2)
    brain = ndimage.map_coordinates(soft, coordinates, order=1) > 0.5
    # Closing bridges fissures, so that bone does not follow them.
    near = ndimage.distance_transform_edt(~brain) * _SHELL_SPACING < 8
    hull = ndimage.distance_transform_edt(near) * _SHELL_SPACING > 8
    hull |= brain
    signed: Array = ndimage.distance_transform_edt(~hull) - ndimage.distance_transform_edt(hull)
    return signed * _SHELL_SPACING


def _lower_head(x: Array, y: Array, z: Array) -> Array:
    """Return the distance to neck, face, jaw, nose and ears, smoothly joined."""
    neck = np.sqrt((x / 1.05) ** 2 + (y + 38) ** 2) - 60
    neck = np.maximum(neck, z + 30)
    face = ellipsoid(x, y, z, (0, 28, -62), (66, 66, 66))
    jaw = ellipsoid(x, y, z, (0, 52, -110), (46, 44, 34))
    nose = capsule(x, y, z, (0, 84, -26, 6), (0, 97, -60, 10))
    ear = ellipsoid(np.abs(x) + 0.35 * (y + 24), y, z, (81, -24, -34), (4, 13, 26))
    lower = _smooth_minimum(neck, face, 30)
    lower = _smooth_minimum(lower, jaw, 15)
    lower = _smooth_minimum(lower, nose, 12)
    return _smooth_minimum(lower, ear, 8)


def face_map() -> LatticeMap:
    """Map the distances to air, bone, eyeballs, orbits and the spinal canal, below the brain."""
    low, high = (-84.0, -75.0, -150.0), (84.0, 120.0, -6.0)
    x, y, z = lattice_axes(low, lattice_shape(low, high, 2.0), 2.0)
    side = np.abs(x)
    # Air behind a thin wall of bone.
    sinuses = (
        ellipsoid(side, y, z, (29, 52, -68), (12, 15, 16)),  # maxillary
        ellipsoid(x, y, z, (0, 18, -42), (13, 13, 10)),  # sphenoid
        ellipsoid(side, y, z, (9, 76, -14), (8, 4.5, 9)),  # frontal
    )
    channels = {
        "air": _union(*sinuses, *_airways(x, y, z)),
        "bone": _union(*(np.abs(sinus) - 1.2 for sinus in sinuses), *_bones(x, y, z)),
        "eye": ellipsoid(side, y, z, (34, 62, -37), (12.5, 12.5, 12.5)),
        "orbit": ellipsoid(side, y, z, (33, 52, -37), (17, 25, 17)),
        "canal": capsule(x, y, z, (0, -46, -66, 8), (0, -44, -150, 8.5)),
    }
    values = np.stack(np.broadcast_arrays(*(channels[c] for c in FACE_CHANNELS)), axis=-1)
    return LatticeMap(np.ascontiguousarray(values, np.float32), low, 2.0)


def _airways(x: Array, y: Array, z: Array) -> tuple[Array, ...]:
    """Return the distances to the air outside the sinuses."""
    side = np.abs(x)
    nasal = np.maximum(ellipsoid(x, y, z, (0, 62, -58), (13, 32, 20)), 1.2 - side)
    ethmoid = np.maximum(ellipsoid(x, y, z, (0, 46, -40), (12, 22, 9)), 1.0 - side)
    pharynx = capsule(x, y, z, (0, 14, -70, 9), (0, -2, -150, 8))
    mastoid = ellipsoid(side, y, z, (54, -36, -52), (9, 11, 13))
    ear_canal = capsule(side, y, z, (48, -24, -42, 3), (80, -24, -44, 3.5))
    mouth = ellipsoid(x, y, z, (0, 62, -86), (22, 26, 3))
    return nasal, ethmoid, pharynx, mastoid, ear_canal, mouth


def _bones(x: Array, y: Array, z: Array) -> tuple[Array, ...]:
    """Return the distances to the bones of skull base, face and neck."""
    side = np.abs(x)
    petrous = capsule(side, y, z, (16, -14, -44, 8), (58, -34, -46, 11))
    clivus = capsule(x, y, z, (0, -4, -44, 7), (0, -24, -74, 6))
    vertebrae = capsule(x, y, z, (0, -26, -84, 9), (0, -24, -150, 10))
    palate = ellipsoid(x, y, z, (0, 58, -80), (28, 32, 4))
    mandible = _union(
        capsule(side, y, z, (48, -2, -62, 5), (44, 14, -108, 6)),
        capsule(side, y, z, (44, 14, -108, 7), (8, 80, -124, 8)),
    )
    cheek = capsule(side, y, z, (62, 30, -52, 4), (38, 66, -56, 6))
    orbital_wall = np.abs(ellipsoid(side, y, z, (33, 52, -37), (18, 26, 18))) - 1.0
    arch = np.abs(capsule(x, y, z, (0, -46, -76, 11), (0, -44, -150, 11))) - 2.5
    return petrous, clivus, vertebrae, palate, mandible, cheek, orbital_wall, arch


def _union(*distances: Array) -> Array:
    joined: Array = np.minimum.reduce(np.broadcast_arrays(*distances))
    return joined


def capsule(x: Array, y: Array, z: Array, a: tuple[float, ...], b: tuple[float, ...]) -> Array:
    """Return the distance to a capsule from (x, y, z, radius) ``a`` to ``b``, mm.

    Its radius changes linearly.
    """
    (ax, ay, az, ar), (bx, by, bz, br) = a, b
    ux, uy, uz = bx - ax, by - ay, bz - az
    along = ((x - ax) * ux + (y - ay) * uy + (z - az) * uz) / (ux * ux + uy * uy + uz * uz)
    t = np.clip(along, 0, 1)
    gap = np.sqrt((x - ax - t * ux) ** 2 + (y - ay - t * uy) ** 2 + (z - az - t * uz) ** 2)
    return np.asarray(gap - (ar + t * (br - ar)), np.float32)


def ellipsoid(
    x: Array, y: Array, z: Array, centre: tuple[float, ...], radii: tuple[float, ...]
) -> Array:
    """Return the approximate distance to an axis-aligned ellipsoid, mm."""
    (cx, cy, cz), (rx, ry, rz) = centre, radii
    r = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
    return np.asarray((r - 1) * min(radii), np.float32)


def _smooth_minimum(a: Array, b: Array, width: float) -> Array:
    """Join two distances, rounding the seam over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + h * (a - b) - width * h * (1 - h), np.float32)


def bump(x: Array, y: Array, z: Array, centre: tuple[float, ...], size: float) -> Array:
    """Return a smooth weight: 1 at ``centre``, 0 from twice ``size`` (mm) outwards."""
    cx, cy, cz = centre
    r2 = ((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / size**2
    return np.asarray(np.clip(1 - r2 / 4, 0, 1) ** 2, np.float32)
