"""How well a scan was preprocessed, in numbers with bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import fft, ndimage

from neurofoundry.contracts.volumes import BOX_MM
from neurofoundry.preprocess import surface
from neurofoundry.preprocess.brain import Brain, largest_component
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import CoregistrationParams, QualityParams
from neurofoundry.preprocess.placement import Placement
from neurofoundry.preprocess.registration import closest_rigid, entropies, joint_histogram
from neurofoundry.preprocess.resample import Array, Image, Mask, Matrix, coarsen, look_up, resample
from neurofoundry.preprocess.template import COMPARISON_MM, GREY, WHITE, Template

MEASURES = {
    "coverage": "brain within the field of view",
    "in_box": "brain within the standard box",
    "margin_mm": "from the brain to the nearest edge of the field of view in mm, below 0 beyond it",
    "mask_ml": "volume of the brain mask in ml",
    "mask_dice": "overlap of the brain mask with the template's",
    "template_correlation": "correlation with the template",
    "template_nmi": "normalized mutual information with the template",
    "local_correlation": "local correlation with the template",
    "brighter_grey": "grey matter that is brighter than white matter",
    "contrast": "contrast of white against grey matter",
    "cnr": "contrast of white against grey matter to noise",
    "bias": "shading of white matter",
    "ghosting": "unevenness of the air around the head",
    "spike": "stripes of one spatial frequency",
    "rotation_deg": "rotation against the header in degrees",
    "scale": "size of the brain relative to the template",
    "determinant": "volume of the brain relative to the template",
    "stretch": "largest over smallest scale of the registration",
    "jacobian_min": "strongest shrinking of the warp",
    "jacobian_max": "strongest growth of the warp",
}
"""Column of volumes/scans.tsv, and what it holds in words."""

CATCHES = {
    "coverage": "heads that are cut off",
    "in_box": "brains that are misplaced, and masks that run down the neck",
    "brighter_grey": "images that are not T1-weighted, such as FLAIR",
    "contrast": "images without contrast between the tissues, and wrong registrations",
    "mask_ml": "masks that hold a part of a brain, or more than one",
    "mask_dice": "masks that hold a part of a brain, or more than one",
    "template_correlation": "images that show no brain",
    "local_correlation": "wrong registrations",
    "cnr": "noise that hides the tissues",
    "bias": "shading that hides the tissues",
    "ghosting": "motion",
    "spike": "stripes from a spike in k-space",
    "rotation_deg": "wrong headers, and with them left and right exchanged",
    "determinant": "wrong voxel sizes, and wrong registrations",
    "stretch": "wrong voxel sizes, and wrong registrations",
    "jacobian_min": "warps that fold",
    "jacobian_max": "warps that tear",
}
"""What a bound is there to set aside, by its measure."""
BY_SYN = ("jacobian_min", "jacobian_max")
"""Measures that only syn has."""
MAY_LACK = ("ghosting", *BY_SYN)
"""Measures without which a scan may be usable: where the view shows no air, none can be uneven."""
SCALP, GAP_MM, AIR_MM, FEWEST_AIR = 0.2, 16.0, 8.0, 100
"""Brightness of the head's edge, from air to white matter; width of the dark between brain and
scalp; from the head to the air; voxels at ``COMPARISON_MM``."""
DARKEST, SAME, BLURRED = 10, 1e-4, 3
"""Percentile of what lies outside the brain that is air; difference, as a share of white matter's
brightness, below which neighbours are equal; voxels by which blurring has spread an edge."""
CORE_MM = 8.0
"""How far inside the brain the local correlation begins: at the edge any brain agrees with any
other, turned or not."""
WINDOW_MM = 20.0
"""Edge of the cubes within which `local_correlation` compares and `ghosting` takes means."""
DARK = 0.1
"""Intensity (0..1) below which a voxel shows no white matter, whatever the template says."""
STRIPED, BESIDE, SLOWEST = 0.01, (3.0, 4.1), 4
"""Brightness, as a share of the head's mean, that stripes must change to be seen; how far from a
frequency, in steps of k-space, those lie that it is compared with; frequencies below which all is
head."""
TINY = 1e-6
"""Instead of 0 where a share must not vanish."""
MISSING_ML, LIT = 0.1, 0.5
"""What of the brain may be missing, filled by what lies beside it; how bright, relative to the
brain, that has to be to count: what lies in the dark was dark."""
FEWEST_WHITE = 100
"""Voxels of white matter that a trend is fitted to."""
CORTEX = 0.75
"""Probability of grey matter from which a voxel of the template is compared with white matter:
those of less are mixed, and misplaced gyri show there."""
NEARBY, OUTLYING, CLOSEST = 0.5, 2.5, 0.02
"""What is no white matter where the template has some (lesion, a large ventricle, a misplaced
gyrus): how far it lies from the median, then from the trend in robust standard deviations, and the
least that one of these is taken to be; in logarithms of intensity."""
PEAK_BIN, PEAK_WIDTH = 0.01, 0.04
"""Histogram in which white matter's most frequent brightness is found, relative to its trend."""


