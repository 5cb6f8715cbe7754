"""The brain's surface: it grows inside the head until it meets dark cerebrospinal fluid.

Smith, Human Brain Mapping 17 (2002) 143-155 ("BET"), with fewer vertices and iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import ConvexHull

from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, look_up

SPACING_MM = 3.0
"""Voxel size of the heads in which the surface grows: in finer ones it sinks into the sulci."""
SUBDIVISIONS = 3
ITERATIONS = 300
FRACTION = 0.7
"""Smith's b_t: the intensity at the brain's edge, from the darkest (0) to the locally brightest
(1)."""
TIGHTEST_MM, WIDEST_MM = 3.33, 10.0
"""Radii of curvature below which the surface is smoothed fully, and above which hardly."""
STEP_MM = 2.0
INNER_STEPS, OUTER_STEPS = 10, 5
"""How far below the surface the darkest and the brightest intensity are sought: 20 and 10 mm."""
HEAD_MM = 160.0
"""Height of a head below its vertex; what lies lower is neck."""
DIRECTIONS = ((2, 1), (2, -1), (1, 1), (1, -1), (0, 1), (0, -1))
"""Axes and directions of a scan that may be up; the first one is by its header."""
STARTS, STILL_MM, BRAIN_RADIUS_MM = 5, 8.0, 75.0
"""The surface grows anew from the middle of what it held, as often, until that moves by less."""
LEAST_ML, LEAKED_ML = 500.0, 1800.0
"""Volumes below and above which a surface does not hold a brain alone."""
TYPICAL = 0.8
"""Smith's t_m, as a share of the median within the surface before."""
REACH_MM, RAY_MM = 140.0, 0.5
"""How far, and in what steps, the edge of a given mask is sought along a ray."""

Vertices = NDArray[np.float32]
"""Vertices or vectors at them in rows, (3, v): numpy is fastest along long rows."""


def find_surface(head: Image, up: tuple[int, int] = DIRECTIONS[0]) -> Array:
    """Return the vertices (v, 3), in mm, of a closed surface around the brain, as in `sphere`.

    ``head`` has cubic voxels of ``SPACING_MM`` on axes nearest to RAS+; ``up`` is the axis, and its
    direction, in which the vertex is sought. Raises UnusableScanError where nothing in it can be a
    head.
    """
    axis, sign = up
    values = np.ascontiguousarray(np.moveaxis(head.values, axis, 2)[:, :, ::sign])
    vertices = _settle_in(values)
    if sign < 0:
        vertices[:, 2] = values.shape[2] - 1 - vertices[:, 2]
    voxels = np.insert(vertices[:, :2], axis, vertices[:, 2], axis=1)
    surface: Array = apply_affine(head.affine, voxels)
    return surface


def _settle_in(values: NDArray[np.float32]) -> Array:
    """Return the vertices, in voxels, of a surface that has grown from its own middle."""
    dark, bright = np.percentile(values[values > values.min()], [2, 98]).tolist()
    # Shares of brightness count from the background, wherever a scan has its zero.
    values, bright = values - np.float32(dark), bright - dark
    threshold = 0.1 * bright
    tissue = _without_neck(values > threshold)
    voxels = np.argwhere(tissue)
    centre = np.average(voxels, axis=0, weights=np.minimum(values[tissue], bright))
    radius = (3 / (4 * np.pi) * len(voxels)) ** (1 / 3)
    ball = voxels[((voxels - centre) ** 2).sum(axis=1) < radius**2]
    typical = float(np.median(values[tuple(ball.T)]))
    grown: list[tuple[float, Array]] = []
    for _ in range(STARTS):
        if typical <= threshold:
            raise UnusableScanError("no head: the middle of the image is as dark as its background")
        profile = _Profile.of(values, threshold, typical)
        vertices = _grow(profile, centre + sphere()[0] * radius / 2)
        inside = fill(vertices, np.eye(4), values.shape)
        grown.append((inside.sum() * SPACING_MM**3 / 1000, vertices))
        if not inside.any():
            break
        before, centre = centre, _deepest(inside)
        radius, typical = BRAIN_RADIUS_MM / SPACING_MM, TYPICAL * float(np.median(values[inside]))
        if np.linalg.norm(centre - before) * SPACING_MM < STILL_MM:
            break
    # The last that has not leaked; where all have, the one that has least.
    whole = [vertices for ml, vertices in grown if LEAST_ML <= ml <= LEAKED_ML]
    return whole[-1] if whole else min(grown, key=lambda each: each[0])[1]


