from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from neurofoundry.contracts.volumes import SLOPE, open_volume
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.scan import Alternate, Job, Result, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.transform import read_affine
from neurofoundry.runtime.files import hash_file
from tests.support.preprocessing import PARAMS, PICTURE, RESULT, TRANSFORM, VOLUME, preprocess_one


def test_a_scan_becomes_a_volume_of_zscores_with_its_mask(
    head_files: list[Path], heads: list[Head], template: Template, tmp_path: Path
) -> None:
    result = preprocess_one(head_files[0], tmp_path, template)
    assert result.reason is None
    record = json.loads((tmp_path / RESULT).read_text())
    assert {**record, "further": {}} == asdict(result)  # further contrasts: there are none
    assert result.volume_sha256 == hash_file(tmp_path / VOLUME)
    steps = open_volume(tmp_path / VOLUME, PARAMS.grid)
    inside = steps[steps != 0] * SLOPE
    assert inside.mean() == pytest.approx(0, abs=1e-3)
    assert inside.std() == pytest.approx(1, abs=1e-3)
    # Where the head really is: the true brain, carried over by the true pose.
    voxels = np.argwhere(steps.T != 0)
    at = apply_affine(
        np.linalg.inv(heads[0].affine) @ np.linalg.inv(heads[0].pose) @ PARAMS.grid.affine, voxels
    )
    index = np.rint(at).astype(int).clip(0, np.array(heads[0].brain.shape) - 1)
    common = heads[0].brain[tuple(index.T)].sum() * PARAMS.grid.spacing**3
    sizes = len(voxels) * PARAMS.grid.spacing**3 + heads[0].brain.sum() * 27.0
    assert 2 * common / sizes > 0.93


