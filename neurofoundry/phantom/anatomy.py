"""One person's head: labels and latent traits, a smooth deformation of the atlas, tissue by tissue.

Coordinates are millimetres in the person's own head: the axes and the origin of MNI space, but the
person's own size. `locate` maps them to the atlas; `paint` tells what lies there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.atlas import Atlas
from neurofoundry.phantom.lattice import Array, LatticeMap, Triple, lattice_points, lattice_shape
from neurofoundry.phantom.outside import HEAD_HIGH, HEAD_LOW, SHELL_CHANNELS
from neurofoundry.phantom.params import PhantomParams

MATERIALS = (
    "air",
    "csf",
    "grey",
    "white",
    "gliosis",
    "bone",
    "marrow",
    "muscle",
    "fat",
    "skin",
    "vitreous",
)
AIR, CSF, GREY, WHITE, GLIOSIS, BONE, MARROW, MUSCLE, FAT, SKIN, VITREOUS = range(len(MATERIALS))

_HULL = SHELL_CHANNELS.index("hull")
_COARSE_SPACING = 9.0
_FINE_SPACING = 5.0
_TEXTURE_SPACING = 6.0
_FINE_LOW: Triple = (-90.0, -126.0, -86.0)
_FINE_HIGH: Triple = (90.0, 90.0, 98.0)

# Arterial territories: centre (mm, left side), its scatter, relative radii, share of all strokes.
_TERRITORIES = (
    ("middle cerebral, cortical", (-48.0, -8.0, 22.0), (12.0, 18.0, 12.0), (1.0, 1.3, 1.0), 0.35),
    ("middle cerebral, deep", (-27.0, 2.0, 8.0), (4.0, 8.0, 5.0), (0.8, 1.3, 1.0), 0.25),
    ("middle cerebral, insular", (-40.0, 4.0, 2.0), (5.0, 8.0, 6.0), (0.9, 1.3, 1.1), 0.15),
    ("posterior cerebral", (-18.0, -80.0, 2.0), (7.0, 8.0, 8.0), (0.9, 1.2, 1.0), 0.13),
    ("anterior cerebral", (-10.0, 36.0, 32.0), (3.0, 14.0, 12.0), (0.7, 1.3, 1.2), 0.06),
    ("cerebellar", (-26.0, -64.0, -42.0), (8.0, 6.0, 6.0), (1.1, 1.1, 0.8), 0.06),
)


@dataclass(frozen=True)
class Stroke:
    """A chronic infarct in atlas coordinates: centre and radii in mm."""

    territory: str
    centre: Triple
    radii: Triple


@dataclass(frozen=True)
class Subject:
    """Labels and latent traits of one person; z-scores where no unit is named."""

    seed: int
    index: int
    participant: str
    site: str
    """Where the first session takes place."""
    sex: Literal["F", "M"]
    age: float
    """Years at the first session."""
    diagnosis: Literal["CN", "AD"]
    infarct: Stroke | None
    interval: float | None
    """Years to the second session, if there is one."""
    travels_to: str | None
    """Site of the second session, if it is another."""
    scale: Triple
    """Size of the head relative to the atlas along x, y, z."""
    severity: float
    """Alzheimer's-like atrophy at the first session; 0 without."""
    ventricle_trait: float
    hippocampus_trait: float
    cortex_trait: float
    lesion_trait: float
    lesion_load: float
    skull_mm: float
    scalp_mm: float
    marrow: float
    """Share of fat in the marrow, 0 to 1."""

    @property
    def stroke(self) -> Literal["no", "yes"]:
        return "yes" if self.infarct else "no"

    @property
    def sessions(self) -> tuple[tuple[str, float], ...]:
        """The names of the sessions, with the age in years at each."""
        if self.interval is None:
            return (("1", self.age),)
        return (("1", self.age), ("2", round(self.age + self.interval, 1)))

    def site_of(self, session: str) -> str:
        """Return the site at which a session takes place."""
        return self.travels_to if session == "2" and self.travels_to else self.site


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of a subject at an age, ready to be painted."""

    subject: Subject
    age: float
    atlas: Atlas
    coarse: LatticeMap
    """Displacement of the whole head (mm), then 2 channels of wide unit noise."""
    fine: LatticeMap
    """Displacement of gyri, ventricles and hippocampi, mm."""
    texture: LatticeMap
    """Four channels of fine unit noise."""
    widening: float
    """By how much sulci widen, in CSF probability."""
    medial_widening: float
    """By how much more they widen in the temporal lobes and the precuneus."""
    lesion_threshold: float


def generator(seed: int, *names: object) -> np.random.Generator:
    """Return random numbers that depend on ``seed`` and ``names`` alone."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


