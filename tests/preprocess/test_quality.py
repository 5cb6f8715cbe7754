from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from pydantic import ValidationError
from scipy import ndimage
from scipy.stats import norm

from neurofoundry.preprocess.brain import Brain
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import Bounds, PreprocessParams, QualityParams
from neurofoundry.preprocess.quality import (
    BY_SYN,
    MEASURES,
    brighter_grey,
    check_gaps,
    contrast_to_noise,
    ghosting,
    judge,
    local_correlation,
    margin,
    shading,
    spike,
)
from neurofoundry.preprocess.resample import Image, Mask, look_up
from neurofoundry.preprocess.template import Template
from tests.support.preprocessing import GOOD_MEASURES


def test_a_good_scan_has_no_reason_and_every_bound_has_a_measure() -> None:
    assert judge(GOOD_MEASURES, QualityParams()) is None
    assert {*GOOD_MEASURES, *BY_SYN} == set(MEASURES)
    assert set(QualityParams.model_fields) <= set(MEASURES)


@pytest.mark.parametrize("name", list(QualityParams.model_fields))
def test_every_bound_is_kept_on_both_sides_and_named_in_the_reason(name: str) -> None:
    bound = getattr(QualityParams(), name)
    for end, beyond in ((bound.min, -1e-3), (bound.max, 1e-3)):
        if end is not None:
            assert judge({**GOOD_MEASURES, name: end}, QualityParams()) is None
            reason = judge({**GOOD_MEASURES, name: end + beyond}, QualityParams())
            assert reason is not None
            assert reason.startswith(MEASURES[name] + ":")
    assert judge({**GOOD_MEASURES, name: float("nan")}, QualityParams())


def test_bounds_that_bound_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="min, max or both"):
        Bounds()
    with pytest.raises(ValidationError, match="less than max"):
        Bounds(min=2, max=1)
    with pytest.raises(ValidationError, match="rotation_degrees"):
        PreprocessParams.model_validate({"quality": {"rotation_degrees": {"max": 3}}})


def test_local_correlation_agrees_with_correlations_counted_window_by_window() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((9, 8, 7), dtype=np.float32)
    b = (a + rng.random(a.shape, dtype=np.float32)).astype(np.float32)
    inside = np.ones(a.shape, bool)
    inside[:2] = False
    expected = []
    for i, j, k in np.argwhere(inside):
        window = tuple(slice(max(n - 2, 0), n + 3) for n in (i, j, k))
        chosen = inside[window]
        expected.append(np.corrcoef(a[window][chosen], b[window][chosen])[0, 1])
    assert local_correlation(a, b, inside) == pytest.approx(np.mean(expected), abs=1e-4)


def test_contrast_to_noise_is_that_of_tissue_with_known_noise() -> None:
    rng = np.random.default_rng(0)
    affine = from_matvec(np.diag([2.0, 1, 3]), [-20, 5, 9])
    values = np.full((40, 40, 40), 60.0)
    values[20:] = 100
    scan = Image((values + rng.normal(0, 5, values.shape)).astype(np.float32), affine)
    voxels = np.argwhere(np.ones((14, 36, 36))) + 2
    white, grey = apply_affine(affine, voxels + np.array([22, 0, 0])), apply_affine(affine, voxels)
    assert contrast_to_noise(scan, white, grey) == pytest.approx(40 / 5, rel=0.03)
    assert contrast_to_noise(scan, grey, white) == pytest.approx(-40 / 5, rel=0.03)
    beyond = white + 1000
    assert contrast_to_noise(scan, beyond, grey) == 0


def test_shading_is_the_deviation_of_the_field_and_not_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-70, 70, (4000, 3))
    field = 0.002 * points[:, 0] - 1e-5 * points[:, 1] * points[:, 2]
    white = (0.8 * np.exp(field + rng.normal(0, 0.05, len(points)))).astype(np.float32)
    assert shading(white, points) == pytest.approx(field.std(), rel=0.05)
    white[:100] = 0  # holes are not shading
    assert shading(white, points) == pytest.approx(field.std(), rel=0.05)