def measure(
    scan: Image,
    brain: Brain,
    placement: Placement,
    template: Template,
    *,
    mask_ml: float,
) -> dict[str, float]:
    """Return every one of ``MEASURES`` that has a value.

    Raises UnusableScanError when the registered scan shows nothing that could be compared.
    """
    affine = placement.affine
    grid, shape = template.t1.affine, template.t1.values.shape
    depth = resample(template.depth, grid, shape, outside=-100).values
    inside = depth > 0
    registered = resample(brain.intensities(), grid, shape, transform=affine).values
    grey_matter = inside & (template.grey.values > GREY)
    white_matter = inside & (template.white.values > WHITE)
    cortex = inside & (template.grey.values > CORTEX)
    grey, white = registered[grey_matter], registered[white_matter]
    if grey.std() + white.std() == 0:
        raise UnusableScanError(
            "registration failed: the scan is uniform where its brain should be"
        )

    def points(mask: Mask) -> Array:
        in_scan: Array = apply_affine(affine @ grid, np.argwhere(mask))
        return in_scan

    def centred(mask: Mask) -> Array:
        from_centre: Array = apply_affine(grid, np.argwhere(mask)) - template.centre
        return from_centre

    low, high = np.transpose(BOX_MM)
    edge = brain.surface if brain.mask is None else surface.wrap(brain.mask)
    boxed = apply_affine(np.linalg.inv(placement.to_scan), edge)
    in_template = apply_affine(np.linalg.inv(affine), brain.surface)
    measures = {
        "coverage": in_view(scan, points(inside)).mean(),
        "in_box": ((boxed > low) & (boxed < high)).all(axis=1).mean(),
        "margin_mm": margin(scan, edge),
        "mask_ml": mask_ml,
        "mask_dice": _dice(surface.fill(in_template, grid, shape), inside),
        **_agreement(template.t1.values, registered, inside),
        "local_correlation": local_correlation(template.t1.values, registered, depth > CORE_MM),
        "brighter_grey": brighter_grey(
            white, centred(white_matter), registered[cortex], centred(cortex)
        ),
        "contrast": (white.mean() - grey.mean()) / (white.std() + grey.std()),
        "cnr": contrast_to_noise(scan, points(white_matter), points(grey_matter)),
        "bias": shading(white, centred(white_matter)),
        "ghosting": ghosting(brain.as_scanned().head, points(white_matter), affine, template),
        "spike": spike(scan),
        **_deformation(affine, template),
    }
    if placement.warp is not None:
        measures |= dict(zip(BY_SYN, placement.warp.jacobian(), strict=True))
    return rounded(measures)


def judge(measures: Mapping[str, float], bounds: QualityParams) -> str | None:
    """Return why a scan is not usable, in words; None when it is."""
    faults = out_of_bounds(measures, bounds)
    return "; ".join(f"{MEASURES[name]}: {fault}" for name, fault in faults.items()) or None


def out_of_bounds(
    measures: Mapping[str, float], bounds: QualityParams | CoregistrationParams
) -> dict[str, str]:
    """Return the measures that a bound does not allow, NaN among them, and what was expected in
    words; in the order of bounds."""
    faults = {}
    for name in type(bounds).model_fields:
        if name in MAY_LACK and name not in measures:
            continue
        value, bound = measures.get(name, math.nan), getattr(bounds, name)
        # The comparisons are such that NaN is out of bounds.
        above = bound.min is None or value >= bound.min
        below = bound.max is None or value <= bound.max
        if not (above and below):
            expected = f"at most {bound.max:g}" if above else f"at least {bound.min:g}"
            faults[name] = f"{value:.3g}, expected {expected}"
    return faults