SITE_NAMES = ("alder", "birch", "cedar", "dogwood")
"""The last one is external."""
# Where sites start in the sequence of labels: a quarter apart, so that they complement each other.
_SITE_STARTS = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5, 0.5, 0.5],
        [0.25, 0.25, 0.75, 0.75, 0.25],
        [0.75, 0.75, 0.25, 0.25, 0.75],
    ]
)


def sample_subject(params: PhantomParams, index: int) -> Subject:
    """Draw subject ``index`` (from 0) of a cohort; the same person whatever the cohort's size."""
    u_sex, u_age, u_diagnosis, u_stroke, u_sessions = _label_positions(params.seed, index)
    rng = generator(params.seed, "traits", index)
    sex: Literal["F", "M"] = "F" if u_sex < 0.5 else "M"
    age = round(float(np.interp(u_age, (0, 0.22, 0.65, 1), (20, 55, 72, 90))), 1)
    ill = age > 55 and u_diagnosis < 0.45
    # The order of the draws is part of the person: traits that go unused are drawn all the same.
    scale = _sample_scale(rng, sex)
    years_later = round(float(rng.uniform(1, 3)), 1)
    severity = params.ad_effect * max(0.2, 1 + 0.45 * _clipped(rng))
    infarct = _sample_stroke(rng, params.stroke_ml)
    interval, travels_to = _second_session(params, index, u_sessions, years_later)
    return Subject(
        seed=params.seed,
        index=index,
        participant=f"sub-{index + 1:04d}",
        site=SITE_NAMES[index % len(SITE_NAMES)],
        sex=sex,
        age=age,
        diagnosis="AD" if ill else "CN",
        infarct=infarct if u_stroke < 0.35 else None,
        interval=interval,
        travels_to=travels_to,
        scale=scale,
        severity=severity if ill else 0.0,
        ventricle_trait=_clipped(rng),
        hippocampus_trait=_clipped(rng),
        cortex_trait=_clipped(rng),
        lesion_trait=_clipped(rng),
        lesion_load=params.lesion_load,
        skull_mm=5.2 + (0.4 if sex == "F" else 0.0) + 0.6 * _clipped(rng),
        scalp_mm=4.6 + 1.0 * _clipped(rng),
        marrow=float(rng.uniform(0.45, 0.95)),
    )


def _label_positions(seed: int, index: int) -> NDArray[np.float64]:
    """Return five numbers from 0 to 1 that decide the labels of subject ``index``.

    They follow an additive low-discrepancy sequence at each site (Roberts' generalized golden
    ratio), so that every site, and its first n subjects for any n, has labels in like shares.
    """
    number, site = divmod(index, len(SITE_NAMES))
    start = generator(seed, "labels").random(5) + _SITE_STARTS[site]
    golden = 1.1347241384015194  # the root of x^6 = x + 1, for five dimensions
    step = golden ** -np.arange(1.0, 6.0)
    positions: NDArray[np.float64] = (start + number * step) % 1
    return positions


def _second_session(
    params: PhantomParams, index: int, position: float, years_later: float
) -> tuple[float | None, str | None]:
    """Return the years to the second session and the site travelled to, None if there is none."""
    site, familiar = index % len(SITE_NAMES), SITE_NAMES[:-1]
    position -= params.two_session_fraction
    if 0 <= position < params.travelling_fraction and site < len(familiar):
        journey = generator(params.seed, "travel", index)
        travels_to = familiar[(site + journey.integers(1, len(familiar))) % len(familiar)]
        return round(float(journey.uniform(0, 60 / 365)), 1), travels_to
    return (None, None) if position >= 0 else (years_later, None)


