"""Where the brain is: a surface grows inside the head until it meets dark cerebrospinal fluid.

Smith, Human Brain Mapping 17 (2002) 143-155 ("BET"), with fewer vertices and iterations.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import ConvexHull

from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, look_up

SPACING_MM = 3.0
"""Of the heads in which the surface grows: finer voxels show it the sulci, where it sinks in."""
SUBDIVISIONS = 3
ITERATIONS = 300
FRACTION = 0.7
"""Smith's b_t: the intensity that bounds the brain, from the darkest (0) to the locally brightest
(1)."""
TIGHTEST_MM, WIDEST_MM = 3.33, 10.0
"""Radii of curvature below which the surface is smoothed fully, and above which hardly."""
STEP_MM = 2.0
INNER_STEPS, OUTER_STEPS = 10, 5
"""How far below the surface the darkest and the brightest intensity are looked for: 20, 10 mm."""
HEAD_MM = 160.0
"""Height of a head below its vertex; what lies lower is neck."""
EMPTY_SHARE, STRIPPED_ML = 0.5, (600.0, 2200.0)
"""What tells a scan that shows a brain alone. Heads have 2500 ml and more."""
REACH_MM, RAY_MM = 140.0, 0.5
"""How far, and in what steps, the edge of a given mask is looked for."""
TRUSTED_OUTSIDE_MM, TRUSTED_INSIDE_MM = 7.0, 3.0
"""Beyond this distance from the template's edge, the template knows better than the surface."""
RIM_MM, DEEP_MM = 2.0, 10.0
"""How far inside the template's edge the dark rim may reach, and from where on all is brain."""
DARK = 0.4
"""Fluid, bone and air, as a share of the deep brain's brightness. Chosen on a real head with a mask
that was edited by hand, see docs/measurements.md."""
SPIKE_MM = 2.0
"""Half the width of what sticks out of the brain into the skull base."""


def find_surface(head: Image) -> Array:
    """Vertices (mm) of a closed surface around the brain, in the order of ``sphere``.

    ``head`` is on an RAS+ grid of cubic voxels of ``SPACING_MM``. Raises UnusableScanError where
    nothing in it could be a head.
    """
    values = head.values
    dark, bright = np.percentile(values[values > values.min()], [2, 98]).tolist()
    threshold = dark + 0.1 * (bright - dark)
    tissue = values > threshold
    slices = np.flatnonzero(tissue.sum(axis=(0, 1)) * SPACING_MM**2 > 1000)
    if len(slices) == 0:
        raise UnusableScanError("no head: nothing in the image is as large as one")
    tissue[:, :, : max(0, slices[-1] + 1 - round(HEAD_MM / SPACING_MM))] = False
    voxels = np.argwhere(tissue)
    centre = np.average(voxels, axis=0, weights=np.minimum(values[tissue], bright) - dark)
    radius = (3 / (4 * np.pi) * len(voxels)) ** (1 / 3)
    ball = voxels[((voxels - centre) ** 2).sum(axis=1) < radius**2]
    typical = float(np.median(values[tuple(ball.T)]))
    if typical <= threshold:
        raise UnusableScanError("no head: the middle of the image is as dark as its background")
    surface = centre + sphere()[0] * radius / 2
    return apply_affine(head.affine, _grow(values, surface, dark, threshold, typical))


