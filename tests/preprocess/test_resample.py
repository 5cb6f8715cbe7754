from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess.resample import Image, antialias, coarsen, interpolate, resample

RNG = np.random.default_rng(0)
AFFINE = from_matvec(
    Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() * 2, [5, -3, 8]
)


def bump(points: np.ndarray) -> np.ndarray:
    return np.exp(-((points - [15, 10, 20]) ** 2).sum(axis=-1) / (2 * 12**2))


def image_of_bump(affine: np.ndarray, shape: tuple[int, int, int]) -> Image:
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    return Image(bump(apply_affine(affine, voxels)).astype(np.float32), affine)


def test_resampling_agrees_with_scipy_at_every_voxel() -> None:
    image = Image(RNG.random((20, 24, 18), dtype=np.float32), AFFINE)
    grid = from_matvec(np.diag([1.7, 1.7, 1.7]), [-10, -12, 4])
    turn = from_matvec(Rotation.from_rotvec([0.1, 0.2, -0.1]).as_matrix(), [2, 1, -3])
    onto = np.linalg.inv(AFFINE) @ turn @ grid
    expected = ndimage.affine_transform(
        image.values, onto, output_shape=(22, 20, 25), order=1, cval=-1
    )
    found = resample(image, grid, (22, 20, 25), transform=turn, outside=-1)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert (found.values == -1).any()
    assert (found.values >= 0).any()


def test_interpolation_agrees_with_the_spline_of_the_whole_image() -> None:
    image = Image(RNG.random((60, 64, 58), dtype=np.float32), AFFINE)
    points = apply_affine(AFFINE, RNG.uniform(25, 35, (500, 3)))
    expected = ndimage.map_coordinates(
        image.values, apply_affine(np.linalg.inv(AFFINE), points).T, order=3, mode="mirror"
    )
    np.testing.assert_allclose(interpolate(image, points), expected, atol=1e-5)


def test_interpolation_finds_a_smooth_function_between_voxels() -> None:
    image = image_of_bump(AFFINE, (30, 30, 30))
    points = apply_affine(AFFINE, RNG.uniform(5, 24, (500, 3)))
    np.testing.assert_allclose(interpolate(image, points), bump(points), atol=1e-3)


def test_antialiasing_leaves_a_coarse_image_alone_and_widens_a_fine_one_as_predicted() -> None:
    coarse = image_of_bump(np.diag([3.0, 3, 3, 1]), (12, 12, 12))
    np.testing.assert_array_equal(antialias(coarse, 3.0).values, coarse.values)
    impulse = np.zeros((41, 41, 41), np.float32)
    impulse[20, 20, 20] = 1
    blurred = antialias(Image(impulse, np.eye(4)), 4.0).values
    assert blurred.sum() == np.float32(blurred.sum())
    offsets = np.arange(41) - 20
    variance = (blurred.sum(axis=(1, 2)) * offsets**2).sum() / blurred.sum()
    # A kernel cut at three standard deviations keeps 97 % of its variance.
    np.testing.assert_allclose(variance, (4**2 - 1**2) / (8 * np.log(2)), rtol=0.04)


@pytest.mark.parametrize("spacing", [1.0, 2.5, 7.0])
def test_coarsening_along_the_axes_is_a_blur_and_an_interpolation(spacing: float) -> None:
    affine = from_matvec(np.diag([1.1, 0.8, 3.0]), [-20, 11, 7])
    image = Image(RNG.random((30, 41, 12), dtype=np.float32) + 4, affine)
    found = coarsen(image, spacing, outside=3.0)
    expected = resample(
        antialias(image, spacing), found.affine, found.values.shape, outside=3.0
    ).values
    np.testing.assert_allclose(found.values, expected, atol=1e-4)


def test_downsampling_does_not_alias() -> None:
    stripes = np.zeros((60, 60, 60), np.float32)
    stripes[::2] = 1
    coarse = coarsen(Image(stripes, np.eye(4)), 5.0).values[2:-2, 2:-2, 2:-2]
    assert coarse.std() < 0.02
    assert abs(coarse.mean() - 0.5) < 0.01


def test_the_cubic_grid_holds_every_voxel_of_a_tilted_image() -> None:
    image = Image(np.zeros((20, 24, 18), np.float32), AFFINE)
    affine, shape = image.cubic_grid(2.5)
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in image.values.shape])).reshape(3, -1).T
    where = apply_affine(np.linalg.inv(affine) @ AFFINE, faces)
    assert (where >= -0.5 - 1e-6).all()
    assert (where <= np.array(shape) - 0.5 + 1e-6).all()


def test_a_header_that_turns_a_scan_changes_nothing_of_its_coarse_voxels() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((24, 20, 18)).astype(np.float32)
    straight = Image(values, from_matvec(np.diag([1.5, 2, 2.5]), [3, -4, 5]))
    turn = from_matvec(
        Rotation.from_euler("xyz", [20, -25, 30], degrees=True).as_matrix(), [1, 2, 3]
    )
    expected = coarsen(straight, 4.0)
    found = coarsen(Image(values, turn @ straight.affine), 4.0)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
    np.testing.assert_allclose(found.affine, turn @ expected.affine, atol=1e-6)