def _sample_scale(rng: np.random.Generator, sex: Literal["F", "M"]) -> Triple:
    size = (0.925 if sex == "M" else 0.888) + 0.021 * _clipped(rng)
    x, y, z = (size * (1 + 0.018 * _clipped(rng)) for _ in range(3))
    return x, y, z


def _clipped(rng: np.random.Generator) -> float:
    """Draw a standard normal number, without the rare extremes that would break the anatomy."""
    return float(np.clip(rng.standard_normal(), -2.3, 2.3))


def _sample_stroke(rng: np.random.Generator, median_ml: float) -> Stroke:
    shares = np.array([territory[4] for territory in _TERRITORIES])
    name, centre, spread, shape, _ = _TERRITORIES[
        int(np.searchsorted(np.cumsum(shares / shares.sum()), rng.random()))
    ]
    side = 1.0 if rng.random() < 0.5 else -1.0
    volume = median_ml * float(np.exp(0.8 * _clipped(rng))) * (0.35 if "deep" in name else 1.0)
    radius = (3 * 1000 * volume / (4 * np.pi)) ** (1 / 3)
    place = [c + s * float(rng.uniform(-1, 1)) for c, s in zip(centre, spread, strict=True)]
    return Stroke(
        territory=name,
        centre=(side * place[0], place[1], place[2]),
        radii=tuple(radius * float(k * rng.uniform(0.8, 1.25)) for k in shape),
    )


def grow(subject: Subject, age: float, atlas: Atlas) -> Anatomy:
    """Build the deformation of ``subject`` at ``age`` (years); a person keeps their folds."""
    rng = generator(subject.seed, "shape", subject.index)
    shape = lattice_shape(HEAD_LOW, HEAD_HIGH, _COARSE_SPACING)
    velocity = 2.1 * smooth_noise(rng, (*shape, 3), 3.0) + 0.9 * smooth_noise(rng, (*shape, 3), 1.5)
    coarse = exponential(LatticeMap(velocity, HEAD_LOW, _COARSE_SPACING)).values
    coarse = np.concatenate([coarse, smooth_noise(rng, (*shape, 2), 2.5)], axis=-1)
    folds = 1.1 * smooth_noise(rng, (*lattice_shape(_FINE_LOW, _FINE_HIGH, _FINE_SPACING), 3), 1.25)
    texture = smooth_noise(rng, (*lattice_shape(HEAD_LOW, HEAD_HIGH, _TEXTURE_SPACING), 4), 0.7)
    aging = np.clip((age - 20) / 70, 0, 1.1)
    severity = subject.severity * (1 + 0.12 * (age - subject.age))
    load = subject.lesion_load * np.exp(0.55 * subject.lesion_trait) * (0.25 + 1.4 * aging**2)
    return Anatomy(
        subject=subject,
        age=age,
        atlas=atlas,
        coarse=LatticeMap(coarse, HEAD_LOW, _COARSE_SPACING),
        fine=_fine_displacement(subject, aging, severity, folds, atlas),
        texture=LatticeMap(texture, HEAD_LOW, _TEXTURE_SPACING),
        widening=float(0.26 * aging + 0.03 * subject.cortex_trait + 0.02 * severity),
        medial_widening=float(0.24 * severity),
        lesion_threshold=float(3.65 - 1.15 * np.log2(1 + load)) if subject.lesion_load else 99.0,
    )


def _fine_displacement(
    subject: Subject, aging: float, severity: float, folds: Array, atlas: Atlas
) -> LatticeMap:
    """Return the displacement (mm) of ventricles, hippocampi, and, by ``folds``, of gyri."""
    # Amplitudes (mm) beyond these would fold the tissue between ventricles and cortex.
    ventricles = min(12.0, -0.9 + 8.0 * aging**1.7 + 1.0 * subject.ventricle_trait + 2.2 * severity)
    hippocampi = min(5.0, -0.2 + 0.9 * aging**2 + 0.5 * subject.hippocampus_trait + 0.8 * severity)
    push = atlas.push.sample(lattice_points(_FINE_LOW, folds.shape[:3], _FINE_SPACING))
    push = push.reshape(*folds.shape[:3], 7)
    velocity = folds * push[..., 6:]
    velocity += np.float32(ventricles) * push[..., :3] + np.float32(hippocampi) * push[..., 3:6]
    return exponential(LatticeMap(velocity, _FINE_LOW, _FINE_SPACING))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> Array:
    """Draw Gaussian random fields of unit variance, smooth over ``width`` cells.

    ``shape`` is (nx, ny, nz, fields); the fields are periodic.
    """
    white = rng.standard_normal(shape, np.float32)
    smooth = ndimage.gaussian_filter(white, (width, width, width, 0), mode="wrap", truncate=3)
    # The variance of smoothed white noise is known; dividing by the sample's would tie its voxels.
    return np.asarray(smooth * np.float32((2 * np.sqrt(np.pi) * width) ** 1.5), np.float32)


