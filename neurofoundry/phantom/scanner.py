"""Four imaginary scanners: pose, voxels, contrast, shading, blur and noise.

Each makes T1w images with voxels of its own, and FLAIR and T2w with thick axial slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.anatomy import (
    CSF,
    GREY,
    MATERIALS,
    WHITE,
    Anatomy,
    Painting,
    Subject,
    closest_rigid,
    generator,
    grow,
    paint,
)
from neurofoundry.phantom.atlas import Atlas
from neurofoundry.phantom.lattice import Array, Triple
from neurofoundry.phantom.outside import SHELL_CHANNELS

_SLAB = 100_000
"""Voxels that are painted at once."""


@dataclass(frozen=True)
class Site:
    """A scanner and how people are positioned in it."""

    name: str
    external: bool
    manufacturer: str
    model: str
    field_tesla: float
    repetition_s: float
    echo_s: float
    inversion_s: float | None
    flip_deg: float
    axes: str
    """Directions of the array's axes, such as RAS."""
    spacing: Triple
    """Voxel size along right-left, posterior-anterior and inferior-superior, mm."""
    field_of_view: Triple
    """Along right-left, posterior-anterior and inferior-superior, mm."""
    contrast: dict[str, float]
    """Signal of each material relative to white matter."""
    white_level: float
    """Stored value of white matter."""
    shading: float
    """Standard deviation of the bias field."""
    noise: float
    """Standard deviation of the noise in each channel, relative to white matter."""
    blur: float
    """Width (sigma) of the point spread, voxels."""
    tilt_deg: float
    """Standard deviation of head rotation about each axis."""


def _contrast(**values: float) -> dict[str, float]:
    return {"air": 0.0, "white": 1.0, **values}


SITES = {
    site.name: site
    for site in (
        Site(
            name="alder",
            external=False,
            manufacturer="Synthetic Imaging",
            model="Phantom Alder 3T",
            field_tesla=3.0,
            repetition_s=2.3,
            echo_s=0.00298,
            inversion_s=0.9,
            flip_deg=9,
            axes="RAS",
            spacing=(2.6, 2.6, 2.6),
            field_of_view=(182, 236, 208),
            contrast=_contrast(
                csf=0.16,
                grey=0.66,
                gliosis=0.6,
                bone=0.06,
                marrow=0.85,
                muscle=0.5,
                fat=1.02,
                skin=0.62,
                vitreous=0.2,
            ),
            white_level=420,
            shading=0.07,
            noise=0.022,
            blur=0.35,
            tilt_deg=4,
        ),
        Site(
            name="birch",
            external=False,
            manufacturer="Synthetic Imaging",
            model="Phantom Birch 1.5T",
            field_tesla=1.5,
            repetition_s=0.6,
            echo_s=0.012,
            inversion_s=None,
            flip_deg=90,
            axes="LPS",
            spacing=(2.2, 2.2, 3.6),
            field_of_view=(184, 230, 162),
            contrast=_contrast(
                csf=0.34,
                grey=0.8,
                gliosis=0.72,
                bone=0.08,
                marrow=1.1,
                muscle=0.62,
                fat=1.75,
                skin=0.8,
                vitreous=0.36,
            ),
            white_level=260,
            shading=0.05,
            noise=0.028,
            blur=0.4,
            tilt_deg=6,
        ),
        Site(
            name="cedar",
            external=False,
            manufacturer="Imaginary Magnets",
            model="Cedar 1.5",
            field_tesla=1.5,
            repetition_s=2.4,
            echo_s=0.0036,
            inversion_s=1.0,
            flip_deg=8,
            axes="PSR",
            spacing=(2.8, 2.8, 2.8),
            field_of_view=(182, 236, 218),
            contrast=_contrast(
                csf=0.24,
                grey=0.72,
                gliosis=0.66,
                bone=0.07,
                marrow=0.95,
                muscle=0.52,
                fat=1.3,
                skin=0.6,
                vitreous=0.26,
            ),
            white_level=330,
            shading=0.13,
            noise=0.032,
            blur=0.4,
            tilt_deg=5,
        ),
        Site(
            name="dogwood",
            external=True,
            manufacturer="Imaginary Magnets",
            model="Dogwood 3",
            field_tesla=3.0,
            repetition_s=1.9,
            echo_s=0.0022,
            inversion_s=0.95,
            flip_deg=10,
            axes="LAS",
            spacing=(3.0, 3.0, 3.0),
            field_of_view=(186, 240, 213),
            contrast=_contrast(
                csf=0.12,
                grey=0.6,
                gliosis=0.55,
                bone=0.05,
                marrow=0.65,
                muscle=0.42,
                fat=0.9,
                skin=0.5,
                vitreous=0.15,
            ),
            white_level=360,
            shading=0.16,
            noise=0.042,
            blur=0.45,
            tilt_deg=8,
        ),
    )
}


