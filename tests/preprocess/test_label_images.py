"""What is outlined on a scan is where it should be on the standard grid, as large as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.labels import (
    CARRIED,
    FILE,
    LABELS,
    classify,
    open_classes,
    read_labels,
)
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import Grid, write_volume
from neurofoundry.errors import DataError
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess.label_images import (
    carry,
    passing,
    read_placement,
    to_grid,
    to_scan,
)
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.placement import Placement
from neurofoundry.preprocess.resample import Image, antialias, resample
from neurofoundry.preprocess.transform import write_affine, write_warp
from neurofoundry.preprocess.warp import Warp
from neurofoundry.runtime import verify
from neurofoundry.runtime.files import hash_file, write_json
from tests.support.preprocessing import PARAMS, TRANSFORM, VOLUME, WriteCohort, image_of

GRID = Grid(spacing=3.0)
TO_SCAN = from_matvec(
    Rotation.from_euler("xyz", [8, -5, 11], degrees=True).as_matrix() * 0.9, [3.0, -7, 5]
)


def ball(affine: NDArray[np.float64], shape: tuple[int, ...], radius: float) -> NDArray[np.uint8]:
    """A ball about a point of the scan, in mm."""
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    inside = np.linalg.norm(places - [10.0, -20, 15], axis=-1) < radius
    return inside.astype(np.uint8)


@pytest.mark.parametrize(("spacing", "axes"), [(1.5, "RAS"), (2.6, "PSL"), (2.6, "LPI")])
def test_a_ball_is_a_ball_of_the_same_size_at_its_place(spacing: float, axes: str) -> None:
    """The oracle is geometry: a ball of the scan is one in MNI space, under rotation and scale."""
    affine = from_matvec(np.eye(3) * spacing, [-70.0, -90, -60])
    shape = tuple(int(150 / spacing) for _ in range(3))
    classes = ball(affine, shape, 22)
    stored = nib.Nifti1Image(classes, affine)
    turned = stored.as_reoriented(nib.orientations.axcodes2ornt(axes))
    on_grid = to_grid(np.asarray(turned.dataobj), turned.affine, Placement(TO_SCAN, TO_SCAN), GRID)
    places = apply_affine(GRID.affine, np.moveaxis(np.indices(GRID.shape), 0, -1))
    centre = apply_affine(np.linalg.inv(TO_SCAN), [10.0, -20, 15])
    expected = np.linalg.norm(places - centre, axis=-1) < 22 / 0.9
    overlap = 2 * (expected & (on_grid == 1)).sum() / (expected.sum() + on_grid.sum())
    assert overlap > 0.97
    assert on_grid.sum() == pytest.approx(expected.sum(), rel=0.03)


@pytest.mark.parametrize(("radius", "within"), [(3, 0.15), (5, 0.1), (12, 0.02)])
def test_small_balls_keep_their_volume_where_smoothing_would_shrink_them(
    radius: float, within: float
) -> None:
    affine = from_matvec(np.eye(3), [-40.0, -70, -35])
    classes = ball(affine, (100, 100, 100), radius)
    random = np.random.default_rng(0)
    kept, smoothed = [], []
    for _ in range(12):
        turn = Rotation.random(random_state=random).as_matrix()
        to_scan = from_matvec(turn, random.uniform(-5, 5, 3))
        on_grid = to_grid(classes, affine, Placement(to_scan, to_scan), GRID)
        kept.append(on_grid.sum() * 27 / classes.sum())
        image = antialias(Image(classes.astype(np.float32), affine), GRID.spacing)
        share = resample(image, GRID.affine, GRID.shape, transform=to_scan).values
        smoothed.append((share > 0.5).sum() * 27 / classes.sum())
    assert np.mean(kept) == pytest.approx(1, abs=within)
    assert np.mean(smoothed) < np.mean(kept)


def test_of_two_classes_each_keeps_its_place() -> None:
    affine = from_matvec(np.eye(3) * 2.0, [-70.0, -90, -60])
    classes = ball(affine, (75, 75, 75), 24)
    classes[ball(affine, (75, 75, 75), 12) == 1] = 2
    on_grid = to_grid(classes, affine, Placement(TO_SCAN, TO_SCAN), GRID)
    voxel = 27 * 0.9**3
    volumes = np.bincount(classes.ravel())[1:] * 8, np.bincount(on_grid.ravel())[1:] * voxel
    np.testing.assert_allclose(volumes[1], volumes[0], rtol=0.05)
    assert set(np.unique(on_grid)) == {0, 1, 2}


def shares_of(classes: NDArray[np.uint8], count: int = 1) -> NDArray[np.float32]:
    """The shares of a network that is sure of its classes."""
    return np.stack([classes == number for number in range(count + 1)]).astype(np.float32)


@pytest.mark.parametrize(("edges", "axes"), [((0.9, 1.0, 1.1), "RAS"), ((1.2, 1.4, 5.0), "PIR")])
def test_what_was_carried_to_the_grid_comes_back_to_its_place(
    edges: tuple[float, ...], axes: str
) -> None:
    """An oblique scan; anisotropic and with turned axes; more than one slab, in finer voxels."""
    turn = Rotation.from_euler("xyz", [20, -15, 10], degrees=True).as_matrix()
    shape = tuple(int(140 / edge) for edge in edges)
    affine = from_matvec(turn * edges, [10.0, -20, 15] - turn @ np.full(3, 66.0))
    stored = nib.Nifti1Image(ball(affine, shape, 28), affine)
    turned = stored.as_reoriented(nib.orientations.axcodes2ornt(axes, ("LR", "PA", "IS")))
    classes = np.asarray(turned.dataobj)
    placement = Placement(TO_SCAN, TO_SCAN)
    on_grid = to_grid(classes, turned.affine, placement, GRID)
    back = to_scan(shares_of(on_grid), placement, GRID, turned.affine, turned.shape)
    assert back.shape == classes.shape
    assert 2 * (back & classes).sum() / (back.sum() + classes.sum()) > 0.96
    assert back.sum() == pytest.approx(classes.sum(), rel=0.02)


def test_a_voxel_of_the_scan_gets_the_largest_share_between_eight_of_the_grid() -> None:
    """The oracle is a loop over the corners."""
    random = np.random.default_rng(0)
    shares = np.zeros((3, *GRID.shape), np.float32)
    shares[0] = 1
    lump = (slice(None), slice(30, 34), slice(30, 34), slice(20, 24))
    shares[lump] = random.dirichlet([1.0, 1.0, 1.0], (4, 4, 4)).transpose(3, 0, 1, 2)
    affine = from_matvec(np.eye(3) * 2.3, [-20.0, -30, -25])
    found = to_scan(shares, Placement(TO_SCAN, TO_SCAN), GRID, affine, (20, 20, 20))
    onto = np.linalg.inv(GRID.affine) @ np.linalg.inv(TO_SCAN) @ affine
    expected = np.zeros((20, 20, 20), np.uint8)
    for voxel in np.ndindex(expected.shape):
        place = apply_affine(onto, voxel)
        base = np.floor(place).astype(int)
        share = np.zeros(3)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(1 - np.abs(place - base - corner))
            share += weight * shares[(slice(None), *(base + corner))]
        expected[voxel] = share.argmax()
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(found, expected)


def test_nothing_that_is_found_and_nothing_in_view_give_an_empty_mask() -> None:
    everywhere = Placement(np.eye(4), np.eye(4))
    beside = from_matvec(np.eye(3), [500.0, 0, 0])
    nothing, all_of_it = np.zeros((2, *GRID.shape), np.uint8)
    all_of_it[:] = 1
    for classes, affine in ((nothing, np.eye(4)), (all_of_it, beside)):
        assert not to_scan(shares_of(classes), everywhere, GRID, affine, (8, 9, 10)).any()


def test_values_are_the_classes_that_ingest_has_found() -> None:
    voxels = np.array([0, 4, 43, 9.9999, 7])
    assert classify(voxels, "4,43;10").tolist() == [0, 1, 1, 2, 0]
    assert classify(np.zeros(3, np.uint8), "").tolist() == [0, 0, 0]


@pytest.fixture
def cohort(
    heads: list[Head], head_files: list[Path], write_cohort: WriteCohort, tmp_path: Path
) -> Path:
    """Three scans with masks of their ventricles, the third of an image that stands in."""
    folder = write_cohort(dict(zip("abc", head_files, strict=False)))
    rows = []
    for name, head in zip("abc", heads, strict=False):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(head.ventricle.astype(np.uint8), head.affine), path)
        ml = head.ventricle.sum() * 0.027
        where = str(path.relative_to("/"))
        rows.append(("ventricles", name, where, hash_file(path), "1", "ventricles", ml))
    table = pd.DataFrame(rows, columns=list(LABELS.columns))
    write_table(table, folder / "labels.tsv", LABELS)
    return folder


Carry = Callable[[], tuple[pd.DataFrame, pd.DataFrame]]


@pytest.fixture
def carried(cohort: Path, heads: list[Head], tmp_path: Path) -> Carry:
    """Return scans.tsv and labels.tsv of the volumes, in which the first scan has its true pose."""
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    to_scan = np.linalg.inv(heads[0].pose)
    write_affine(volumes / TRANSFORM, to_scan)
    brain = Image(heads[0].brain.astype(np.float32), heads[0].affine)
    inside = resample(brain, GRID.affine, GRID.shape, transform=to_scan).values > 0.5
    write_volume(volumes / VOLUME, inside.astype(np.float32), inside, GRID)
    scans = read_table(cohort / "scans.tsv", SCANS).assign(ventricles="ventricles")
    scans["volume"] = pd.Series([VOLUME, None, VOLUME], dtype=object)
    scans["volume_sha256"] = pd.Series(["0" * 64, None, "0" * 64], dtype=object)
    scans.loc[2, "sha256"] = "0" * 64

    def carry_them() -> tuple[pd.DataFrame, pd.DataFrame]:
        table = carry(scans, volumes, data=Path("/"), cohort=cohort, params=PARAMS, workers=2)
        return table, read_labels(volumes, CARRIED).set_index("scan_id")

    return carry_them


def test_ventricles_lie_where_the_scan_is_dark(
    carried: Carry, heads: list[Head], tmp_path: Path
) -> None:
    table, labels = carried()
    path = tmp_path / "volumes" / FILE.format(scan_id="a", task="ventricles")
    classes = open_classes(path, PARAMS.grid).transpose(2, 1, 0)
    scan = resample(
        image_of(heads[0]), GRID.affine, GRID.shape, transform=np.linalg.inv(heads[0].pose)
    ).values
    inside = ndimage.binary_erosion(classes == 1)
    around = ndimage.binary_dilation(classes == 1, iterations=4) & (classes == 0)
    assert inside.sum() > 20
    assert np.median(scan[inside]) < 0.6 * np.median(scan[around])
    assert labels["grid_ml"]["a"] == pytest.approx(labels["ml"]["a"], rel=0.1)
    assert table["ventricles"].fillna("n/a").tolist() == ["ventricles", "n/a", "n/a"]
    assert labels["reason"].fillna("").tolist() == [
        "",
        "the scan has no volume",
        "another image of the session stands in for the one that was labelled",
    ]


def test_verify_knows_every_label_image(carried: Carry, tmp_path: Path) -> None:
    carried()
    volumes = tmp_path / "volumes"
    write_json(volumes / "stage.json", {"stage": "preprocess", "contents": {}})
    assert list(verify.recorded_items(volumes)) == ["a.label-ventricles.nii"]
    assert not verify.item_differences(volumes)
    path = volumes / "a.label-ventricles.nii"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert len(verify.item_differences(volumes)) == 1


@pytest.mark.parametrize("wrong", ["inverted", "beside", "at the end of the scan"])
def test_what_lies_beside_the_brain_is_not_carried(
    carried: Carry, cohort: Path, heads: list[Head], tmp_path: Path, wrong: str
) -> None:
    head = heads[0]
    far = np.zeros_like(head.brain)
    far[:, :, -1] = True  # beyond the grid, too
    around = ndimage.binary_dilation(head.brain, iterations=6)
    beside = around & ~ndimage.binary_dilation(head.brain, iterations=3)
    classes = {"inverted": ~head.ventricle, "beside": beside}.get(wrong, far)
    replace_label(cohort, tmp_path / "a.nii.gz", classes, head.affine)
    table, labels = carried()
    assert "% of what it outlines lies outside the brain mask" in labels["reason"]["a"]
    assert not (tmp_path / "volumes" / FILE.format(scan_id="a", task="ventricles")).exists()
    assert table["ventricles"].isna().all()
    assert passing(tmp_path / "volumes") == 0


def test_a_small_lesion_at_the_surface_is_carried(
    carried: Carry, cohort: Path, heads: list[Head], tmp_path: Path
) -> None:
    head = heads[0]
    edge = np.argwhere(head.brain & ~ndimage.binary_erosion(head.brain))
    top = edge[edge[:, 2].argmax()]
    lesion = np.zeros_like(head.brain)
    lesion[tuple(slice(each - 1, each + 2) for each in top)] = True
    replace_label(cohort, tmp_path / "a.nii.gz", lesion, head.affine)
    table, labels = carried()
    assert labels["reason"].isna()["a"]
    assert labels["grid_ml"]["a"] > 0
    assert table["ventricles"].notna().iloc[0]


def replace_label(
    cohort: Path, path: Path, classes: NDArray[np.bool_], affine: NDArray[np.float64]
) -> None:
    """Write another label image of the first scan, as ingest would have found it."""
    nib.save(nib.Nifti1Image(classes.astype(np.uint8), affine), path)
    table = read_labels(cohort, LABELS)
    table.loc[0, "sha256"] = hash_file(path)
    write_table(table, cohort / "labels.tsv", LABELS)


def test_a_label_image_that_changed_since_ingest_is_not_carried(
    carried: Carry, tmp_path: Path
) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    table, labels = carried()
    assert "has changed since ingest" in labels["reason"]["a"]
    assert table["ventricles"].isna().all()
    assert passing(tmp_path / "volumes") == 1


def test_a_warp_that_was_stored_carries_as_it_did(tmp_path: Path) -> None:
    """Under displacements of 4 mm to the right, what is outlined moves by 4 mm to the left."""
    affine = from_matvec(np.eye(3) * 6.0, [-120.0, -150, -100])
    field = np.zeros((40, 42, 34, 3), np.float32)
    field[..., 0] = 6.0
    syn = PARAMS.model_copy(update={"registration": "syn"})
    layout = Layout.of(syn)
    write_affine(tmp_path / layout.transform.format("a"), np.eye(4))
    forward, inverse = (tmp_path / name.format("a") for name in layout.warps)
    write_warp(forward, inverse, Warp(field, -field, affine))
    placement = read_placement(tmp_path, "a", syn)
    of_scan = from_matvec(np.eye(3) * 2.0, [-70.0, -90, -60])
    classes = ball(of_scan, (75, 75, 75), 20)
    moved = to_grid(classes, of_scan, placement, GRID)
    still = to_grid(classes, of_scan, Placement(np.eye(4), np.eye(4)), GRID)
    np.testing.assert_array_equal(moved[:-2], still[2:])
    back = to_scan(shares_of(moved), placement, GRID, of_scan, (75, 75, 75))
    assert 2 * (back & classes).sum() / (back.sum() + classes.sum()) > 0.94


def test_a_file_that_is_no_label_image_of_the_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.label-x.nii"
    for content in (b"", nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.label-x\.nii: cannot be read"):
            open_classes(path, GRID)