def exponential(velocity: LatticeMap, squarings: int = 4) -> LatticeMap:
    """Return the displacement (mm) of the flow of a stationary velocity, by scaling and squaring.

    Arsigny et al., MICCAI 2006.
    """
    shape = velocity.values.shape[:3]
    points = lattice_points(velocity.origin, shape, velocity.spacing)
    step = LatticeMap(velocity.values / np.float32(2**squarings), velocity.origin, velocity.spacing)
    for _ in range(squarings):
        flat = step.values.reshape(-1, 3)
        moved = flat + step.sample(points + flat)
        step = LatticeMap(moved.reshape(*shape, 3), velocity.origin, velocity.spacing)
    return step


def locate(anatomy: Anatomy, points: Array) -> tuple[Array, Array]:
    """Map points (n, 3) of the person's head, mm, to the atlas.

    Return the atlas points (n, 3), mm, and the person's two wide noise fields (n, 2).
    """
    centre = np.asarray(anatomy.atlas.centre, np.float32)
    moved = (points - centre) / np.asarray(anatomy.subject.scale, np.float32) + centre
    coarse = anatomy.coarse.sample(moved)
    moved += coarse[:, :3]
    folded = np.flatnonzero(anatomy.atlas.shell.nearest(moved, _HULL) < 14)
    moved[folded] += anatomy.fine.sample(moved[folded])
    return moved, coarse[:, 3:]


def closest_rigid(anatomy: Anatomy) -> NDArray[np.float64]:
    """Return the rigid 4x4 matrix (mm) that best aligns the person's brain with the atlas.

    It is the rotation nearest to the least-squares affine of the deformation (polar
    decomposition), about the centre of the brain.
    """
    points = lattice_points((-80.0, -115.0, -75.0), (17, 20, 17), 10.0)
    target, _ = locate(anatomy, points)
    brain = anatomy.atlas.shell.nearest(target, _HULL) < 0
    x, y = points[brain].astype(np.float64), target[brain].astype(np.float64)
    affine = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0), rcond=None)[0].T
    left, _, right = np.linalg.svd(affine)
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = y.mean(axis=0) - rigid[:3, :3] @ x.mean(axis=0)
    return rigid


@dataclass(frozen=True)
class Painting:
    """What lies at each of n points."""

    fractions: Array
    """(len(MATERIALS), n): shares that add up to 1 at each point."""
    brain: Array
    """(n,) as all below: share inside the brain's hull, sulci and ventricles included."""
    ventricle: Array
    hippocampus: Array
    infarct: Array
    white_lesion: Array


class _Canvas:
    """Shares of materials at points, laid from the inside out.

    Each layer takes its share of what the layers inside it have left.
    """

    def __init__(self, points: int) -> None:
        self.fractions = np.zeros((len(MATERIALS), points), np.float32)
        self.left = np.ones(points, np.float32)

    def lay(
        self, material: int, share: Array, where: NDArray[np.intp] | slice = slice(None)
    ) -> None:
        """Give ``material`` its share of what is left at the points ``where``."""
        taken = self.left[where] * share
        self.fractions[material, where] += taken
        self.left[where] -= taken


@dataclass(frozen=True)
class _Points:
    """Points of a head, where they lie in the atlas, and the person's noise there."""

    place: Array
    """(n, 3) in the atlas, mm."""
    wide: Array
    """(n, 2), smooth over centimetres."""
    noise: Array
    """(n, 4), of the texture."""
    edge: float
    """Of the voxels they are seen with, mm."""

    def __getitem__(self, chosen: NDArray[np.intp]) -> _Points:
        return _Points(self.place[chosen], self.wide[chosen], self.noise[chosen], self.edge)


