from __future__ import annotations

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from scipy import linalg
from scipy.spatial.transform import Rotation

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import registration
from neurofoundry.preprocess.brain import find_brain
from neurofoundry.preprocess.registration import (
    BINS,
    closest_rigid,
    entropies,
    information_slope,
    joint_histogram,
    mutual_information,
)
from neurofoundry.preprocess.resample import Image, Matrix
from neurofoundry.preprocess.template import Template
from tests.support.preprocessing import PARAMS, image_of

RNG = np.random.default_rng(0)


def to_scan(scan: Image, template: Template) -> Matrix:
    brain = find_brain(scan, PARAMS)
    (affine,) = registration.register(
        [brain.intensities()], [brain.centroid()], template.levels, template.centre
    )
    return closest_rigid(affine, template.centre)


def apart(first: Matrix, second: Matrix, template: Template) -> float:
    """Mean distance in mm between where two maps put points of the brain."""
    points = template.centre + RNG.normal(size=(300, 3)) * [28, 35, 28]
    difference = apply_affine(first, points) - apply_affine(second, points)
    return float(np.linalg.norm(difference, axis=1).mean())


def test_the_pose_of_synthetic_heads_is_found_within_two_mm(
    heads: list[Head], template: Template
) -> None:
    errors = [
        apart(to_scan(image_of(scan), template), np.linalg.inv(scan.pose), template)
        for scan in heads
    ]
    assert max(errors) < 2.5
    assert np.mean(errors) < 1.6


@pytest.mark.parametrize("degrees", [25, 90])
def test_a_turned_head_is_found_where_it_was_turned_to(
    heads: list[Head], template: Template, degrees: float
) -> None:
    scan = image_of(heads[0])
    turn = from_matvec(Rotation.from_euler("x", degrees, degrees=True).as_matrix(), [12, -7, 9])
    turned = Image(scan.values, turn @ scan.affine)
    assert apart(to_scan(turned, template), turn @ to_scan(scan, template), template) < 1.5


def test_the_coarsest_registration_ends_where_the_orientation_is_judged(
    heads: list[Head], template: Template
) -> None:
    """registration_spacing 8 leaves no finer level."""
    brain = find_brain(image_of(heads[0]), PARAMS)
    judged = [level for level in template.levels if level.spacing >= registration.CHECKPOINT_MM]
    (affine,) = registration.register(
        [brain.intensities()], [brain.centroid()], judged, template.centre
    )
    rigid = closest_rigid(affine, template.centre)
    assert apart(rigid, np.linalg.inv(heads[0].pose), template) < 4


def test_mutual_information_agrees_with_a_histogram_counted_by_hand() -> None:
    fixed = RNG.random(400)
    moving = np.clip(0.7 * fixed + 0.3 * RNG.random(400), 0, 1)
    counts = np.zeros((BINS, BINS))
    for a, b in zip(fixed, moving, strict=True):
        row = round(a * (BINS - 1))
        column = min(int(b * (BINS - 1)), BINS - 2)
        share = b * (BINS - 1) - column
        counts[row, column] += 1 - share
        counts[row, column + 1] += share
    joint = counts / counts.sum()
    expected = 0.0
    for row in range(BINS):
        for column in range(BINS):
            if joint[row, column] > 0:
                independent = joint[row].sum() * joint[:, column].sum()
                expected += joint[row, column] * np.log(joint[row, column] / independent)
    found = joint_histogram(
        torch.tensor(fixed, dtype=torch.float32), torch.tensor(moving, dtype=torch.float32)[None]
    )
    np.testing.assert_allclose(found[0].numpy(), joint, atol=1e-6)
    np.testing.assert_allclose(float(mutual_information(found)), expected, atol=1e-4)


def test_mutual_information_is_entropy_for_equal_images_and_zero_for_independent_ones() -> None:
    values = torch.linspace(0, 1, BINS).repeat(50)
    joint = joint_histogram(values, values[None])
    np.testing.assert_allclose(float(mutual_information(joint)), np.log(BINS), atol=1e-4)
    independent = torch.full((1, BINS, BINS), BINS**-2)
    assert abs(float(mutual_information(independent))) < 1e-5
    first, second, both = entropies(joint)
    np.testing.assert_allclose([float(first), float(second), float(both)], np.log(BINS), atol=1e-4)


def test_the_slope_of_mutual_information_agrees_with_finite_differences() -> None:
    fixed = torch.tensor(RNG.random(200), dtype=torch.float32)
    # Between the centres of bins: there the shares of a value have a kink.
    places = (RNG.integers(0, BINS - 1, (2, 200)) + RNG.uniform(0.2, 0.8, (2, 200))) / (BINS - 1)
    moving = torch.tensor(places, dtype=torch.float32)
    direction = torch.tensor(RNG.normal(size=(2, 200)), dtype=torch.float32)
    step = 1e-4
    ahead, behind = (
        mutual_information(joint_histogram(fixed, moving + sign * step * direction))
        for sign in (1, -1)
    )
    found = (information_slope(fixed, moving) * direction).sum(dim=1)
    np.testing.assert_allclose(found, (ahead - behind) / (2 * step), rtol=0.05)