_THIN, _SLICE_MM, _SLICES_MM = 2.2, 5.0, (184.0, 230.0, 165.0)
"""Pixels, thickness and field of view of further contrasts, mm."""
_MOVED_DEGREES, _MOVED_MM = 1.5, 2.5
"""By how much a head turns about each axis (standard deviation) and shifts along it (at most)
between the T1w image and another."""
_FURTHER: dict[str, dict[str, Any]] = {
    # Relative to white matter, as at 3 T. What a lesion is made of is bright in both; the liquid
    # in the middle of an old infarct is fluid like any other.
    "FLAIR": {
        "repetition_s": 9.0,
        "echo_s": 0.125,
        "inversion_s": 2.5,
        "flip_deg": 150,
        "noise": 0.03,
        "contrast": _contrast(
            csf=0.18,
            grey=1.25,
            gliosis=1.9,
            bone=0.08,
            marrow=0.7,
            muscle=0.55,
            fat=1.3,
            skin=0.8,
            vitreous=0.15,
        ),
    },
    "T2w": {
        "repetition_s": 5.0,
        "echo_s": 0.1,
        "inversion_s": None,
        "flip_deg": 150,
        "noise": 0.04,
        "contrast": _contrast(
            csf=3.1,
            grey=1.4,
            gliosis=2.0,
            bone=0.1,
            marrow=0.9,
            muscle=0.5,
            fat=1.6,
            skin=0.8,
            vitreous=3.3,
        ),
    },
}
_WEAKER_AT = 2.0
"""Tesla below which grey matter and lesions stand out by a quarter less."""


def further(site: Site, contrast: str, spacing_mm: float | None = None) -> Site:
    """Return how a site makes FLAIR or T2w images; ``spacing_mm`` asks for pixels of that size and
    slices of twice that thickness."""
    pixel, thickness = (_THIN, _SLICE_MM) if spacing_mm is None else (spacing_mm, 2 * spacing_mm)
    about = dict(_FURTHER[contrast])
    signal: dict[str, float] = dict(about.pop("contrast"))
    if site.field_tesla < _WEAKER_AT:
        for material in ("grey", "gliosis"):
            signal[material] = 1 + 0.75 * (signal[material] - 1)
    spacing = (pixel, pixel, thickness)
    return replace(
        site, **about, contrast=signal, axes="LPS", spacing=spacing, field_of_view=_SLICES_MM
    )


@dataclass(frozen=True)
class Head:
    """A scan and the truth about it. Arrays have the scan's shape and axes."""

    image: Array
    """Magnitude signal before rounding; white matter near the site's ``white_level``."""
    affine: NDArray[np.float64]
    """Voxel indices to scanner millimetres (RAS+)."""
    pose: NDArray[np.float64]
    """Rigid 4x4: scanner millimetres to MNI millimetres."""
    labels: NDArray[np.uint8]
    """Index into MATERIALS of the largest share."""
    brain: NDArray[np.bool_]
    """Inside the brain's hull: sulci, ventricles and lesions included."""
    ventricle: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    """Infarct or white matter lesion."""
    infarct: NDArray[np.bool_]
    bias: Array
    """Multiplicative shading."""
    volumes_ml: dict[str, float]
    """``VOLUMES`` within the field of view; a voxel counts by its share."""


VOLUMES = (
    "brain",
    "ventricle",
    "hippocampus",
    "grey",
    "white",
    "csf",
    "infarct",
    "white_lesion",
)


def head(
    subject: Subject,
    session: str,
    site: Site,
    atlas: Atlas,
    spacing_mm: float | None = None,
    contrast: str = "T1w",
) -> Head:
    """Scan one session of ``subject`` at ``site``; ``spacing_mm`` asks for isotropic voxels.

    Pose, shading and noise belong to the session; the anatomy to the subject and the age. In
    another ``contrast`` than T1w (`further`) the head has moved a little since that.
    """
    rng = generator(subject.seed, "scan", subject.index, session)
    anatomy = grow(subject, dict(subject.sessions)[session], atlas)
    affine, shape = _voxels(site, site.spacing if spacing_mm is None else (spacing_mm,) * 3)
    affine[:3, 3] += rng.uniform(-4, 4, 3)
    placement = _placement(rng, site, atlas)
    if contrast != "T1w":
        rng = generator(subject.seed, "scan", subject.index, session, contrast)
        site = further(site, contrast, spacing_mm)
        affine, shape = _voxels(site, site.spacing)
        affine[:3, 3] += rng.uniform(-4, 4, 3)
        placement = placement @ _movement(rng)
    return _scanned(rng, anatomy, site, affine, shape, placement)


