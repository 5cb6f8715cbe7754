from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from neurofoundry import load_encoder
from neurofoundry.contracts.volumes import SLOPE, Grid, VolumeFolder
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from tests.support import tiny

GRID = tiny.GRID


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "volumes"
    return tiny.write_volumes(folder, tiny.scans_table(3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_encoder(tmp_path_factory.mktemp("features") / "encoder")


@pytest.fixture(scope="module")
def paths(volumes: Path) -> list[Path]:
    return sorted(volumes.glob("*.nii"))


class TestFeatures:
    def test_three_lines_give_what_the_stages_see(
        self, volumes: Path, weights: Path, paths: list[Path]
    ) -> None:
        batch = read_batch(VolumeFolder(volumes, GRID), [p.stem for p in paths]).float() * SLOPE
        network, _ = encoders.load(weights)
        with torch.no_grad():
            expected = network.eval()(batch)
        encoder = load_encoder(weights)
        torch.testing.assert_close(encoder(paths), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder(batch, grid=GRID), expected, rtol=1e-5, atol=1e-5)
        one = nib.load(paths[0])
        assert torch.equal(encoder(one), encoder(str(paths[0])))
        values = one.get_fdata()
        assert torch.equal(encoder(values, affine=one.affine), encoder(one))
        assert encoder(paths).shape == (len(paths), network.features)

    def test_a_scan_does_not_depend_on_those_beside_it(
        self, weights: Path, paths: list[Path]
    ) -> None:
        encoder = load_encoder(weights)
        assert torch.equal(encoder(paths)[1:2], encoder(paths[1]))


class TestRefusal:
    """Each with the fix."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v, a: (v[::-1], a @ np.diag([-1, 1, 1, 1])), r"are LAS.*as_closest_canonical"),
            (lambda v, a: (v, a @ np.diag([0.5, 0.5, 0.5, 1])), r"3 × 3 × 3 mm.*spacing to 6"),
            (lambda v, a: (v[1:], a), r"\(31, 32, 25\).*standard box"),
            (lambda v, a: (v, a + _shift(6)), "standard box"),
            (lambda v, a: (v, a @ _rotation(5)), "rotated"),
            (lambda v, a: (v * 100, a), r"expected z-scores"),
            (lambda v, a: (np.stack([v, v], 3), a), "expected one volume"),
        ],
        ids=["flipped", "spacing", "shape", "shifted", "rotated", "raw", "4d"],
    )
    def test_of_a_volume_that_lies_elsewhere(
        self, weights: Path, paths: list[Path], change: Any, message: str
    ) -> None:
        one: Any = nib.load(paths[0])
        values, affine = change(one.get_fdata(), one.affine)
        with pytest.raises(DataError, match=message):
            load_encoder(weights)(nib.Nifti1Image(values, affine))
        with pytest.raises(DataError, match=message):
            load_encoder(weights)(values, affine=affine)

    def test_of_a_tensor_of_another_grid_or_none(self, weights: Path) -> None:
        encoder = load_encoder(weights)
        with pytest.raises(UsageError, match="affine="):
            encoder(torch.zeros(1, 1, *GRID.shape[::-1]))
        with pytest.raises(UsageError, match="another grid"):
            encoder(torch.zeros(1, 1, 50, 64, 64), grid=Grid(spacing=3.0))
        with pytest.raises(DataError, match=r"expected \(scans, 1, z, y, x\)"):
            encoder(torch.zeros(1, 1, *GRID.shape), grid=GRID)

    def test_of_a_folder_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"plan\.json"):
            load_encoder(tmp_path)


def _shift(mm: float) -> np.ndarray:
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return shift


def _rotation(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn


def test_the_package_itself_stays_light() -> None:
    code = (
        "import sys, neurofoundry; print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