def fill(surface: Array, affine: Matrix, shape: tuple[int, ...]) -> Mask:
    """Return the voxels of a grid whose centres lie inside the surface (v, 3) in mm.

    Every line of voxels along the last axis counts the faces that it crosses on its way in or out.
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
    inside: Mask = np.cumsum(crossings[..., :-1], axis=2, dtype=np.int8) != 0
    return inside


def wrap(mask: Image) -> Array:
    """Return the vertices (v, 3), in mm, of a surface around a mask, in the order of `sphere`.

    Each lies where the ray from the mask's centroid leaves the mask for the last time.
    """
    centre = apply_affine(mask.affine, np.argwhere(mask.values > 0.5).mean(axis=0))
    steps = np.arange(0, REACH_MM, RAY_MM)
    rays = centre + steps[:, None, None] * sphere()[0]
    inside = look_up(mask, rays.reshape(-1, 3)).reshape(len(steps), -1) > 0.5
    last = len(steps) - 1 - inside[::-1].argmax(axis=0)
    vertices: Array = centre + steps[last][:, None] * sphere()[0]
    return vertices


@cache
def sphere() -> tuple[Array, NDArray[np.int64]]:
    """Return an icosphere: 642 vertices (v, 3) and its faces (f, 3), which turn outwards."""
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
    """Return matrices that average over a vertex's neighbours, and sum over its faces."""
    vertices, faces = sphere()
    pairs = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)  # each edge once in each direction
    ones = np.ones(len(pairs), np.float32)
    adjacent = sparse.csr_array((ones, pairs.T), shape=(len(vertices), len(vertices)))
    valence = sparse.diags_array(1 / adjacent.sum(axis=1), dtype=np.float32)
    owner = np.repeat(np.arange(len(faces)), 3)
    around = sparse.csr_array((ones, (faces.ravel(), owner)), shape=(len(vertices), len(faces)))
    return sparse.csr_array(valence @ adjacent), around


def _without_neck(tissue: Mask) -> Mask:
    """Remove what lies more than ``HEAD_MM`` below the highest slice that shows a head."""
    slices = np.flatnonzero(tissue.sum(axis=(0, 1)) * SPACING_MM**2 > 1000)
    if len(slices) == 0:
        raise UnusableScanError("no head: nothing in the image is as large as one")
    head = tissue.copy()
    head[:, :, : max(0, slices[-1] + 1 - round(HEAD_MM / SPACING_MM))] = False
    return head


def _deepest(inside: Mask) -> Array:
    """Return the middle of what lies deepest in a mask, (3,) in voxels: of a brain whose surface
    has leaked into the neck it is still in the brain, which is thicker."""
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]
    places = np.argwhere(inside)
    middle: Array = np.average(places, axis=0, weights=depth[inside] ** 3)
    return middle


@dataclass(frozen=True)
class _Profile:
    """The intensities that a vertex sees below itself, and what they say of the brain's edge."""

    flat: NDArray[np.float32]
    strides: NDArray[np.int64]
    last: NDArray[np.float32]
    """The last index along each axis, (3, 1, 1)."""
    depths: NDArray[np.float32]
    """Voxels below the surface, (steps, 1)."""
    threshold: float
    typical: float

    @classmethod
    def of(cls, values: NDArray[np.float32], threshold: float, typical: float) -> _Profile:
        """Return the profile of intensities above the background."""
        strides = np.array(values.strides) // values.itemsize
        last = np.array(values.shape, np.float32)[:, None, None] - 1
        steps = np.arange(1, INNER_STEPS + 1, dtype=np.float32)[:, None]
        depths = STEP_MM / SPACING_MM * steps
        return cls(values.ravel(), strides, last, depths, threshold, typical)

    def push(self, vertices: Vertices, normal: Vertices) -> NDArray[np.float32]:
        """Return how strongly each vertex is pushed outwards (Smith's f3), (v,)."""
        below = np.rint(vertices[:, None] - self.depths * normal[:, None])
        x, y, z = np.minimum(np.maximum(below, 0), self.last).astype(np.int32)
        profile = self.flat[x * self.strides[0] + y * self.strides[1] + z * self.strides[2]]
        lowest = np.minimum(np.maximum(profile.min(axis=0), 0), self.typical)
        brightest = np.maximum(profile[:OUTER_STEPS].max(axis=0), self.threshold)
        highest = np.minimum(brightest, self.typical)
        push: NDArray[np.float32] = 2 * (lowest - FRACTION * highest) / highest
        return push


def _grow(profile: _Profile, start: Array) -> Array:
    """Move the vertices ``start`` (v, 3), in voxels, as Smith does."""
    average, _ = _neighbours()
    vertices = np.ascontiguousarray(start.T, np.float32)
    for _ in range(ITERATIONS):
        normal, edge = _normals(vertices)
        to_average = (average @ vertices.T).T - vertices
        outward = (to_average * normal).sum(axis=0)
        tangential = to_average - outward * normal
        push = profile.push(vertices, normal)
        along_normal = (_smoothing(outward, edge) * outward + 0.05 * edge * push) * normal
        vertices = vertices + 0.5 * tangential + along_normal
    return vertices.T.astype(np.float64)


def _normals(vertices: Vertices) -> tuple[Vertices, float]:
    """Return the outward unit normal of every vertex, and the typical length of an edge."""
    first, second, third = sphere()[1].T
    _, around = _neighbours()
    corner = vertices[:, first]
    along, beside = vertices[:, second] - corner, vertices[:, third] - corner
    (ax, ay, az), (bx, by, bz) = along, beside
    across = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    normal = (around @ across.T).T
    normal /= np.sqrt((normal * normal).sum(axis=0))
    return normal, float(np.sqrt((along * along).sum(axis=0).mean()))


def _smoothing(outward: NDArray[np.float32], edge: float) -> NDArray[np.floating]:
    """Return the share (Smith's f2) by which each vertex gives in to its neighbours: more in a
    tight bend."""
    tightest, widest = TIGHTEST_MM / SPACING_MM, WIDEST_MM / SPACING_MM
    middle, steepness = (1 / tightest + 1 / widest) / 2, 6 / (1 / tightest - 1 / widest)
    curvature = 2 * np.abs(outward) / edge**2
    share: NDArray[np.floating] = (1 + np.tanh(steepness * (curvature - middle))) / 2
    return share


def _cross(a: Array, b: Array) -> Array:
    product: Array = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product
