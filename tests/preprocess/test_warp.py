from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from neurofoundry.contracts.volumes import SLOPE, Grid, open_volume
from neurofoundry.phantom.anatomy import MATERIALS
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess import warp as warps
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.resample import Array, Image, interpolate
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.warp import WINDOW, Warp, exponential, local_correlation, register
from neurofoundry.runtime.files import hash_file
from tests.support.preprocessing import PARAMS, TRANSFORM, VOLUME

SYN = PARAMS.model_copy(update={"registration": "syn"})


def bend(points: Array) -> Array:
    """A smooth displacement of up to 5 mm that comes to rest away from the brain."""
    x, y, z = (points - [0, -20, 10]).T
    fade = np.exp(-((x / 70) ** 2 + (y / 85) ** 2 + (z / 65) ** 2))
    waves = np.stack([np.sin(y / 20), np.cos(z / 22), np.sin(x / 18)], axis=-1)
    return 5 * fade[:, None] * waves


@pytest.fixture(scope="module")
def found(template: Template) -> tuple[Image, Image, Warp]:
    """The template, a copy of it that was bent, and the warp from the one to the other."""
    fixed = template.fine
    voxels = np.argwhere(np.ones(fixed.values.shape))
    points = apply_affine(fixed.affine, voxels)
    t1 = templates.load("t1")
    smooth = Image(ndimage.gaussian_filter(t1.values, 1.5), t1.affine)
    bent = interpolate(smooth, points + bend(points)).reshape(fixed.values.shape)
    moving = Image(bent.clip(0, 1), fixed.affine)
    return fixed, moving, register(fixed, [moving])[0]


def brain_points(fixed: Image) -> Array:
    return apply_affine(fixed.affine, np.argwhere(fixed.values > 0.3))


def test_a_known_warp_is_found(found: tuple[Image, Image, Warp]) -> None:
    fixed, _, warp = found
    points = brain_points(fixed)
    # moving(x) = fixed(x + bend(x)), so the warp to it is the inverse of x + bend(x).
    error = np.linalg.norm(warp(points + bend(points)) - points, axis=1)
    before = np.linalg.norm(bend(points), axis=1)
    assert before.mean() > 2.5
    assert error.mean() < 0.45 * before.mean()


def test_the_warp_folds_nowhere_and_its_inverse_leads_back(
    found: tuple[Image, Image, Warp],
) -> None:
    fixed, _, warp = found
    points = brain_points(fixed)
    there_and_back = np.linalg.norm(warp.back(warp(points)) - points, axis=1)
    assert there_and_back.mean() < 0.1
    low, high = warp.jacobian()
    assert 0 < low < 1 < high


def test_images_that_nothing_sensible_connects_give_no_folds_either() -> None:
    """As a mask that leaked into the neck did: what is in one image has no counterpart."""
    rng = np.random.default_rng(0)
    affine = np.diag([4.0, 4, 4, 1])
    fixed, moving = (
        Image((0.5 + 6 * ndimage.gaussian_filter(rng.normal(size=(32,) * 3), 1.2)), affine)
        for _ in range(2)
    )
    (warp,) = register(fixed, [moving])
    assert np.abs(warp.forward).max() > 1
    low, high = warp.jacobian()
    assert 0 < low < high <= 20


def test_exchanging_the_images_inverts_the_warp(found: tuple[Image, Image, Warp]) -> None:
    fixed, moving, warp = found
    (other,) = register(moving, [fixed])
    points = brain_points(fixed)
    assert np.linalg.norm(other(points) - warp.back(points), axis=1).mean() < 0.05


def test_squaring_gives_where_a_particle_drifts_to() -> None:
    shape = (24, 28, 20)
    rng = np.random.default_rng(0)
    smooth = [ndimage.gaussian_filter(rng.normal(size=shape), 3, mode="constant") for _ in range(3)]
    velocity = np.stack(smooth) * 30  # voxels
    unit = torch.tensor([2 / n for n in shape]).view(1, 3, 1, 1, 1)
    given = torch.from_numpy(velocity.astype(np.float32))[None] * unit
    displacement = (exponential(given, 7) / unit)[0].numpy()
    start = np.argwhere(np.ones((8, 8, 8))) + 7.0
    place = start.copy()
    for _ in range(500):
        place += (
            np.stack(
                [ndimage.map_coordinates(v, place.T, order=1, mode="nearest") for v in velocity],
                axis=1,
            )
            / 500
        )
    ours = displacement[(slice(None), *start.astype(int).T)].T
    assert np.abs(place - start).max() > 1
    np.testing.assert_allclose(ours, place - start, atol=0.05)


