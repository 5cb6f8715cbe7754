from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import (
    SLOPE,
    VOLUMES,
    Grid,
    VolumeFolder,
    Volumes,
    VolumesRecord,
    open_volume,
    write_record,
    write_volume,
)
from neurofoundry.errors import DataError
from neurofoundry.nn.batches import read_batch
from tests.support.scans import scans

GRID = Grid(spacing=6)


def head(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.zeros(GRID.shape, bool)
    mask[8:24, 8:24, 6:20] = True
    return generator.normal(size=GRID.shape), mask


def test_the_grid_at_1_mm_is_the_published_one() -> None:
    grid = Grid(spacing=1)
    assert grid.shape == (192, 192, 150)
    first, last = grid.affine @ [0, 0, 0, 1], grid.affine @ [191, 191, 149, 1]
    assert first[:3].tolist() == [-95, -113, -68]
    assert last[:3].tolist() == [96, 78, 81]


@pytest.mark.parametrize("spacing", [1.5, 2, 3, 6])
def test_every_spacing_fills_the_same_box(spacing: float) -> None:
    grid = Grid(spacing=spacing)
    first, last = (
        grid.affine @ [*index, 1] for index in ([-0.5] * 3, [n - 0.5 for n in grid.shape])
    )
    corners = [first[:3], last[:3]]
    assert np.allclose(corners, [[-95.5, -113.5, -68.5], [96.5, 78.5, 81.5]])


@pytest.mark.parametrize("spacing", [0, -1, 4, 7.3, 1e-300, 1e300, float("inf"), float("nan")])
def test_a_spacing_that_does_not_divide_the_box_is_refused(spacing: float) -> None:
    with pytest.raises(ValidationError, match=r"must divide|finite number"):
        Grid(spacing=spacing)


def test_a_volume_reads_back_as_written(tmp_path: Path) -> None:
    zscores, mask = head()
    zscores[10, 10, 10] = 0.0
    path = tmp_path / "a.nii"
    write_volume(path, zscores, mask, GRID)
    stored = open_volume(path, GRID)
    assert stored.shape == GRID.shape[::-1]
    volume = stored.transpose(2, 1, 0)
    assert np.array_equal(volume != 0, mask)
    assert np.abs(volume * SLOPE - zscores)[mask].max() <= SLOPE
    # nibabel, as any viewer, sees the z-scores at their place in MNI space.
    image = nib.load(path)
    assert np.allclose(image.get_fdata(), volume * SLOPE)
    assert np.allclose(image.affine, GRID.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4


def test_extreme_values_are_clipped_not_wrapped(tmp_path: Path) -> None:
    zscores, mask = head()
    zscores[10, 10, 10], zscores[11, 11, 11] = 1e6, -1e6
    write_volume(tmp_path / "a.nii", zscores, mask, GRID)
    stored = open_volume(tmp_path / "a.nii", GRID)
    assert (stored[10, 10, 10], stored[11, 11, 11]) == (32767, -32767)


def test_a_batch_stacks_volumes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_volume(tmp_path / f"{name}.nii", *head(seed), GRID)
    batch = read_batch(VolumeFolder(tmp_path, GRID), ["b", "a"])
    assert batch.shape == (2, 1, *GRID.shape[::-1])
    assert np.array_equal(batch[1, 0].numpy(), open_volume(tmp_path / "a.nii", GRID))


def test_a_volume_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_volume(path, *head(), GRID)
    with pytest.raises(DataError, match=r"found shape \(32, 32, 25\).*expected \(64, 64, 50\)"):
        open_volume(path, Grid(spacing=3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="cut short"):
        open_volume(path, GRID)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        open_volume(path, GRID)
    with pytest.raises(DataError, match="cannot be read"):
        open_volume(tmp_path / "none.nii", GRID)


def test_a_folder_without_a_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the grid"):
        Volumes(tmp_path)
    (tmp_path / "grid.json").write_text("{}")
    with pytest.raises(DataError, match="not the grid"):
        Volumes(tmp_path)


def test_the_recipe_is_how_one_volume_is_made_and_judged(tmp_path: Path) -> None:
    recipe = {"registration": "rigid", "quality": {"template_correlation": {"min": 0.5}}}
    hardware = {"device": "cuda", "batch": 8}
    params = {**recipe, **hardware, "outliers": 6.0, "overrides": None, "template": "mine"}
    grid = GRID.describe()
    made = {"grid": grid, "params": params, "template_sha256": "abc"}
    (tmp_path / "grid.json").write_text(json.dumps(made))
    assert Volumes(tmp_path).recipe == recipe | {"template_sha256": "abc"}
    (tmp_path / "grid.json").write_text(json.dumps({"grid": grid, "params": params}))
    assert Volumes(tmp_path).recipe == recipe
    (tmp_path / "landmarks.json").write_text(json.dumps({"key": "k", "standard": [0.0, 1.0]}))
    assert Volumes(tmp_path).recipe == recipe | {"standard": [0.0, 1.0]}


def test_the_recipe_describes_a_mask_command_and_does_not_name_it(tmp_path: Path) -> None:
    command = "/opt/strip/1.6/mri_synthstrip -i {input} -m {output}"
    params = {"mask": {"command": command, "timeout": 60.0}, "template": None}
    (tmp_path / "grid.json").write_text(json.dumps({"grid": GRID.describe(), "params": params}))
    sha256 = hashlib.sha256(command.encode()).hexdigest()
    described = {"program": "mri_synthstrip", "command_sha256": sha256, "timeout": 60.0}
    assert Volumes(tmp_path).recipe == {"mask": described}


@pytest.mark.parametrize("change", ["slope", "affine", "type"])
def test_a_volume_that_another_program_has_written_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.nii"
    write_volume(path, *head(), GRID)
    image = nib.load(path)
    steps, affine = np.asanyarray(image.dataobj.get_unscaled()), image.affine.copy()
    if change == "affine":
        affine[0, 3] += 1
    other = nib.Nifti1Image(steps.astype(np.float32 if change == "type" else np.int16), affine)
    other.header.set_slope_inter(2 * SLOPE if change == "slope" else SLOPE, 0)
    nib.save(other, path)
    with pytest.raises(DataError, match=r"a\.nii: found shape .* expected .* Run preprocess again"):
        open_volume(path, GRID)


def test_only_usable_rows_have_volumes_to_use(tmp_path: Path) -> None:
    table = scans(usable=[True, False], reason=[None, "no brain"], volume_sha256=["0" * 64, None])
    table["volume"] = ["one.nii", None]
    write_table(table, tmp_path / "scans.tsv", VOLUMES)
    write_record(tmp_path, VolumesRecord(grid=GRID.describe(), params={}))
    volumes = Volumes(tmp_path)
    assert len(volumes.scans) == 2
    assert volumes.usable["scan_id"].tolist() == table["scan_id"].tolist()[:1]