def test_the_slope_of_mutual_information_is_that_of_automatic_differentiation() -> None:
    fixed = torch.tensor(RNG.random(300), dtype=torch.float32)
    moving = torch.tensor(RNG.random((2, 300)), dtype=torch.float32, requires_grad=True)
    position = moving * (BINS - 1)
    lower = position.detach().floor()
    row = (fixed * (BINS - 1)).round().long() * BINS
    joint = torch.zeros(2, BINS * BINS)
    for above, share in ((0, lower + 1 - position), (1, position - lower)):
        joint = joint.scatter_add(1, row + lower.long() + above, share / 300)
    mutual_information(joint.unflatten(1, (BINS, BINS))).sum().backward()
    assert moving.grad is not None
    found = information_slope(fixed, moving.detach())
    np.testing.assert_allclose(found, moving.grad, rtol=1e-3, atol=1e-4)


def test_a_batch_of_poses_gives_what_each_pose_gives_alone(
    heads: list[Head], template: Template
) -> None:
    brain = find_brain(image_of(heads[1]), PARAMS)
    intensities = brain.intensities()
    turns = [np.eye(3), Rotation.from_euler("z", 20, degrees=True).as_matrix()]
    starts = registration.initial_poses(brain.centroid(), turns)
    together, fits = registration.optimize_poses([intensities], template.levels[:1], starts[None])
    for number in range(2):
        start = starts[None, [number]]
        alone, fit = registration.optimize_poses([intensities], template.levels[:1], start)
        np.testing.assert_allclose(together[0, number], alone[0, 0], atol=0.05)
        np.testing.assert_allclose(fits[0, number], fit[0, 0], atol=1e-3)


def test_the_closest_rotation_is_the_polar_factor_and_keeps_the_centre() -> None:
    linear = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix() @ (
        np.diag([0.9, 0.8, 1.1]) + 0.05 * RNG.normal(size=(3, 3))
    )
    affine, centre = from_matvec(linear, [10, -20, 30]), np.array([0.0, -22, 9])
    rigid = closest_rigid(affine, centre)
    np.testing.assert_allclose(rigid[:3, :3], linalg.polar(linear)[0], atol=1e-12)
    np.testing.assert_allclose(apply_affine(rigid, centre), apply_affine(affine, centre))
    assert np.linalg.det(rigid[:3, :3]) == pytest.approx(1)


def test_there_are_24_ways_to_turn_by_right_angles() -> None:
    turns = registration.right_angled_rotations()
    assert len({turn.tobytes() for turn in map(np.round, turns)}) == 24
    assert all(np.linalg.det(turn) == pytest.approx(1) for turn in turns)
    assert all((turn @ turn.T == np.eye(3)).all() for turn in turns)


def test_tilts_about_several_axes_stay_near_the_header_and_right_angles_leave_it() -> None:
    tilts = registration.tilts()
    assert len({tilt.tobytes() for tilt in map(np.round, [100 * t for t in tilts])}) == 26
    turned = np.stack([np.column_stack([0.9 * tilt, np.zeros(3)]) for tilt in tilts])
    assert registration.near_header(turned).all()
    right_angled = registration.initial_poses(np.zeros(3), registration.right_angled_rotations())
    assert registration.near_header(right_angled).tolist() == [True] + [False] * 23


def test_a_pose_is_plausible_within_the_bounds_of_quality_control() -> None:
    bounds = PARAMS.quality
    assert bounds.stretch.max is not None
    scales = np.array([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9 * bounds.stretch.max + 0.01], [0.7] * 3])
    turn = Rotation.from_rotvec([2, 1, -1]).as_matrix()
    poses = np.stack([np.column_stack([turn * each, np.zeros(3)]) for each in scales])
    assert registration.plausible(poses).tolist() == [True, False, False]


def test_a_turned_pose_must_fit_far_better_than_the_headers(template: Template) -> None:
    """A brain without features fits as well in every orientation."""
    scan = Image(template.t1.values, template.t1.affine)
    egg = Image((scan.values > 0.1).astype(np.float32) * 0.6, scan.affine)
    centroid = apply_affine(egg.affine, np.argwhere(egg.values > 0).mean(axis=0))
    (affine,), _ = registration.orient(
        [egg], [egg], [centroid], template.levels, template.judged, template.centre
    )
    pose = np.column_stack([affine[:3, :3], np.zeros(3)])[None]
    assert registration.near_header(pose).all()