def paint(anatomy: Anatomy, points: Array, edge: float) -> Painting:
    """Tell what lies at ``points`` (n, 3), mm, seen with voxels of ``edge`` mm."""
    place, wide = locate(anatomy, points)
    head = _Points(place, wide, anatomy.texture.sample(place), edge)
    shell = np.ascontiguousarray(anatomy.atlas.shell.sample(place).T)
    hull, vault, lower, skull_weight, temporal = shell
    # Distances in the atlas are those in the head, but for its size.
    size = np.float32(np.mean(anatomy.subject.scale))
    hull, bone_distance, lower = hull * size, np.minimum(hull, vault) * size, lower * size
    canvas = _Canvas(len(points))

    inside = np.flatnonzero(hull < edge)
    tissue, structures = _paint_brain(anatomy, head[inside])
    within = _ramp(-hull[inside], edge)
    for material, share in tissue.items():
        canvas.fractions[material, inside] = share * within
    canvas.left[inside] -= within

    outer_table = _lay_skull(canvas, anatomy, head, bone_distance, skull_weight)
    x, y, z = place.T
    ahead = np.flatnonzero((z < -8) & (hull > 2) & (np.abs(x) < 82) & (y > -73) & (y < 118))
    _lay_face(canvas, anatomy, head[ahead], ahead)
    scalp = np.float32(anatomy.subject.scalp_mm) * (1 + np.float32(0.15) * wide[:, 1])
    depth = -np.minimum(bone_distance - (outer_table + 8 * temporal + scalp), lower)
    _lay_scalp(canvas, head, depth, scalp)
    canvas.fractions[AIR] += canvas.left

    shares = {name: np.zeros(len(points), np.float32) for name in structures}
    for name, share in structures.items():
        shares[name][inside] = share * within
    return Painting(fractions=canvas.fractions, **shares)


def _ramp(distance: Array, edge: float) -> Array:
    """Return the share of a voxel, ``edge`` mm wide, inside a boundary; ``distance`` > 0 inside."""
    share: Array = np.clip(distance * np.float32(1 / edge) + np.float32(0.5), 0, 1)
    return share


def _paint_brain(anatomy: Anatomy, points: _Points) -> tuple[dict[int, Array], dict[str, Array]]:
    """Return shares of materials, and of structures by name, inside the brain's hull."""
    maps = np.ascontiguousarray(anatomy.atlas.brain.sample(points.place).T)
    csf, white, sulcus, ventricle, hippocampus, medial, near_ventricle, deep = maps
    folds, blades, spots, _ = np.ascontiguousarray(points.noise.T)
    # Probabilities of the average brain become the boundaries of one brain: the coarser the voxel,
    # the softer.
    softness = 0.36 + 0.12 * (points.edge - 1)
    opening = (
        csf
        + 0.4 * np.maximum(sulcus, 0)
        + anatomy.widening
        + anatomy.medial_widening * medial
        + 0.05 * folds
    )
    csf_share = np.maximum(np.clip(0.5 + (opening - 0.62) / softness, 0, 1), ventricle)
    whiteness = white - 0.47 + 0.07 * blades * (1 - deep)
    white_share = np.clip(0.5 + whiteness / (softness + 0.1), 0, 1) * (1 - csf_share)
    grey_share = 1 - csf_share - white_share

    score = 1.1 * spots + 2.4 * near_ventricle - anatomy.lesion_threshold
    white_lesion = np.clip(0.5 + 2 * score, 0, 1) * white_share
    infarct, core = _infarct(anatomy.subject.infarct, points, ventricle)
    spared = 1 - infarct
    tissue = {
        CSF: csf_share * spared + core,
        GREY: grey_share * spared,
        WHITE: (white_share - white_lesion) * spared,
        GLIOSIS: white_lesion * spared + infarct - core,
    }
    structures = {
        "brain": np.ones_like(csf),
        "ventricle": ventricle,
        "hippocampus": hippocampus * (1 - csf_share) * spared,
        "infarct": infarct,
        "white_lesion": white_lesion * spared,
    }
    return tissue, structures