def fill(surface: Array, affine: Matrix, shape: tuple[int, ...]) -> Mask:
    """The voxels of a grid whose centres lie inside the surface (mm).

    Every line of voxels along the last axis counts the faces that it crosses, entering or
    leaving.
    """
    corners = apply_affine(np.linalg.inv(affine), surface)[sphere()[1]]
    # A line through an edge or a vertex would count several faces, or none.
    corners = corners + np.array([1.7e-5, 2.3e-5, 0])
    low = np.ceil(corners[..., :2].min(axis=1)).astype(int).clip(0)
    high = np.floor(corners[..., :2].max(axis=1)).astype(int).clip(max=np.array(shape[:2]) - 1)
    width, depth = (high - low + 1).clip(0).T
    # One row for each pair of a face and a line within the face's bounding rectangle.
    face = np.repeat(np.arange(len(corners)), width * depth)
    rank = np.arange(len(face)) - np.repeat(np.cumsum(width * depth) - width * depth, width * depth)
    line = low[face] + np.stack([rank // depth[face], rank % depth[face]], axis=1)
    a, b, c = (corners[face, n] for n in range(3))
    flat_a, flat_b, flat_c = a[:, :2] - line, b[:, :2] - line, c[:, :2] - line
    weights = np.stack([_cross(flat_b, flat_c), _cross(flat_c, flat_a), _cross(flat_a, flat_b)])
    area = weights.sum(axis=0)
    hit = (weights * np.sign(area) > 0).all(axis=0)
    heights = np.stack([a[:, 2], b[:, 2], c[:, 2]])
    height = (weights * heights)[:, hit].sum(axis=0) / area[hit]
    crossings = np.zeros((*shape[:2], shape[2] + 1), np.int8)
    above = np.ceil(height).astype(int).clip(0, shape[2])
    np.add.at(crossings, (*line[hit].T, above), np.sign(area[hit]).astype(np.int8))
    return np.cumsum(crossings[..., :-1], axis=2, dtype=np.int8) != 0


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask; nothing of an empty one."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return mask & (labels == sizes.argmax())


def stripped(scan: Image) -> Image | None:
    """The mask of a scan that shows a brain alone, as others have extracted it; else None.

    Such a scan has one value wherever there is no brain, and what it shows is no larger than one.
    """
    outside = scan.values == scan.values.min()
    if outside.mean() < EMPTY_SHARE:
        return None
    largest = ndimage.binary_fill_holes(largest_part(~outside))
    ml = largest.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if not STRIPPED_ML[0] <= ml <= STRIPPED_ML[1]:
        return None
    return Image(largest.astype(np.float32), scan.affine)


def wrap(mask: Image) -> Array:
    """Vertices (mm) of a surface around a mask, in the order of ``sphere``.

    Each lies where the line from the mask's centroid leaves it for the last time.
    """
    centre = apply_affine(mask.affine, np.argwhere(mask.values > 0.5).mean(axis=0))
    steps = np.arange(0, REACH_MM, RAY_MM)
    rays = centre + steps[:, None, None] * sphere()[0]
    inside = look_up(mask, rays.reshape(-1, 3)).reshape(len(steps), -1) > 0.5
    last = len(steps) - 1 - inside[::-1].argmax(axis=0)
    return centre + steps[last][:, None] * sphere()[0]


def correct(mask: Mask, depth: NDArray[np.float32]) -> Mask:
    """Let the template overrule the mask far from its own edge, ``depth`` mm inside of it."""
    return (mask & (depth > -TRUSTED_OUTSIDE_MM)) | (depth > TRUSTED_INSIDE_MM)


def rim(
    values: NDArray[np.float32], mask: Mask, depth: NDArray[np.float32], dark: float, spacing: float
) -> Mask:
    """The voxels of ``mask`` that are no brain although the surface holds them.

    The surface is smooth: it spans fluid between brain and skull, and leaks into the air of the
    skull base. ``values`` are intensities of a T1-weighted scan, ``dark`` that of its background,
    ``depth`` mm within the template's edge, ``spacing`` mm.
    """
    deep = values[mask & (depth > DEEP_MM)]
    if deep.size == 0:
        return np.zeros_like(mask)
    bright = values - dark > DARK * (float(np.median(deep)) - dark)
    kept = mask & (bright | (depth > RIM_MM))
    if steps := round(SPIKE_MM / spacing):
        kept = ndimage.binary_opening(kept, iterations=steps) | (kept & (depth > 0))
    return mask & ~kept


@cache
def sphere() -> tuple[Array, NDArray[np.int64]]:
    """An icosphere of 642 vertices (v, 3), and its faces (f, 3), which turn outwards."""
    golden = (1 + 5**0.5) / 2
    rectangle = np.array([(0, y, z) for y in (-1, 1) for z in (-golden, golden)])
    vertices = np.concatenate([np.roll(rectangle, axis, axis=1) for axis in range(3)])
    vertices /= np.linalg.norm(vertices[0])
    for _ in range(SUBDIVISIONS):
        faces = ConvexHull(vertices).simplices
        edges = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0)
        middles = vertices[edges].sum(axis=1)
        middles /= np.linalg.norm(middles, axis=1, keepdims=True)
        vertices = np.concatenate([vertices, middles])
    faces = ConvexHull(vertices).simplices.astype(np.int64)
    a, b, c = (vertices[faces[:, n]] for n in range(3))
    inwards = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return vertices, faces


@cache
def _neighbours() -> tuple[sparse.csr_array, sparse.csr_array]:
    """Matrices that average over the neighbours of a vertex, and sum over its faces."""
    vertices, faces = sphere()
    pairs = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)  # each edge once in each direction
    ones = np.ones(len(pairs), np.float32)
    adjacent = sparse.csr_array((ones, pairs.T), shape=(len(vertices), len(vertices)))
    valence = sparse.diags_array(1 / adjacent.sum(axis=1), dtype=np.float32)
    owner = np.repeat(np.arange(len(faces)), 3)
    around = sparse.csr_array((ones, (faces.ravel(), owner)), shape=(len(vertices), len(faces)))
    return sparse.csr_array(valence @ adjacent), around


