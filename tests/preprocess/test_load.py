from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.preprocess.load import UnusableScanError, read_scan, read_with_gaps

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 1000, (40, 50, 30)).astype(np.int16)
AFFINE = np.array([[-4, 0, 0, 80], [0, 0, 4.5, -60], [0, -3, 0, 70], [0, 0, 0, 1.0]])


def save(path: Path, values: np.ndarray = VALUES, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_axes_become_ras_and_every_value_keeps_its_place(tmp_path: Path) -> None:
    image = read_scan(save(tmp_path / "a.nii.gz"))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    for voxel in RNG.integers(0, 30, (50, 3)):
        where = nib.affines.apply_affine(np.linalg.inv(image.affine) @ AFFINE, voxel)
        assert image.values[tuple(np.rint(where).astype(int))] == VALUES[tuple(voxel)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_scaled_values_of_any_type_are_read(tmp_path: Path, dtype: type) -> None:
    image = nib.Nifti1Image((VALUES % 200).astype(dtype), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii").get_fdata()
    assert np.sort(read_scan(tmp_path / "a.nii").values, axis=None) == pytest.approx(
        np.sort(stored, axis=None), abs=1e-4
    )


def test_a_last_axis_of_one_is_no_fault_and_values_that_are_not_numbers_are_background(
    tmp_path: Path,
) -> None:
    values = VALUES[..., None].astype(np.float32)
    values[:5] = np.nan
    image = read_scan(save(tmp_path / "a.nii", values))
    assert image.values.shape == (40, 30, 50)
    assert np.isfinite(image.values).all()


def test_a_voxel_without_an_intensity_gets_that_of_its_neighbour_or_the_darkest_outside(
    tmp_path: Path,
) -> None:
    values = np.broadcast_to(np.arange(100, 140)[:, None, None], VALUES.shape).astype(np.float32)
    odd = values.copy()
    for place, wrong in ((20, np.nan), (21, 1e9), (25, -1e9), (30, np.inf)):
        odd[place, 20, 20] = wrong
    odd[:3, :, 0] = np.nan  # reaches the faces
    odd[39, 49, 29] = np.inf
    image, gaps = read_with_gaps(save(tmp_path / "odd.nii", odd, np.diag([4, 4.0, 4, 1])))
    assert gaps is not None
    assert sorted(np.argwhere(gaps)[:, 0]) == [20, 21, 25, 30]
    assert np.abs(image.values[gaps] - values[gaps]).max() <= 1
    assert (image.values[:3, :, 0] == 100).all()
    assert image.values[39, 49, 29] == 100
    kept = np.isfinite(odd) & (np.abs(odd) < 1e9)
    np.testing.assert_array_equal(image.values[kept], odd[kept])
    assert read_with_gaps(save(tmp_path / "sound.nii"))[1] is None


@pytest.mark.parametrize(
    ("values", "affine", "words"),
    [
        (VALUES[..., None].repeat(3, 3), AFFINE, "not one volume"),
        (VALUES[:, :, 0], AFFINE, "not one volume"),
        (VALUES[:, :, :5], AFFINE, "too few slices"),
        (VALUES, np.diag([0.1, 4, 4, 1]), "implausible voxel size"),
        (VALUES, np.diag([1.0, 4, 4, 1]), "implausible field of view"),
        (VALUES * 0, AFFINE, "empty"),
        (VALUES * np.float32(np.nan), AFFINE, "not finite"),
        (VALUES.astype(np.complex64), AFFINE, "not intensities"),
    ],
)
def test_what_cannot_show_a_head_is_refused_in_words(
    tmp_path: Path, values: np.ndarray, affine: np.ndarray, words: str
) -> None:
    with pytest.raises(UnusableScanError, match=words):
        read_scan(save(tmp_path / "a.nii.gz", values, affine))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_a_file_that_is_cut_short_is_refused_in_words(
    tmp_path: Path, name: str, share: float
) -> None:
    path = save(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnusableScanError, match="cannot be read"):
        read_scan(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", gzip.compress(b"nor this"), b"\x1f\x8b"],
    ids=["empty", "text", "packed text", "torn header"],
)
def test_a_file_that_is_no_image_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UnusableScanError, match="cannot be read"):
        read_scan(tmp_path / "a.nii.gz")