def rounded(measures: Mapping[str, float | np.floating]) -> dict[str, float]:
    """Return measures as they are kept: to four digits, without those that have no value."""
    numbers = {name: round(float(value), 4) for name, value in measures.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def check_gaps(scan: Image, gaps: Mask | None, brain: Brain, to_scan: Matrix | None = None) -> None:
    """Raise UnusableScanError where ``gaps``, voxels of ``scan`` that held no intensity, hide some
    of the brain. ``to_scan`` maps mm of the brain's scan to mm of this one, if it is another."""
    if gaps is None or not gaps.any():
        return
    placed = brain.head.affine if to_scan is None else to_scan @ brain.head.affine
    drawn = Image(brain.inside.astype(np.float32), placed)
    inside = resample(drawn, scan.affine, gaps.shape).values > 0.5
    if not inside.any():
        return
    dark = scan.values.min()
    bright = scan.values - dark > LIT * (np.median(scan.values[inside]) - dark)
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    missing = float((gaps & inside & bright).sum() * voxel_ml)
    if missing > MISSING_ML:
        raise UnusableScanError(
            f"NaN, infinite or wild values: they hide {missing:.2g} ml of the brain, expected at "
            f"most {MISSING_ML:g}"
        )


def in_view(scan: Image, points: Array) -> Mask:
    """Return which of ``points`` (n, 3) in mm lie within the scan's voxels: (n,)."""
    voxels = apply_affine(np.linalg.inv(scan.affine), points)
    within: Mask = ((voxels >= -0.5) & (voxels <= np.array(scan.values.shape) - 0.5)).all(axis=1)
    return within


def margin(scan: Image, vertices: Array) -> float:
    """Return the distance in mm, along an axis of the scan, from the brain's surface, vertices
    (v, 3) in mm, to the edge of the scan; negative where the brain goes beyond it."""
    voxels = apply_affine(np.linalg.inv(scan.affine), vertices)
    beyond = np.minimum(voxels + 0.5, np.array(scan.values.shape) - 0.5 - voxels)
    return float((beyond * voxel_sizes(scan.affine)).min())


def contrast_to_noise(scan: Image, white: Array, grey: Array) -> float:
    """Return the difference of the tissues' medians over the noise between neighbouring voxels.

    Noise is what a voxel of white matter differs from the mean of its six neighbours by, scaled
    to the standard deviation of independent noise (Coupé et al., IEEE Trans. Med. Imaging 27
    (2008) 425-441), by the median, which edges of the tissue do not move. ``white`` and ``grey``
    are points (n, 3) in mm.
    """
    last = np.array(scan.values.shape) - 2

    def nearest(points: Array) -> tuple[NDArray[np.intp], ...]:
        voxels = np.rint(apply_affine(np.linalg.inv(scan.affine), points)).astype(np.intp)
        return tuple(voxels[((voxels >= 1) & (voxels <= last)).all(axis=1)].T)

    white_voxels, grey_voxels = nearest(white), nearest(grey)
    if len(white_voxels[0]) == 0 or len(grey_voxels[0]) == 0:
        return 0.0
    values = scan.values[white_voxels].astype(np.float64)
    around = np.zeros_like(values)
    for axis in range(3):
        for step in (-1, 1):
            beside = list(white_voxels)
            beside[axis] = white_voxels[axis] + step
            around += scan.values[tuple(beside)]
    residual = np.sqrt(6 / 7) * (values - around / 6)
    noise = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    difference = np.median(values) - np.median(scan.values[grey_voxels])
    # An image of a few grey levels can have no noise at all.
    return float(difference / max(noise, 1e-3 * abs(difference), 1e-12))


def shading(white: NDArray[np.float32], points: Array) -> float:
    """Return the standard deviation of a quadratic trend through the logarithm of white matter.

    ``points`` (n, 3) in mm are where the intensities ``white`` (n,) lie. NaN where too few of them
    show white matter.
    """
    seen = white > DARK
    if seen.sum() < FEWEST_WHITE:
        return math.nan
    terms = _quadratic(points[seen])
    return float((terms @ _least_squares(terms, np.log(white[seen].astype(np.float64)))).std())


def brighter_grey(
    white: NDArray[np.float32], white_points: Array, grey: NDArray[np.float32], grey_points: Array
) -> float:
    """Return the share of grey matter that is brighter than white matter is there.

    In a T1w image white matter is the brightest tissue, so next to none is; in FLAIR, T2w and PD
    much of it is. Only the order of brightness counts, so neither scale nor zero matter; shading
    is taken out by the trend of white matter, lesions and misplaced voxels by the most frequent
    brightness along it. Sulcal fluid, which is dark in FLAIR too and lowers the mean of a shrunken
    cortex below that of white matter, cannot hide what is brighter. Points (n, 3) are mm from the
    centre; NaN where too little white matter shows.
    """
    seen = white > DARK
    if seen.sum() < FEWEST_WHITE:
        return math.nan
    terms, log = _quadratic(white_points[seen]), np.log(white[seen].astype(np.float64))
    typical = np.abs(log - np.median(log)) < NEARBY
    for _ in range(3):
        weights = _least_squares(terms[typical], log[typical])
        residual = log - terms @ weights
        deviation = 1.4826 * np.median(np.abs(residual[typical]))
        typical = np.abs(residual) < OUTLYING * max(deviation, CLOSEST)
    counts, edges = np.histogram(np.exp(residual), bins=np.arange(0.3, 1.8, PEAK_BIN))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), PEAK_WIDTH / PEAK_BIN)
    peak = edges[smooth.argmax()] + PEAK_BIN / 2
    return float((grey > peak * np.exp(_quadratic(grey_points) @ weights)).mean())


