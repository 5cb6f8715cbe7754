"""Transforms are read back by ITK alone and move points as ours do."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from neurofoundry.preprocess.resample import Array
from neurofoundry.preprocess.transform import read_affine, read_warp, write_affine, write_warp
from neurofoundry.preprocess.warp import Warp

POINTS = np.random.default_rng(0).uniform([-50, -80, -30], [50, 40, 60], (50, 3))
TO_LPS = np.array([-1.0, -1, 1])
"""mm as NIfTI counts them to mm as ITK does."""
AFFINE = from_matvec(
    Rotation.from_euler("xyz", [12, -31, 7], degrees=True).as_matrix() @ np.diag([0.9, 1 / 3, 1.1]),
    [np.pi, -40.7, 1e-3],
)


def moved_by_itk(transform: SimpleITK.Transform) -> Array:
    return np.array([transform.TransformPoint((p * TO_LPS).tolist()) * TO_LPS for p in POINTS])


@pytest.fixture
def warp() -> Warp:
    """Displacements of up to 4 mm that come to rest at the edge of the grid."""
    shape, affine = (60, 70, 56), from_matvec(np.diag([2.0, 2, 2]), [-60, -95, -45])
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))
    fade = np.exp(-(((places - [0, -20, 10]) / [30, 35, 28]) ** 2).sum(axis=1))
    waves = np.stack([np.sin(places[:, 1] / 20), np.cos(places[:, 2] / 22), places[:, 0] / 60], 1)
    field = (4 * fade[:, None] * waves).reshape(*shape, 3).astype(np.float32)
    return Warp(field, -0.5 * field, affine)


def test_an_affine_map_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "scan.1_to-mni.txt"
    write_affine(path, AFFINE)
    transform = SimpleITK.ReadTransform(str(path))
    np.testing.assert_allclose(moved_by_itk(transform), apply_affine(AFFINE, POINTS), rtol=1e-13)
    np.testing.assert_array_equal(read_affine(path), AFFINE)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_warp_and_its_inverse_move_points_as_ours_do(tmp_path: Path, warp: Warp) -> None:
    forward, inverse = tmp_path / "a_warp.nii.gz", tmp_path / "a_inverse-warp.nii.gz"
    write_warp(forward, inverse, warp)
    for path, expected in ((forward, warp(POINTS)), (inverse, warp.back(POINTS))):
        image = SimpleITK.ReadImage(str(path), SimpleITK.sitkVectorFloat64)
        field = SimpleITK.DisplacementFieldTransform(image)
        np.testing.assert_allclose(moved_by_itk(field), expected, atol=1e-5)
        assert np.abs(expected - POINTS).max() > 1
    again = read_warp(forward, inverse)
    np.testing.assert_array_equal(again(POINTS), warp(POINTS))
    np.testing.assert_array_equal(again.back(POINTS), warp.back(POINTS))
    header = nib.load(forward).header
    assert header.get_intent()[0] == "vector"
    assert header.get_value_label("sform_code") == "mni"


def test_a_warp_goes_before_the_affine_map(tmp_path: Path, warp: Warp) -> None:
    names = [tmp_path / name for name in ("w.nii.gz", "i.nii.gz", "a.txt")]
    write_warp(names[0], names[1], warp)
    write_affine(names[2], AFFINE)
    image = SimpleITK.ReadImage(str(names[0]), SimpleITK.sitkVectorFloat64)
    chain = [SimpleITK.ReadTransform(str(names[2])), SimpleITK.DisplacementFieldTransform(image)]
    moved = moved_by_itk(SimpleITK.CompositeTransform(chain))
    np.testing.assert_allclose(moved, apply_affine(AFFINE, warp(POINTS)), atol=1e-5)


def test_the_files_of_a_transform_are_the_same_bytes_in_every_run(
    tmp_path: Path, warp: Warp
) -> None:
    contents = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        write_affine(folder / "a.txt", AFFINE)
        write_warp(folder / "w.nii.gz", folder / "i.nii.gz", warp)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"a.txt", "w.nii.gz", "i.nii.gz"}
    assert contents[0]["w.nii.gz"][4:8] == bytes(4)  # gzip would note the time here
