"""One person's head: labels and latent traits, a smooth deformation of the atlas, tissue by tissue.

Coordinates are millimetres in the person's own head, turned and centred as MNI space is but with
the person's own size. `locate` maps them to the atlas; `paint` says what lies there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.atlas import Atlas
from neurofoundry.phantom.grid import Array, Grid, Triple, lattice_points, lattice_shape
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
        """Session names with the age in years at each."""
        if self.interval is None:
            return (("1", self.age),)
        return (("1", self.age), ("2", round(self.age + self.interval, 1)))

    def site_of(self, session: str) -> str:
        """Where a session takes place."""
        return self.travels_to if session == "2" and self.travels_to else self.site


@dataclass(frozen=True)
class Anatomy:
    """A subject at an age, ready to be painted."""

    subject: Subject
    age: float
    atlas: Atlas
    coarse: Grid
    """Displacement of the whole head (mm), then 2 channels of wide unit noise."""
    fine: Grid
    """Displacement of gyri, ventricles and hippocampi, mm."""
    texture: Grid
    """Four channels of fine unit noise."""
    widening: float
    """By how much sulci open, in CSF probability."""
    medial_widening: float
    """How much more they open in the temporal lobes and the precuneus."""
    lesion_threshold: float


def generator(seed: int, *parts: object) -> np.random.Generator:
    """Random numbers that depend on `seed` and the names in `parts` alone."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
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
    """Subject `index` (from 0) of a cohort; the same person whatever the number of subjects.

    Labels follow an additive low-discrepancy sequence at each site (Roberts' generalized golden
    ratio), so that every site, and every first n subjects of it, hold them in like shares.
    """
    number, which = divmod(index, len(SITE_NAMES))
    start = generator(params.seed, "labels").random(5) + _SITE_STARTS[which]
    golden = 1.1347241384015194  # the root of x^6 = x + 1, for five dimensions
    step = golden ** -np.arange(1.0, 6.0)
    u_sex, u_age, u_diagnosis, u_stroke, u_sessions = (start + number * step) % 1
    rng = generator(params.seed, "traits", index)
    sex: Literal["F", "M"] = "F" if u_sex < 0.5 else "M"
    age = round(float(np.interp(u_age, (0, 0.22, 0.65, 1), (20, 55, 72, 90))), 1)
    ill = age > 55 and u_diagnosis < 0.45
    size = (0.925 if sex == "M" else 0.888) + 0.021 * _clipped(rng)
    scale = tuple(size * (1 + 0.018 * _clipped(rng)) for _ in range(3))
    interval: float | None = round(float(rng.uniform(1, 3)), 1)
    severity = params.ad_effect * max(0.2, 1 + 0.45 * _clipped(rng))
    infarct = _sample_stroke(rng, params.stroke_ml)
    travels_to, familiar = None, SITE_NAMES[:-1]
    u_travels = u_sessions - params.two_session_fraction
    if 0 <= u_travels < params.travelling_fraction and which < len(familiar):
        journey = generator(params.seed, "travel", index)
        travels_to = familiar[(which + journey.integers(1, len(familiar))) % len(familiar)]
        interval = round(float(journey.uniform(0, 60 / 365)), 1)
    elif u_travels >= 0:
        interval = None
    return Subject(
        seed=params.seed,
        index=index,
        participant=f"sub-{index + 1:04d}",
        site=SITE_NAMES[which],
        sex=sex,
        age=age,
        diagnosis="AD" if ill else "CN",
        infarct=infarct if u_stroke < 0.35 else None,
        interval=interval,
        travels_to=travels_to,
        scale=scale,  # type: ignore[arg-type]
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


def _clipped(rng: np.random.Generator) -> float:
    """A standard normal number without rare extremes, which would only break the anatomy."""
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
    """Build the deformation of `subject` at `age` (years). The same person keeps their folds."""
    rng = generator(subject.seed, "shape", subject.index)
    shape = lattice_shape(HEAD_LOW, HEAD_HIGH, _COARSE_SPACING)
    velocity = 2.1 * _noise(rng, (*shape, 3), 3.0) + 0.9 * _noise(rng, (*shape, 3), 1.5)
    coarse = _exponential(Grid(velocity, HEAD_LOW, _COARSE_SPACING)).values
    coarse = np.concatenate([coarse, _noise(rng, (*shape, 2), 2.5)], axis=-1)

    shape = lattice_shape(_FINE_LOW, _FINE_HIGH, _FINE_SPACING)
    folds = 1.1 * _noise(rng, (*shape, 3), 1.25)
    texture = _noise(rng, (*lattice_shape(HEAD_LOW, HEAD_HIGH, _TEXTURE_SPACING), 4), 0.7)
    passed = np.clip((age - 20) / 70, 0, 1.1)
    ill = subject.severity * (1 + 0.12 * (age - subject.age))
    # Amplitudes (mm) beyond these would fold the tissue between ventricles and cortex.
    ventricles = min(12.0, -0.9 + 8.0 * passed**1.7 + 1.0 * subject.ventricle_trait + 2.2 * ill)
    hippocampi = min(5.0, -0.2 + 0.9 * passed**2 + 0.5 * subject.hippocampus_trait + 0.8 * ill)
    push = atlas.push.sample(lattice_points(_FINE_LOW, shape, _FINE_SPACING))
    push = push.reshape(*shape, 7)
    folds *= push[..., 6:]
    folds += np.float32(ventricles) * push[..., :3] + np.float32(hippocampi) * push[..., 3:6]
    fine = _exponential(Grid(folds, _FINE_LOW, _FINE_SPACING)).values
    load = subject.lesion_load * np.exp(0.55 * subject.lesion_trait) * (0.25 + 1.4 * passed**2)
    return Anatomy(
        subject=subject,
        age=age,
        atlas=atlas,
        coarse=Grid(coarse, HEAD_LOW, _COARSE_SPACING),
        fine=Grid(fine, _FINE_LOW, _FINE_SPACING),
        texture=Grid(texture, HEAD_LOW, _TEXTURE_SPACING),
        widening=float(0.26 * passed + 0.03 * subject.cortex_trait + 0.02 * ill),
        medial_widening=float(0.24 * ill),
        lesion_threshold=float(3.65 - 1.15 * np.log2(1 + load)) if subject.lesion_load else 99.0,
    )


def _noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> Array:
    """Gaussian random fields of unit variance (the last axis counts fields), `width` in cells."""
    white = rng.standard_normal(shape, np.float32)
    smooth = ndimage.gaussian_filter(white, (width, width, width, 0), mode="wrap", truncate=3)
    # The variance of smoothed white noise is known; dividing by the sample's would tie its voxels.
    return np.asarray(smooth * np.float32((2 * np.sqrt(np.pi) * width) ** 1.5), np.float32)


def _exponential(velocity: Grid, squarings: int = 4) -> Grid:
    """Displacement of the flow of a stationary velocity (mm): scaling and squaring.

    Arsigny et al., MICCAI 2006.
    """
    shape = velocity.values.shape[:3]
    points = lattice_points(velocity.origin, shape, velocity.spacing)
    step = Grid(velocity.values / np.float32(2**squarings), velocity.origin, velocity.spacing)
    for _ in range(squarings):
        flat = step.values.reshape(-1, 3)
        moved = flat + step.sample(points + flat)
        step = Grid(moved.reshape(*shape, 3), velocity.origin, velocity.spacing)
    return step


def locate(anatomy: Anatomy, points: Array) -> tuple[Array, Array]:
    """Map points (n, 3) of the person's head, mm, to the atlas.

    Returns the atlas points (n, 3), mm, and the person's 2 wide noise fields (n, 2).
    """
    centre = np.asarray(anatomy.atlas.centre, np.float32)
    moved = (points - centre) / np.asarray(anatomy.subject.scale, np.float32) + centre
    coarse = anatomy.coarse.sample(moved)
    moved += coarse[:, :3]
    folded = np.flatnonzero(anatomy.atlas.shell.nearest(moved, _HULL) < 14)
    moved[folded] += anatomy.fine.sample(moved[folded])
    return moved, coarse[:, 3:]


def closest_rigid(anatomy: Anatomy) -> NDArray[np.float64]:
    """Rigid 4x4 (mm) that best lays the person's brain on the atlas.

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


def paint(anatomy: Anatomy, points: Array, edge: float) -> Painting:
    """What lies at `points` (n, 3), mm, seen with voxels of `edge` mm.

    Layers are laid from the inside out: each takes its share of what inner layers left.
    """
    subject, atlas = anatomy.subject, anatomy.atlas
    size = np.float32(np.mean(subject.scale))
    place, wide = locate(anatomy, points)
    noise = anatomy.texture.sample(place)
    # Distances in the atlas are those in the head, but for its size.
    hull, vault, lower, skull_weight, temporal = np.ascontiguousarray(atlas.shell.sample(place).T)
    hull, bone_distance, lower = hull * size, np.minimum(hull, vault) * size, lower * size
    fractions = np.zeros((len(MATERIALS), len(points)), np.float32)
    left = np.ones(len(points), np.float32)

    inside = np.flatnonzero(hull < edge)
    tissue, parts = _paint_brain(anatomy, place[inside], noise[inside], edge)
    within = _ramp(-hull[inside], edge)
    for material, share in tissue.items():
        fractions[material, inside] = share * within
    left[inside] -= within

    gap = np.float32(1.5 + 9 * anatomy.widening) + np.float32(0.3) * wide[:, 0]
    skull = np.float32(subject.skull_mm) * skull_weight * (1 + np.float32(0.15) * wide[:, 0])
    scalp = np.float32(subject.scalp_mm) * (1 + np.float32(0.15) * wide[:, 1])
    outer_table = gap + skull
    x, y, z = place.T
    sinus = np.maximum(np.abs(x) - 5 + np.abs(bone_distance - gap + 1), -10 - z)
    _lay(fractions, left, MUSCLE, _ramp(-sinus, edge) * np.clip((20 - y) / 40, 0, 1))
    _lay(fractions, left, CSF, _ramp(gap - bone_distance, edge))
    marrow = _ramp(bone_distance - gap - 1.3, edge) * _ramp(outer_table - 1.4 - bone_distance, edge)
    fat_share = np.clip(np.float32(subject.marrow) + np.float32(0.35) * noise[:, 2], 0, 1)
    _lay(fractions, left, MARROW, marrow * fat_share)
    _lay(fractions, left, BONE, _ramp(outer_table - bone_distance, edge))

    ahead = np.flatnonzero((z < -8) & (hull > 2) & (np.abs(x) < 82) & (y > -73) & (y < 118))
    _paint_face(anatomy, place[ahead], noise[ahead], edge, fractions, left, ahead)

    depth = -np.minimum(bone_distance - (outer_table + 8 * temporal + scalp), lower)
    bundles = np.clip(3 * np.abs(noise[:, 3]) + 0.3 - 0.3 * wide[:, 0], 0, 1)
    _lay(fractions, left, MUSCLE, _ramp(depth - scalp, edge) * bundles)
    _lay(fractions, left, FAT, _ramp(depth - 1.6, edge))
    _lay(fractions, left, SKIN, _ramp(depth, edge))
    fractions[AIR] += left

    whole = {name: np.zeros(len(points), np.float32) for name in parts}
    for name, share in parts.items():
        whole[name][inside] = share * within
    return Painting(fractions=fractions, **whole)


def _ramp(distance: Array, edge: float) -> Array:
    """Share of a voxel, `edge` mm wide, on the positive side of a boundary `distance` mm away."""
    return np.clip(distance * np.float32(1 / edge) + np.float32(0.5), 0, 1)


def _lay(
    fractions: Array,
    left: Array,
    material: int,
    share: Array,
    where: NDArray[np.intp] | slice = slice(None),
) -> None:
    """Give `material` its share of what is left at the points `where`."""
    taken = left[where] * share
    fractions[material, where] += taken
    left[where] -= taken


def _paint_brain(
    anatomy: Anatomy, place: Array, noise: Array, edge: float
) -> tuple[dict[int, Array], dict[str, Array]]:
    """Shares of materials, and of parts by name, at atlas points inside the hull of the brain."""
    subject = anatomy.subject
    maps = np.ascontiguousarray(anatomy.atlas.brain.sample(place).T)
    csf, white, sulcus, ventricle, hippocampus, medial, near_ventricle, deep = maps
    folds, blades, spots, border = np.ascontiguousarray(noise.T)
    # Probabilities of the average brain become the boundaries of one brain: the coarser the voxel,
    # the softer.
    softness = 0.36 + 0.12 * (edge - 1)
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
    infarct = core = np.zeros_like(csf)
    if subject.infarct:
        radii = np.asarray(subject.infarct.radii, np.float32)
        offset = (place - np.asarray(subject.infarct.centre, np.float32)) / radii
        radius = np.sqrt((offset**2).sum(axis=1)) + 0.16 * border + 0.1 * folds
        width = edge / min(subject.infarct.radii)
        infarct = _ramp(1.15 - radius, width) * (1 - ventricle)
        core = 0.85 * _ramp(1 - radius, width) * (1 - ventricle)
    spared = 1 - infarct
    tissue = {
        CSF: csf_share * spared + core,
        GREY: grey_share * spared,
        WHITE: (white_share - white_lesion) * spared,
        GLIOSIS: white_lesion * spared + infarct - core,
    }
    parts = {
        "brain": np.ones_like(csf),
        "ventricle": ventricle,
        "hippocampus": hippocampus * (1 - csf_share) * spared,
        "infarct": infarct,
        "white_lesion": white_lesion * spared,
    }
    return tissue, parts


def _paint_face(
    anatomy: Anatomy,
    place: Array,
    noise: Array,
    edge: float,
    fractions: Array,
    left: Array,
    where: NDArray[np.intp],
) -> None:
    """Lay spinal canal, airways, eyes and bones at atlas points below and before the brain."""
    size = np.float32(np.mean(anatomy.subject.scale))
    air, bone, eye, orbit, canal = np.ascontiguousarray(anatomy.atlas.face.sample(place).T) * size
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
        _lay(fractions, left, material, share, where)
