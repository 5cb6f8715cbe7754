"""Real heads as another clinic might have scanned them: other noise, coils, slices and views.

What is changed is drawn at random for every head, within what clinics have: tilts of up to 30°,
distances that gradients bend by up to 4 mm, shading of 40 %, slices of 3 to 6 mm along one axis, a
view that ends near the brain, a face removed, contrast bent by a gamma of 0.7 to 1.4, noise of up
to 4 % and another scale. The brain itself stays whole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix

MOST_DEGREES, WIDEST_MM = 30.0, 400.0
BENT_MM, SHADING, GAMMA, NOISE = 4.0, 0.2, (0.7, 1.4), (0.01, 0.04)
SLICES_MM, ROOM_MM, FACE_MM = (3.0, 6.0), (4.0, 25.0), 15.0


@dataclass(frozen=True)
class Head:
    """A scan and, on its grid, labels and the brain; both are empty where nobody has drawn them."""

    name: str
    scan: Image
    labels: Image
    brain: Image

    def tilted(self, turn: Matrix) -> Head:
        """Return the head as it looks in the scanner's axes when it is moved by ``turn``."""
        air = float(np.median(self.scan.values[0]))
        scan = _turned(self.scan, turn, order=3, outside=air)
        return Head(
            self.name,
            Image(np.maximum(scan.values, self.scan.values.min()), scan.affine),
            _turned(self.labels, turn, order=0),
            _turned(self.brain, turn, order=1),
        )


def draw_turn(scan: Image, rng: np.random.Generator) -> Matrix:
    """Return a tilt about all axes, around the middle of the view."""
    return about_middle(scan, rng.uniform(-MOST_DEGREES, MOST_DEGREES, 3))


def rescanned(head: Head, inside: Mask, rng: np.random.Generator) -> tuple[Head, list[str]]:
    """Return a head as another clinic might have scanned it, and what was changed; its brain is
    ``inside``."""
    changed = []
    values, labels, brain = (each.values for each in (head.scan, head.labels, head.brain))
    if rng.random() < 0.5:
        where = _bent(values.shape, voxel_sizes(head.scan.affine), rng)
        values = ndimage.map_coordinates(values, where, order=1, mode="nearest")
        labels = ndimage.map_coordinates(labels, where, order=0)
        brain = ndimage.map_coordinates(brain, where, order=1)
        inside = ndimage.map_coordinates(inside.astype(np.float32), where, order=1) > 0.5
        changed.append("bent")
    low, top = (float(each) for each in np.percentile(values, [2, 99.5]))
    bright = ((values - low) / (top - low)).clip(0, 1.5)
    if rng.random() < 0.4:
        bright = np.where(_face(inside, head.scan.affine), 0, bright)
        changed.append("defaced")
    gamma = float(rng.uniform(*GAMMA))
    bright = bright**gamma
    changed.append(f"gamma {gamma:.1f}")
    if rng.random() < 0.7:
        bright = bright * np.exp(_smooth_field(bright.shape, rng) * SHADING)
        changed.append("shading")
    images = [Image(each.astype(np.float32), head.scan.affine) for each in (bright, labels, brain)]
    box = _view(inside, voxel_sizes(head.scan.affine), rng)
    images = [_cut(each, box) for each in images]
    if rng.random() < 0.5:
        axis, mm = int(rng.integers(3)), float(rng.uniform(*SLICES_MM))
        images[0] = _thick(images[0], axis, mm)
        changed.append(f"{mm:.1f} mm slices along {'xyz'[axis]}")
    noise = float(rng.uniform(*NOISE))
    spread = rng.normal(0, noise, (2, *images[0].values.shape)).astype(np.float32)
    noisy = np.hypot(images[0].values + spread[0], spread[1]) * float(10 ** rng.uniform(1, 4))
    changed.append(f"noise {noise:.0%}")
    scan = Image(noisy.astype(np.float32), images[0].affine)
    return Head(head.name, scan, images[1], images[2]), changed