def ghosting(head: Image, white: Array, affine: Matrix, template: Template) -> float:
    """Return the range of the air's brightness beside and above the head, over white matter's.

    Motion and other faults between the lines of a scan spread copies of the head over it. Noise
    does not count: it is as strong everywhere, and next to none is left in means over
    ``WINDOW_MM``. Nor does what a program has blanked, to whatever value: often some air is left
    around the head. Brightness counts from the air's, wherever the scan's zero lies. ``white`` are
    points (n, 3) in mm of the scan; ``affine`` maps mm of the template to them. NaN where too
    little air is in view.
    """
    bright = float(np.median(look_up(head, white)))
    lowest = float(head.values.min())
    coarse = coarsen(head, COMPARISON_MM, outside=lowest)
    filled, shown = _without_blanks(head, SAME * abs(bright - lowest))
    # Voxels at the faces of the view are mixed with what lies beyond it.
    within = (slice(1, -1), slice(1, -1), slice(1, -1))
    whole, inner, seen = coarse.values[within], filled[within], shown[within]
    voxels = np.moveaxis(np.indices(inner.shape), 0, -1).reshape(-1, 3) + 1
    places = apply_affine(np.linalg.inv(affine) @ coarse.affine, voxels)
    # Lower down there are the face and the neck.
    above = seen & (places[:, 2] > template.centre[2]).reshape(inner.shape)
    around = above & (look_up(template.depth, places, outside=-100) < 0).reshape(inner.shape)
    if around.sum() < FEWEST_AIR:
        return math.nan
    dark = np.percentile(inner[around], DARKEST)
    level = bright - dark
    air = above & ~_body(whole > dark + SCALP * level)
    if air.sum() < FEWEST_AIR or level <= 0:
        return math.nan
    low, high = np.percentile(_local_means(air, inner), [5, 95])
    return float((high - low) / level)