def test_local_correlation_agrees_with_cubes_counted_by_hand() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 9, 8, 10))
    half = WINDOW // 2
    values = []
    for i, j, k in np.ndindex(a.shape):
        window = tuple(slice(n, n + WINDOW) for n in (i, j, k))
        first, second = (np.pad(v, half)[window].ravel() for v in (a, b))
        values.append(np.corrcoef(first, second)[0, 1] ** 2)
    tensors = [torch.from_numpy(v)[None, None] for v in (a, b, np.ones_like(a))]
    assert float(local_correlation(*tensors)) == pytest.approx(np.mean(values), abs=2e-3)


def test_the_range_of_the_jacobian_is_that_of_known_fields() -> None:
    affine = from_matvec(np.diag([2.0, 2, 2]), [0, 0, 0])
    places = np.moveaxis(np.indices((6, 7, 8)), 0, -1) * 2.0
    grow = np.array([0.5, -0.2, 0.1])
    field = (places * grow).astype(np.float32)
    expected = float(np.prod(1 + grow))
    assert Warp(field, field, affine).jacobian() == pytest.approx((expected, expected), rel=1e-5)
    assert Warp(field, field, affine).growth(places.reshape(-1, 3)) == pytest.approx(expected)
    field[3, 3, 3, 0] += 9  # beyond its neighbour
    assert Warp(field, field, affine).jacobian()[0] < 0


def test_syn_brings_tissue_nearer_to_the_template_than_affine_does(
    heads: list[Head], head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    white = templates.load("wm")
    grid = PARAMS.grid
    expected = (
        ndimage.map_coordinates(
            ndimage.gaussian_filter(white.values, 1.0),
            apply_affine(
                np.linalg.inv(white.affine) @ grid.affine, np.argwhere(np.ones(grid.shape))
            ).T,
            order=1,
        ).reshape(grid.shape)
        > 0.5
    )
    # The white matter of the phantom, carried through the same steps as its image.
    scan = heads[0]
    tissue = np.where(scan.brain, scan.labels == list(MATERIALS).index("white"), 0)
    dice, ml = {}, {}
    for name, params in (
        ("affine", PARAMS.model_copy(update={"registration": "affine"})),
        ("syn", SYN),
    ):
        out = tmp_path / name
        out.mkdir()
        job = Job(head_files[0], "a", hash_file(head_files[0]), "k")
        result = preprocess_scans([job], out=out, params=params, template=template)[0]
        assert result.reason is None
        moved = _moved_by_itk(Image(tissue.astype(np.float32), scan.affine), out, grid)
        dice[name] = 2 * (moved & expected).sum() / (moved.sum() + expected.sum())
        assert ("jacobian_min" in result.measures) == (name == "syn")
        if name == "syn":
            assert result.measures["jacobian_min"] > 0
        ml[name] = result.measures["mask_ml"]
    assert ml["syn"] == pytest.approx(ml["affine"], rel=0.06)
    assert dice["syn"] > dice["affine"] + 0.03
    volume = open_volume(tmp_path / "syn" / VOLUME, grid)
    assert (volume[volume != 0] * SLOPE).mean() == pytest.approx(0, abs=1e-3)


def _moved_by_itk(image: Image, out: Path, grid: Grid) -> np.ndarray:
    nib.save(nib.Nifti1Image(image.values, image.affine), out / "tissue.nii")
    transforms = [SimpleITK.ReadTransform(str(out / TRANSFORM))]
    warp = out / Layout.of(SYN).warps[0].format("a")
    if warp.exists():
        field = SimpleITK.ReadImage(str(warp), SimpleITK.sitkVectorFloat64)
        transforms.append(SimpleITK.DisplacementFieldTransform(field))
    moved = SimpleITK.Resample(
        SimpleITK.ReadImage(str(out / "tissue.nii")),
        SimpleITK.ReadImage(str(out / VOLUME), SimpleITK.sitkFloat32),
        SimpleITK.CompositeTransform(transforms),
    )
    return SimpleITK.GetArrayFromImage(moved).T > 0.5


def test_images_on_grids_that_cannot_be_halved_are_refused() -> None:
    image = Image(np.zeros((11, 12, 12), np.float32), np.eye(4))
    with pytest.raises(ValueError, match="even numbers"):
        warps.register(image, [image])