def about_middle(scan: Image, angles: Array) -> Matrix:
    """Return the turn by ``angles``, degrees, around the middle of the view."""
    middle = apply_affine(scan.affine, (np.array(scan.values.shape) - 1) / 2)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix: Matrix = from_matvec(turn, middle - turn @ middle)
    return matrix


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field from -1 to 1."""
    coarse = ndimage.zoom(rng.normal(size=(3, 3, 3)), 4, order=3)
    field = ndimage.zoom(coarse, np.array(shape) / coarse.shape, order=1)
    field -= field.mean()
    return np.asarray(field / np.abs(field).max(), np.float32)


def _bent(shape: tuple[int, ...], spacing: Array, rng: np.random.Generator) -> Array:
    """Return where each voxel comes from, (3, x, y, z), when gradients fall off to the sides."""
    places = np.indices(shape).astype(np.float64)
    middle = (np.array(shape) - 1) / 2
    offset = (places - middle[:, None, None, None]) * spacing[:, None, None, None] / 100
    radius = (offset**2).sum(axis=0)
    strength = rng.uniform(-BENT_MM, BENT_MM, 3)
    bent: Array = places + offset * radius * (strength / spacing)[:, None, None, None]
    return bent


def _face(inside: Mask, affine: Matrix) -> Mask:
    """Return what is in front of the brain's lower half, ``FACE_MM`` and more from it."""
    _, y, z = apply_affine(affine, np.argwhere(inside)).T
    points = apply_affine(affine, np.moveaxis(np.indices(inside.shape), 0, -1))
    far = ndimage.distance_transform_edt(~inside, voxel_sizes(affine)) > FACE_MM
    face: Mask = far & (points[..., 1] > np.median(y)) & (points[..., 2] < np.median(z))
    return face


def _view(inside: Mask, spacing: Array, rng: np.random.Generator) -> tuple[slice, ...]:
    """Return a view that ends 4 to 25 mm from the brain, to every side."""
    box = []
    for axis, of in enumerate(np.nonzero(inside)):
        before, after = rng.uniform(*ROOM_MM, 2) / spacing[axis]
        box.append(slice(max(0, round(of.min() - before)), round(of.max() + after) + 1))
    return tuple(box)


def _cut(image: Image, box: tuple[slice, ...]) -> Image:
    affine = image.affine.copy()
    affine[:3, 3] = apply_affine(image.affine, [part.start for part in box])
    return Image(np.ascontiguousarray(image.values[box]), affine)


def _thick(image: Image, axis: int, mm: float) -> Image:
    """Return slices of ``mm``, each the mean of what it holds."""
    spacing = float(voxel_sizes(image.affine)[axis])
    width = max(1, round(mm / spacing))
    whole = image.values.shape[axis] // width * width
    parts = np.moveaxis(image.values, axis, 0)[:whole]
    means = parts.reshape(whole // width, width, *parts.shape[1:]).mean(axis=1)
    grow, first = np.ones(4), np.zeros(3)
    grow[axis], first[axis] = width, (width - 1) / 2
    affine = image.affine @ np.diag(grow)
    affine[:3, 3] = apply_affine(image.affine, first)
    return Image(np.ascontiguousarray(np.moveaxis(means, 0, axis)), affine)


def _turned(image: Image, turn: Matrix, *, order: int, outside: float = 0.0) -> Image:
    """Return an image moved by ``turn``, on a grid as fine as its own along the scanner's axes."""
    spacing = float(voxel_sizes(image.affine).min())
    box = Image(image.values, turn @ image.affine)
    corners = apply_affine(
        box.affine, list(itertools.product(*((-0.5, n - 0.5) for n in image.values.shape)))
    )
    middle = corners.mean(axis=0)
    # No scanner's view is wider; corners that reach beyond it hold air.
    shape = np.ceil(np.minimum(np.ptp(corners, axis=0), WIDEST_MM) / spacing).astype(int)
    affine = from_matvec(np.eye(3) * spacing, middle - spacing * (shape - 1) / 2)
    onto = np.linalg.inv(box.affine) @ affine
    values = ndimage.affine_transform(
        image.values, onto[:3, :3], onto[:3, 3], tuple(shape), order=order, cval=outside
    )
    return Image(values.astype(np.float32), affine)