def test_ghosting_is_the_range_of_the_air_beside_and_above_the_head(template: Template) -> None:
    # A brain as large as the template's, in a view that is wider by 60 mm, in the template's place.
    affine = from_matvec(np.diag([4.0, 4, 4]), [-140, -180, -130])
    x, y, z = apply_affine(affine, np.moveaxis(np.indices((70, 80, 65)), 0, -1)).T.transpose(
        0, 3, 2, 1
    )
    place = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    depth = look_up(template.depth, place, outside=-100).reshape(x.shape)
    white = place[(depth > 20).ravel()][::50]
    noise = np.random.default_rng(0).normal(0, 2, depth.shape)
    skull = (depth < -3) & (depth > -12)

    def found(air: np.ndarray, *, below: float = 0.0, scale: float = 1.0, zero: float = 0) -> float:
        values = np.where(depth > -18, np.where(skull, 10, 200) + noise, air)
        values = values + np.where(z < template.centre[2] - 8, below, 0)
        moved = (values * scale + zero).astype(np.float32)
        return ghosting(Image(moved, affine), white, np.eye(4), template)

    # Means of up to 125 voxels, and of fewer at the edges.
    even = found(30 + noise)
    assert 3.29 / 85 / np.sqrt(125) < even < 3.29 / 85 / np.sqrt(40)
    # A ramp from 1 to 31 along y: what 90 % of the air span of it, in means over cubes of 20 mm.
    ramp = 1 + 30 * (y - y.min()) / np.ptp(y)
    uneven = ramp + noise / 10
    air = ndimage.distance_transform_cdt(depth <= -18, "taxicab") > 2
    air &= z > template.centre[2]
    air[[0, -1]] = air[:, [0, -1]] = air[:, :, [0, -1]] = False

    def spread(values: np.ndarray, air: np.ndarray) -> float:
        means = []
        for voxel in np.argwhere(air):
            near = tuple(slice(max(at - 2, 0), at + 3) for at in voxel)
            means.append(values[near][air[near]].mean())
        dark = np.percentile(values[(depth < 0) & (z > template.centre[2]) & (depth <= -18)], 10)
        return np.ptp(np.percentile(means, [5, 95])) / (200 - dark)

    assert found(uneven) == pytest.approx(spread(uneven, air), rel=0.03)
    # Where a scan has its zero, and how large its numbers are, is nobody's motion.
    for zero in (-100, 300, 4095, -1024):
        assert found(uneven, zero=zero) == pytest.approx(found(uneven), rel=1e-2)
    assert found(30 + noise, zero=-130, scale=0.004) == pytest.approx(even, rel=1e-2)
    # Air that a program has blanked does not count, whatever it wrote; what it has left does.
    kept = depth > -60
    for blank in (0, 15, -500):
        assert found(np.where(kept, 30 + noise, blank)) < 0.012
        assert found(np.where(kept, uneven, blank)) == pytest.approx(
            spread(uneven, air & (depth > -45)), rel=0.15
        )
    # Face and neck are no air.
    assert found(30 + noise, below=150) < 0.02
    # Where the view ends at the scalp, there is none, nor where all is blanked.
    corner = from_matvec(np.diag([4.0, 4, 4]), [-50, -90, -60])
    tight = Image(np.full((25, 35, 30), 200, np.float32), corner)
    assert np.isnan(ghosting(tight, white, np.eye(4), template))
    assert np.isnan(found(np.zeros_like(depth)))
    lacking = {name: value for name, value in GOOD_MEASURES.items() if name != "ghosting"}
    assert judge(lacking, QualityParams()) is None


def test_a_spike_in_k_space_stands_out_from_its_neighbours_and_a_head_does_not() -> None:
    rng = np.random.default_rng(3)
    size = (41, 50, 46)
    x, y, z = np.indices(size)
    inside = ((x - 20) / 15) ** 2 + ((y - 25) / 18) ** 2 + (z - 20.0) ** 2 / 400 < 1  # a cut neck
    head = np.where(inside, 100 + 30 * ndimage.gaussian_filter(rng.normal(0, 8, size), 2), 0)
    noisy = np.abs(head + rng.normal(0, 3, size))

    def found(values: np.ndarray) -> float:
        return spike(Image(values.astype(np.float32), np.eye(4)))

    def striped(share: float, *turns: float) -> np.ndarray:
        phase = sum(n * at / length for n, at, length in zip(turns, (x, y, z), size, strict=True))
        return noisy * (1 + share * np.cos(2 * np.pi * phase))

    assert found(noisy) < 3
    # Nor does one whose face was cut away along a plane, as tools do that make a head anonymous.
    for slope in ((0.3, 1, -0.6), (-0.5, 0.8, 1), (1, 0.2, 0.1)):
        plane = sum(
            n * (at - length / 2) for n, at, length in zip(slope, (x, y, z), size, strict=True)
        )
        assert found(np.where(plane < 9, noisy, 0)) < 3, slope
    # Whatever the direction: each lies in another half of k-space, or at its edge.
    for turns in ((5, 7, 6), (-5, 7, 6), (9, -8, -3), (8, 11, 0), (6, 5, 23)):
        assert found(striped(0.1, *turns)) > 4.5, turns
        # Where a scan has its zero, and how large its numbers are, changes nothing.
        moved = 0.02 * striped(0.1, *turns) - 500
        assert found(moved) == pytest.approx(found(striped(0.1, *turns)), rel=0.01)
    assert found(striped(0.002, 5, 7, 6)) < 4  # nobody sees it
    assert found(np.full(size, 7.0)) == 0