def head_on_grid(
    subject: Subject,
    session: str,
    site: Site,
    atlas: Atlas,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    contrast: str = "T1w",
) -> Head:
    """Scan one session as if faultless preprocessing had put it on a grid of MNI space.

    ``affine`` leads from the grid's voxels to MNI millimetres. There is no error of masks,
    registration or interpolation; contrast, shading, blur (in voxels) and noise are the site's.
    """
    rng = generator(subject.seed, "scan", subject.index, session)
    if contrast != "T1w":
        rng = generator(subject.seed, "scan", subject.index, session, contrast)
        site = further(site, contrast)
    anatomy = grow(subject, dict(subject.sessions)[session], atlas)
    to_head = np.linalg.inv(closest_rigid(anatomy)).astype(np.float64)
    return _scanned(rng, anatomy, site, affine, shape, to_head)


def _scanned(
    rng: np.random.Generator,
    anatomy: Anatomy,
    site: Site,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    to_head: NDArray[np.float64],
) -> Head:
    """Paint the voxels and measure them; ``to_head`` is rigid, from where ``affine`` leads."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    truth = _Truth(shape, voxel_mm3=float(np.prod(edges)))
    _paint_all(truth, anatomy, site, to_head @ affine)
    bias = _shading(rng, shape, site.shading)
    return Head(
        image=_measured(rng, truth.signal * bias, site),
        affine=affine,
        pose=closest_rigid(anatomy) @ to_head,
        labels=truth.labels,
        brain=truth.brain,
        ventricle=truth.ventricle,
        lesion=truth.lesion,
        infarct=truth.infarct,
        bias=bias,
        volumes_ml=truth.volumes_ml,
    )


class _Truth:
    """What fills the voxels of a scan, before shading, blur and noise."""

    def __init__(self, shape: tuple[int, ...], voxel_mm3: float) -> None:
        self.signal = np.zeros(shape, np.float32)
        self.labels = np.zeros(shape, np.uint8)
        self.brain = np.zeros(shape, np.bool_)
        self.ventricle = np.zeros(shape, np.bool_)
        self.lesion = np.zeros(shape, np.bool_)
        self.infarct = np.zeros(shape, np.bool_)
        self.volumes_ml = dict.fromkeys(VOLUMES, 0.0)
        self.voxel_mm3 = voxel_mm3

    def add(
        self, slab: slice, where: NDArray[np.intp], painting: Painting, contrast: dict[str, float]
    ) -> None:
        """Take what was painted at the voxels ``where`` of a slab."""
        signal = np.zeros(len(where), np.float32)
        for material, share in zip(MATERIALS, painting.fractions, strict=True):
            signal += share * np.float32(contrast[material])
        self.signal[slab].reshape(-1)[where] = signal
        self.labels[slab].reshape(-1)[where] = painting.fractions.argmax(axis=0)
        self.brain[slab].reshape(-1)[where] = painting.brain > 0.5
        self.ventricle[slab].reshape(-1)[where] = painting.ventricle > 0.5
        lesion = np.maximum(painting.infarct, painting.white_lesion)
        self.lesion[slab].reshape(-1)[where] = lesion > 0.5
        self.infarct[slab].reshape(-1)[where] = painting.infarct > 0.5
        for name, share in _shares(painting).items():
            self.volumes_ml[name] += float(share.sum(dtype=np.float64)) * self.voxel_mm3 / 1000


def _shares(painting: Painting) -> dict[str, Array]:
    """Return ``VOLUMES`` by name, as shares (n,) of each point."""
    return {
        "brain": painting.brain,
        "ventricle": painting.ventricle,
        "hippocampus": painting.hippocampus,
        "grey": painting.fractions[GREY],
        # The spinal cord is white matter too, but no part of the brain.
        "white": painting.fractions[WHITE] * painting.brain,
        "csf": painting.fractions[CSF] * painting.brain,
        "infarct": painting.infarct,
        "white_lesion": painting.white_lesion,
    }


def _paint_all(
    truth: _Truth, anatomy: Anatomy, site: Site, voxel_to_head: NDArray[np.float64]
) -> None:
    """Paint every voxel, in slabs: they bound the memory that small voxels need."""
    shape, edge = truth.signal.shape, truth.voxel_mm3 ** (1 / 3)
    thickness = max(1, _SLAB // (shape[1] * shape[2]))
    for first in range(0, shape[0], thickness):
        slab = slice(first, min(first + thickness, shape[0]))
        points = _points(voxel_to_head, shape, slab)
        near = np.flatnonzero(_near_head(points, anatomy.atlas))
        truth.add(slab, near, paint(anatomy, points[near], edge), site.contrast)


def _measured(rng: np.random.Generator, signal: Array, site: Site) -> Array:
    """Return the magnitude image of a signal, with blur, Rician noise and the session's gain."""
    gain = np.float32(site.white_level * rng.uniform(0.85, 1.15))
    signal = ndimage.gaussian_filter(signal, site.blur, truncate=3)
    real, imaginary = (
        np.float32(site.noise) * rng.standard_normal(signal.shape, np.float32) for _ in "ri"
    )
    image: Array = gain * np.sqrt((signal + real) ** 2 + imaginary**2)
    return image