def _infarct(stroke: Stroke | None, points: _Points, ventricle: Array) -> tuple[Array, Array]:
    """Return the shares of the infarct and of its liquid core, outside the ventricles."""
    if stroke is None:
        return np.zeros_like(ventricle), np.zeros_like(ventricle)
    folds, border = np.ascontiguousarray(points.noise[:, [0, 3]].T)
    radii = np.asarray(stroke.radii, np.float32)
    offset = (points.place - np.asarray(stroke.centre, np.float32)) / radii
    radius = np.sqrt((offset**2).sum(axis=1)) + 0.16 * border + 0.1 * folds
    width = points.edge / min(stroke.radii)
    infarct = _ramp(1.15 - radius, width) * (1 - ventricle)
    core = 0.85 * _ramp(1 - radius, width) * (1 - ventricle)
    return infarct, core


def _lay_skull(
    canvas: _Canvas, anatomy: Anatomy, points: _Points, bone_distance: Array, skull_weight: Array
) -> Array:
    """Lay what lies between brain and scalp; return the distance (mm) of the skull's outer table.

    From the inside: venous sinuses, as bright as muscle, CSF, and bone with marrow in it.
    """
    subject, edge = anatomy.subject, points.edge
    gap = np.float32(1.5 + 9 * anatomy.widening) + np.float32(0.3) * points.wide[:, 0]
    skull = np.float32(subject.skull_mm) * skull_weight * (1 + np.float32(0.15) * points.wide[:, 0])
    outer_table = gap + skull
    x, y, z = points.place.T
    sinus = np.maximum(np.abs(x) - 5 + np.abs(bone_distance - gap + 1), -10 - z)
    canvas.lay(MUSCLE, _ramp(-sinus, edge) * np.clip((20 - y) / 40, 0, 1))
    canvas.lay(CSF, _ramp(gap - bone_distance, edge))
    marrow = _ramp(bone_distance - gap - 1.3, edge) * _ramp(outer_table - 1.4 - bone_distance, edge)
    fat_share = np.clip(np.float32(subject.marrow) + np.float32(0.35) * points.noise[:, 2], 0, 1)
    canvas.lay(MARROW, marrow * fat_share)
    canvas.lay(BONE, _ramp(outer_table - bone_distance, edge))
    return outer_table


def _lay_face(canvas: _Canvas, anatomy: Anatomy, points: _Points, where: NDArray[np.intp]) -> None:
    """Lay spinal canal, airways, eyes and bones at points below and in front of the brain.

    ``where`` is their place on the canvas.
    """
    noise, edge = points.noise, points.edge
    distances = np.ascontiguousarray(anatomy.atlas.face.sample(points.place).T)
    air, bone, eye, orbit, canal = distances * np.float32(np.mean(anatomy.subject.scale))
    bone = bone + np.float32(0.6) * noise[:, 0]
    air = air + np.float32(0.8) * noise[:, 2]
    fat_share = np.clip(0.6 + 0.4 * noise[:, 1], 0, 1)
    for material, share in (
        (WHITE, _ramp(-canal - 3.2, edge)),
        (CSF, _ramp(-canal, edge)),
        (AIR, _ramp(-air, edge)),
        (VITREOUS, _ramp(-eye, edge)),
        (MARROW, _ramp(-bone - 2.2, edge) * fat_share),
        (BONE, _ramp(-bone, edge)),
        (FAT, _ramp(-orbit, edge)),
    ):
        canvas.lay(material, share, where)


def _lay_scalp(canvas: _Canvas, points: _Points, depth: Array, scalp: Array) -> None:
    """Lay muscle, fat and skin at points ``depth`` mm below the surface of the head."""
    bundles = np.clip(3 * np.abs(points.noise[:, 3]) + 0.3 - 0.3 * points.wide[:, 0], 0, 1)
    canvas.lay(MUSCLE, _ramp(depth - scalp, points.edge) * bundles)
    canvas.lay(FAT, _ramp(depth - 1.6, points.edge))
    canvas.lay(SKIN, _ramp(depth, points.edge))