def test_grey_matter_is_never_brighter_in_t1w_and_often_in_other_contrasts() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-70, 70, (9000, 3))
    shading = np.exp(0.004 * points[:, 0] - 2e-5 * points[:, 1] ** 2)
    white_points, grey_points = points[:5000], points[5000:]

    def found(white: float, grey: float, fluid: float, *, share: float, noise: float) -> float:
        """``share`` of the grey zone shows fluid, and some of the white one is lesion."""
        in_white = np.full(5000, white)
        in_white[:500] = 0.5 * white + 0.5 * fluid
        in_white[500:1500] = fluid  # a large ventricle
        in_grey = np.where(rng.random(4000) < share, fluid, grey)
        brain = np.concatenate([in_white, in_grey]) * shading + rng.normal(0, noise, 9000)
        brain = np.clip(brain / np.percentile(brain, 99.5), 0, 1).astype(np.float32)
        return brighter_grey(brain[:5000], white_points, brain[5000:], grey_points)

    # As they are in T1w, also of much atrophy, of little contrast (spin echo) and with noise.
    assert found(1.0, 0.65, 0.2, share=0.1, noise=0.02) == 0
    assert found(1.0, 0.65, 0.2, share=0.5, noise=0.1) < 0.01
    assert found(1.0, 0.85, 0.4, share=0.1, noise=0.05) < 0.02
    # Independent: normal noise, so that the share is a tail of the normal distribution.
    tail = (1 - 0.4) * norm.sf(0.3 / 0.2)
    assert found(1.0, 0.7, 0.3, share=0.4, noise=0.2) == pytest.approx(tail, abs=0.02)
    # FLAIR, where dark fluid lowers the mean of grey matter below that of white; T2w; PD.
    assert found(1.0, 1.05, 0.1, share=0.6, noise=0.05) > 0.2
    assert found(0.5, 0.7, 1.0, share=0.3, noise=0.05) > 0.9
    assert found(0.8, 0.95, 1.0, share=0.3, noise=0.05) > 0.9
    assert np.isnan(brighter_grey(np.zeros(50, np.float32), points[:50], np.ones(9), points[:9]))


def test_the_margin_is_the_distance_to_the_nearest_face_of_the_scan() -> None:
    scan = Image(np.zeros((50, 60, 40), np.float32), from_matvec(np.diag([1.0, 2, 3]), [0, 0, 0]))
    middle = np.array([25.0, 60, 60])
    corners = middle + np.array([[-5.0, 0, 0], [5, 0, 0], [0, 0, 40]])
    assert margin(scan, corners) == pytest.approx(3 * 39.5 - 100)
    assert margin(scan, corners + np.array([21, 0, 0])) == pytest.approx(49.5 - 51)


@pytest.mark.parametrize("moved", [None, [50, -20, 0]])
def test_gaps_count_where_they_hide_what_is_bright_in_the_brain(moved: list[int] | None) -> None:
    voxels, affine = np.ones((40, 40, 40), np.float32), np.diag([2.0, 2, 2, 1])
    voxels[:20] = 0.2  # a ventricle, and beyond it nothing
    inside = np.zeros(voxels.shape, bool)
    inside[10:, 5:35, 5:35] = True
    brain = Brain(Image(voxels, affine), inside, np.zeros((0, 3)), None, None)
    to_scan = None if moved is None else from_matvec(np.eye(3), moved)
    scan = Image(voxels, affine if to_scan is None else to_scan @ affine)

    def hidden(*block: int) -> Mask:
        gaps = np.zeros(voxels.shape, bool)
        gaps[tuple(slice(start, start + 3) for start in block)] = True
        return gaps

    check_gaps(scan, None, brain, to_scan)
    check_gaps(scan, hidden(12, 20, 20), brain, to_scan)  # dark
    check_gaps(scan, hidden(25, 0, 20), brain, to_scan)  # no brain
    check_gaps(scan, hidden(25, 20, 20) & hidden(27, 20, 22), brain, to_scan)  # 3 voxels
    with pytest.raises(UnusableScanError, match=r"they hide 0\.22 ml of the brain"):
        check_gaps(scan, hidden(25, 20, 20), brain, to_scan)