def _voxels(site: Site, spacing: Triple) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return the affine, centred on scanner 0, and the array shape for the site's axes."""
    affine = np.eye(4)
    shape = []
    for column, letter in enumerate(site.axes):
        axis = "RLAPSI".index(letter) // 2
        sign = 1 if letter in "RAS" else -1
        count = round(site.field_of_view[axis] / spacing[axis])
        affine[:3, column] = 0
        affine[axis, column] = sign * spacing[axis]
        affine[axis, 3] = -sign * spacing[axis] * (count - 1) / 2
        shape.append(count)
    return affine, tuple(shape)


def _turn(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """Draw a rotation (3, 3) by angles about each axis of this standard deviation."""
    angles = np.deg2rad(degrees * np.clip(rng.standard_normal(3), -2, 2))
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turn: NDArray[np.float64] = about_z @ about_y @ about_x
    return turn


def _movement(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the rigid 4x4 matrix by which a head has moved between two images, mm."""
    movement = np.eye(4)
    movement[:3, :3] = _turn(rng, _MOVED_DEGREES)
    movement[:3, 3] = rng.uniform(-_MOVED_MM, _MOVED_MM, 3)
    return movement


def _placement(rng: np.random.Generator, site: Site, atlas: Atlas) -> NDArray[np.float64]:
    """Return the rigid 4x4 matrix from the scanner to the person's head, mm."""
    turn = _turn(rng, site.tilt_deg)
    # The field of view starts above the crown, 88 mm above the brain's centre.
    middle = np.array([0, 16, 88 - site.field_of_view[2] / 2])
    placement = np.eye(4)
    placement[:3, :3] = turn
    placement[:3, 3] = np.asarray(atlas.centre) + middle + rng.uniform(-3, 3, 3)
    return placement


def _points(voxel_to_head: NDArray[np.float64], shape: tuple[int, ...], slab: slice) -> Array:
    """Return head coordinates (n, 3), mm, of the voxels of a slab."""
    i = np.arange(slab.start, slab.stop, dtype=np.float64)[:, None, None]
    j = np.arange(shape[1], dtype=np.float64)[None, :, None]
    k = np.arange(shape[2], dtype=np.float64)[None, None, :]
    # Sums rather than a matrix product: the same bits on every processor.
    return np.stack(
        [
            (i * a + j * b + k * c + d).astype(np.float32).ravel()
            for a, b, c, d in voxel_to_head[:3]
        ],
        axis=-1,
    )


def _near_head(points: Array, atlas: Atlas) -> NDArray[np.bool_]:
    """Return which points may lie in the head; the others are air for certain."""
    # Heads are smaller than the atlas, and no deformation moves them by 12 mm.
    vault = atlas.shell.nearest(points, SHELL_CHANNELS.index("hull")) < 34
    lower = atlas.shell.nearest(points, SHELL_CHANNELS.index("lower")) < 12
    return np.asarray(vault | lower)


def _shading(rng: np.random.Generator, shape: tuple[int, ...], strength: float) -> Array:
    """Draw a smooth field around 1 with standard deviation ``strength``, from cosine modes."""
    waves = [
        [np.cos(np.pi * order * (np.arange(n) + 0.5) / n).astype(np.float32) for order in range(3)]
        for n in shape
    ]
    modes = [(a, b, c) for a in range(3) for b in range(3) for c in range(3) if 1 <= a + b + c <= 2]
    field = np.zeros(shape, np.float32)
    variance = 0.0
    for a, b, c in modes:
        weight = 1 / (a + b + c)
        amplitude = np.float32(weight * np.clip(rng.standard_normal(), -2, 2))
        variance += weight**2 * 0.5 ** ((a > 0) + (b > 0) + (c > 0))
        field += amplitude * (waves[0][a][:, None, None] * waves[1][b][:, None] * waves[2][c])
    shading: Array = 1 + np.float32(strength / np.sqrt(variance)) * field
    return np.asarray(np.maximum(shading, np.float32(0.3)))