def test_the_transform_is_what_itk_needs_to_repeat_the_resampling(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    preprocess_one(head_files[1], tmp_path, template)
    volume = SimpleITK.ReadImage(str(tmp_path / VOLUME), SimpleITK.sitkFloat32)
    moved = SimpleITK.Resample(
        SimpleITK.ReadImage(str(head_files[1]), SimpleITK.sitkFloat32),
        volume,
        SimpleITK.ReadTransform(str(tmp_path / TRANSFORM)),
        SimpleITK.sitkBSpline,
    )
    ours, theirs = SimpleITK.GetArrayFromImage(volume), SimpleITK.GetArrayFromImage(moved)
    inside = ours != 0
    theirs = (theirs[inside] - theirs[inside].mean()) / theirs[inside].std()
    np.testing.assert_allclose(ours[inside], theirs, atol=0.02)


def test_voxels_without_an_intensity_may_hide_bone_and_no_brain(
    head_files: list[Path], heads: list[Head], template: Template, tmp_path: Path
) -> None:
    image = nib.load(head_files[0])
    middle = np.rint(np.argwhere(heads[0].brain).mean(axis=0)).astype(int)
    bright = np.argwhere(np.asarray(image.dataobj) > 0)
    scalp = bright[bright[:, 2].argmax()]
    for name, (x, y, z), reason in (
        ("brain", np.add(middle, [9, 0, 6]), "NaN, infinite or wild values: they hide"),
        ("scalp", scalp, None),
    ):
        values = np.asarray(image.dataobj).astype(np.float32)
        values[x - 2 : x + 2, y - 2 : y + 2, z - 2 : z + 2] = np.nan
        nib.save(nib.Nifti1Image(values, image.affine), tmp_path / f"{name}.nii")
        result = preprocess_one(tmp_path / f"{name}.nii", tmp_path / name, template)
        assert (result.reason or "").startswith(reason or "")
        assert bool(result.reason) == bool(reason)


def test_the_order_and_direction_of_stored_axes_make_no_difference(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    image = nib.load(head_files[2])
    expected = preprocess_one(head_files[2], tmp_path / "stored", template)
    for codes in ("LPS", "SAL", "PIR"):
        change = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(tuple(codes)))
        turned = nib.Nifti1Image(
            apply_orientation(np.asarray(image.dataobj), change),
            image.affine @ inv_ornt_aff(change, image.shape),
        )
        nib.save(turned, tmp_path / f"{codes}.nii.gz")
        assert nib.aff2axcodes(turned.affine) == tuple(codes)
        found = preprocess_one(tmp_path / f"{codes}.nii.gz", tmp_path / codes, template)
        first, second = (
            open_volume(tmp_path / folder / VOLUME, PARAMS.grid).astype(float) * SLOPE
            for folder in ("stored", codes)
        )
        assert np.abs(first - second).mean() < 1e-3
        assert found.measures == pytest.approx(expected.measures, rel=1e-2, abs=1e-2)


def test_rigid_registration_keeps_the_size_of_the_brain_and_affine_fits_the_template(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    params = {"rigid": PARAMS, "affine": PARAMS.model_copy(update={"registration": "affine"})}
    determinants = {}
    for name, chosen in params.items():
        result = preprocess_one(head_files[3], tmp_path / name, template, chosen)
        to_scan = read_affine(tmp_path / name / TRANSFORM)
        determinants[name] = np.linalg.det(to_scan[:3, :3])
        volume = open_volume(tmp_path / name / VOLUME, PARAMS.grid)
        native_ml = (volume != 0).sum() * 0.027 * determinants[name]
        assert result.measures["mask_ml"] == pytest.approx(native_ml, rel=1e-3)
    assert determinants["rigid"] == pytest.approx(1)
    assert 0.5 < determinants["affine"] < 0.95


def test_n4_leaves_less_shading_in_the_volume(
    heads: list[Head], template: Template, tmp_path: Path
) -> None:
    scan = heads[1]
    slope = np.exp(0.4 * np.linspace(-1, 1, scan.image.shape[0]))[:, None, None]
    path = tmp_path / "shaded.nii.gz"
    nib.save(nib.Nifti1Image((scan.image * slope).astype(np.int16), scan.affine), path)
    found = {
        name: preprocess_one(
            path, tmp_path / name, template, PARAMS.model_copy(update={"bias_correction": name})
        )
        for name in ("none", "n4")
    }
    assert found["none"].measures["bias"] > 0.1
    assert found["n4"].measures["bias"] < 0.5 * found["none"].measures["bias"]
    # In the volume itself, too: the right half of the brain is as bright as the left.
    sides = {}
    for name in found:
        steps = open_volume(tmp_path / name / VOLUME, PARAMS.grid).astype(float)
        halves = steps[:, :, :32], steps[:, :, 32:]
        sides[name] = abs(np.subtract(*(half[half != 0].mean() for half in halves))) * SLOPE
    assert sides["n4"] < 0.4 * sides["none"]


@pytest.mark.parametrize("normalization", ["whitestripe", "nyul"])
def test_a_normalization_changes_the_scale_and_not_the_order_of_intensities(
    head_files: list[Path], template: Template, tmp_path: Path, normalization: str
) -> None:
    standard = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.2, 0.5, 0.7, 0.9, 1.2, 1.6]
    params = PARAMS.model_copy(update={"normalization": normalization})
    volumes = []
    for chosen in (PARAMS, params):
        preprocess_scans(
            [Job(head_files[0], "a", hash_file(head_files[0]), "k")],
            out=tmp_path,
            params=chosen,
            template=template,
            standard=standard,
        )
        volumes.append(np.array(open_volume(tmp_path / VOLUME, PARAMS.grid), float) * SLOPE)
    before, after = volumes
    inside = before != 0
    np.testing.assert_array_equal(inside, after != 0)
    order = np.argsort(before[inside], kind="stable")
    assert np.diff(after[inside][order]).min() > -8 * SLOPE
    assert np.abs(after[inside] - before[inside]).mean() > 0.05
    if normalization == "nyul":
        np.testing.assert_allclose(np.median(after[inside]), standard[5], atol=0.15)


def test_a_result_without_volume_leaves_no_file_of_an_earlier_one(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    preprocess_one(head_files[0], tmp_path / "out", template)
    noise = np.random.default_rng(0).random((60, 60, 60), dtype=np.float32)
    nib.save(nib.Nifti1Image(np.zeros_like(noise), np.diag([3.0, 3, 3, 1])), tmp_path / "b.nii")
    result = preprocess_one(tmp_path / "b.nii", tmp_path / "out", template)
    assert result.reason == "empty: every value is 0"
    assert [file.name for file in (tmp_path / "out").iterdir()] == [RESULT]


def test_a_file_that_changed_or_left_is_reported_and_not_remembered(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    for path, words in ((head_files[0], "changed since ingest"), (tmp_path / "no", "is gone")):
        job = Job(path, "a", "0" * 64, "k")
        result = preprocess_scans([job], out=tmp_path, params=PARAMS, template=template)[0]
        assert words in (result.reason or "")
        assert not (tmp_path / RESULT).exists()


def test_the_first_usable_image_of_a_session_stands_in(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    good, other = head_files[:2]
    moved, empty = tmp_path / "moved.nii", tmp_path / "empty.nii"
    image = nib.load(good)
    values = image.get_fdata()
    nib.save(nib.Nifti1Image(values[::-1, :, ::-1].copy(), image.affine), moved)
    nib.save(nib.Nifti1Image(np.zeros_like(values), image.affine), empty)

    def result(*paths: Path, folder: str) -> Result:
        out = tmp_path / folder
        out.mkdir()
        alternates = tuple(Alternate(path, hash_file(path)) for path in paths[1:])
        job = Job(paths[0], "a", hash_file(paths[0]), "k", alternates)
        made = preprocess_scans([job], out=out, params=PARAMS, template=template)[0]
        assert Result(**json.loads((out / RESULT).read_text())) == made
        assert made.key == "k"
        return made

    assert result(good, other, folder="good").sha256 == hash_file(good)
    stood_in = result(moved, empty, other, good, folder="third")
    assert stood_in.sha256 == hash_file(other)
    # The files are those of the image alone.
    alone = preprocess_one(other, tmp_path / "alone", template)
    assert stood_in.volume_sha256 == alone.volume_sha256
    for name in (VOLUME, PICTURE, TRANSFORM):
        assert (tmp_path / "third" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    # Where none is usable, the scan's own image is what people look at.
    none = result(moved, empty, folder="none")
    assert none.sha256 == hash_file(moved)
    assert judge(none.measures, PARAMS.quality)
    assert (tmp_path / "none" / PICTURE).exists()


def test_no_image_stands_in_for_good_while_one_is_not_what_ingest_saw(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    good = Alternate(head_files[0], hash_file(head_files[0]))
    gone = Alternate(tmp_path / "gone.nii", "0" * 64)

    def made(first: Alternate, *others: Alternate) -> Result:
        job = Job(first.path, "a", first.sha256, "k", others)
        return preprocess_scans([job], out=tmp_path, params=PARAMS, template=template)[0]

    assert "is gone" in (made(gone, good).reason or "")
    assert not (tmp_path / RESULT).exists()
    empty = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40)), np.diag([4.0, 4, 4, 1])), empty)
    assert made(Alternate(empty, hash_file(empty)), gone, good).sha256 == good.sha256
    # Not under its key: when the file is back, the scan is done again.
    assert json.loads((tmp_path / RESULT).read_text())["key"] != "k"


def test_real_heads_pass_and_a_flair_does_not(
    real_mri: Path, template: Template, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(real_mri.rglob("*.nii.gz"))):
        result = preprocess_one(path, tmp_path / str(number), template)
        if "FLAIR" in path.name:
            assert "brighter than white" in (judge(result.measures, PARAMS.quality) or "")
        else:
            assert judge(result.measures, PARAMS.quality) is None
            assert result.measures["local_correlation"] > 0.5


@pytest.mark.parametrize("person", ["sub-06", "sub-13", "sub-20"])
def test_old_heads_pass_and_their_flairs_do_not(
    person: str, real_heads: Path, tmp_path: Path
) -> None:
    anat = real_heads / "nichart" / person / "anat"
    usual = PreprocessParams(grid=PARAMS.grid)
    fine = templates.build(usual.registration_spacing)
    t1w = preprocess_one(anat / f"{person}_T1w.nii.gz", tmp_path / "t1w", fine, usual)
    assert judge(t1w.measures, PARAMS.quality) is None
    # Not where the bound lies: a third of what it allows is left on either side.
    assert t1w.measures["brighter_grey"] < 0.07
    flair = preprocess_one(anat / f"{person}_FLAIR.nii.gz", tmp_path / "flair", fine, usual)
    assert flair.measures["brighter_grey"] > 0.13
    assert "brighter than white" in (judge(flair.measures, PARAMS.quality) or "")


def test_syn_of_an_old_head_folds_nowhere(
    real_heads: Path, template: Template, tmp_path: Path
) -> None:
    """By the fields on the disk. The Jacobian of this head once had -2.5 to 53."""
    params = PARAMS.model_copy(update={"registration": "syn"})
    path = real_heads / "nichart" / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    result = preprocess_one(path, tmp_path, template, params)
    assert judge(result.measures, params.quality) is None
    for name in Layout.of(params).warps:
        image: Any = nib.load(tmp_path / name.format("a"))
        moved = np.asarray(image.dataobj)[..., 0, :] * [-1, -1, 1]  # from LPS
        slopes = np.gradient(moved, image.affine[0, 0], axis=(0, 1, 2))
        factors = np.linalg.det(np.eye(3) + np.stack(slopes, axis=-1))
        assert factors.std() > 0.05
        assert factors.min() > 0
    assert 0 < result.measures["jacobian_min"] < 1 < result.measures["jacobian_max"] < 20