def _grow(
    values: NDArray[np.float32], surface: Array, dark: float, threshold: float, typical: float
) -> Array:
    """Smith's iteration; ``surface`` (v, 3) in voxels."""
    first, second, third = sphere()[1].T
    average, around = _neighbours()
    strides = np.array(values.strides) // values.itemsize
    flat, last = values.ravel(), np.array(values.shape, np.float32)[:, None, None] - 1
    depths = STEP_MM / SPACING_MM * np.arange(1, INNER_STEPS + 1, dtype=np.float32)[:, None]
    tightest, widest = TIGHTEST_MM / SPACING_MM, WIDEST_MM / SPACING_MM
    middle, steepness = (1 / tightest + 1 / widest) / 2, 6 / (1 / tightest - 1 / widest)
    # Coordinates in rows, (3, vertices): numpy is fastest along long rows.
    place = np.ascontiguousarray(surface.T, np.float32)
    for _ in range(ITERATIONS):
        corner = place[:, first]
        along, beside = place[:, second] - corner, place[:, third] - corner
        (ax, ay, az), (bx, by, bz) = along, beside
        across = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
        normal = (around @ across.T).T
        normal /= np.sqrt((normal * normal).sum(axis=0))
        edge = float(np.sqrt((along * along).sum(axis=0).mean()))

        to_average = (average @ place.T).T - place
        outward = (to_average * normal).sum(axis=0)
        tangential = to_average - outward * normal
        curvature = 2 * np.abs(outward) / edge**2
        smoothing = (1 + np.tanh(steepness * (curvature - middle))) / 2

        below = np.rint(place[:, None] - depths * normal[:, None])
        x, y, z = np.minimum(np.maximum(below, 0), last).astype(np.int32)
        profile = flat[x * strides[0] + y * strides[1] + z * strides[2]]
        lowest = np.minimum(np.maximum(profile.min(axis=0), dark), typical)
        highest = np.minimum(np.maximum(profile[:OUTER_STEPS].max(axis=0), threshold), typical)
        bound = dark + FRACTION * (highest - dark)
        push = 2 * (lowest - bound) / (highest - dark)
        place = place + 0.5 * tangential + (smoothing * outward + 0.05 * edge * push) * normal
    return place.T.astype(np.float64)


def _cross(a: Array, b: Array) -> Array:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