def spike(scan: Image) -> float:
    """Return how far one spatial frequency stands out from those beside it.

    A spark while k-space was read leaves one: stripes all over the head, which change neither its
    shape nor the air's magnitude. An edge of the head, of the view, or where a face was cut away,
    is a line through k-space in some direction, so a frequency counts by its strongest neighbour.
    """
    values, size = scan.values.astype(np.float32), np.array(scan.values.shape)
    spectrum = np.abs(fft.rfftn(values))

    def strength(places: NDArray[np.intp]) -> NDArray[np.float32]:
        places = places % size
        # The other half of k-space mirrors the one that is kept.
        mirrored = places[:, 2:] >= spectrum.shape[2]
        found: NDArray[np.float32] = spectrum[tuple(np.where(mirrored, -places % size, places).T)]
        return found

    head = float((values - np.percentile(values, 2)).sum(dtype=np.float64))
    strong = np.argwhere(spectrum > max(STRIPED / 2 * head, TINY * spectrum.max()))
    frequency = (strong + size // 2) % size - size // 2
    strong = strong[np.linalg.norm(frequency, axis=1) >= SLOWEST]
    if len(strong) == 0:
        return 0.0
    reach = int(BESIDE[1])
    steps = np.argwhere(np.ones(3 * (2 * reach + 1,))) - reach
    distance = np.linalg.norm(steps, axis=1)
    steps = steps[(distance >= BESIDE[0]) & (distance <= BESIDE[1])]
    beside = np.max([strength(strong + step) for step in steps], axis=0)
    return float((strength(strong) / np.maximum(beside, TINY)).max())


def local_correlation(
    first: NDArray[np.float32], second: NDArray[np.float32], inside: Mask
) -> float:
    """Return the mean over ``inside`` of the correlation within the part of a cube that lies
    inside. Voxels are of ``COMPARISON_MM``."""
    a, b, a_square, b_square, product = _local_means(
        inside, first, second, first * first, second * second, first * second
    )
    a_variance = np.maximum(a_square - a**2, 0)
    b_variance = np.maximum(b_square - b**2, 0)
    covariance = product - a * b
    return float(np.mean(covariance / np.sqrt(np.maximum(a_variance * b_variance, 1e-10))))


def _agreement(
    template: NDArray[np.float32], registered: NDArray[np.float32], inside: Mask
) -> dict[str, float]:
    """Return how alike the intensities of the template and of a registered scan are."""
    joint = joint_histogram(
        torch.from_numpy(template[inside]), torch.from_numpy(registered[inside])[None]
    )
    first, second, both = (float(entropy) for entropy in entropies(joint))
    return {
        "template_correlation": float(np.corrcoef(template[inside], registered[inside])[0, 1]),
        "template_nmi": (first + second) / both,
    }


def _deformation(affine: Matrix, template: Template) -> dict[str, float]:
    """Return how far the affine registration turns and scales the template."""
    rotation = closest_rigid(affine, template.centre)[:3, :3]
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    return {
        "rotation_deg": float(np.degrees(np.arccos(cosine))),
        "scale": float(np.cbrt(scales.prod())),
        "determinant": float(scales.prod()),
        "stretch": float(scales.max() / scales.min()),
    }


def _quadratic(points: Array) -> Array:
    """Return the terms of a quadratic function of points (n, 3) in mm, (n, 10)."""
    x, y, z = points.T / 100
    return np.stack([x**0, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)


def _least_squares(terms: Array, values: Array) -> Array:
    return np.asarray(np.linalg.lstsq(terms, values, rcond=None)[0], np.float64)


def _dice(first: Mask, second: Mask) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def _without_blanks(head: Image, tolerance: float) -> tuple[NDArray[np.float32], Mask]:
    """Return the head at ``COMPARISON_MM``, and the voxels that are mostly no blank.

    A voxel is blank where it equals its six neighbours: no scanner's air does. Blanks add nothing
    to the voxels that they share with air.
    """
    flat = np.ones(head.values.shape, bool)
    for axis in range(3):
        same = np.abs(np.diff(head.values, axis=axis)) < tolerance
        before, after = [slice(None)] * 3, [slice(None)] * 3
        before[axis], after[axis] = slice(1, None), slice(None, -1)
        flat[tuple(before)] &= same
        flat[tuple(after)] &= same
    shown = ~ndimage.binary_dilation(flat, iterations=BLURRED)
    share = coarsen(Image(shown.astype(np.float32), head.affine), COMPARISON_MM)
    values = coarsen(Image(head.values * shown, head.affine), COMPARISON_MM).values
    mean = values / np.maximum(share.values, TINY)
    return mean.astype(np.float32), share.values > 0.5


def _body(bright: Mask) -> Mask:
    """Return the head, and ``AIR_MM`` around it, at ``COMPARISON_MM``."""
    gap, beyond = (round(mm / COMPARISON_MM) for mm in (GAP_MM, AIR_MM))
    # With room at the faces.
    closed = ndimage.binary_closing(np.pad(bright, gap), iterations=gap)
    grown = ndimage.binary_dilation(largest_component(closed), iterations=beyond)
    body: Mask = ndimage.binary_fill_holes(grown)[gap:-gap, gap:-gap, gap:-gap]
    return body


def _local_means(inside: Mask, *volumes: NDArray[np.float32]) -> Array:
    """Return the mean of each volume over the part that lies ``inside`` of a cube of ``WINDOW_MM``
    around each voxel inside: (volumes, n). Voxels are of ``COMPARISON_MM``."""
    size = round(WINDOW_MM / COMPARISON_MM)
    share, *totals = (
        ndimage.uniform_filter(of.astype(np.float64), size, mode="constant")[inside]
        for of in (inside, *(np.where(inside, values, 0) for values in volumes))
    )
    means: Array = np.stack(totals) / share
    return means
