"""A smaller version of benchmarks/broken_scans.py."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.template import Template
from tests.support.preprocessing import PARAMS, preprocess_one


def verdict(values: np.ndarray, affine: np.ndarray, folder: Path, template: Template) -> str | None:
    path = folder / "scan.nii"
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    result = preprocess_one(path, folder / "out", template)
    return result.reason or judge(result.measures, PARAMS.quality)


@pytest.mark.parametrize(
    "kind",
    ["swapped axes", "upside down", "turned by 90°", "identity", "1.4", "noise", "half", "motion"],
)
def test_a_broken_scan_is_caught(
    heads: list[Head], template: Template, tmp_path: Path, kind: str
) -> None:
    values, affine = heads[0].image, heads[0].affine
    turn = from_matvec(Rotation.from_euler("x", 90, degrees=True).as_matrix(), [0, 0, 0])
    noise = np.random.default_rng(0).normal(0, 0.5 * np.percentile(values, 99.5), values.shape)
    # Every fourth line of the second axis was read 15 mm beside the others.
    moved = np.where(np.arange(values.shape[1]) % 4 == 1, 15 / 3, 0)
    phase = np.exp(2j * np.pi * np.fft.fftfreq(values.shape[0])[:, None, None] * moved[:, None])
    broken = {
        "motion": (np.abs(np.fft.ifftn(np.fft.fftn(values) * phase)), affine),
        "swapped axes": (values.swapaxes(0, 2), affine),
        "upside down": (values[:, :, ::-1], affine),
        "turned by 90°": (values, turn @ affine),
        "identity": (values, np.eye(4)),
        "1.4": (values, affine @ np.diag([1.4, 1.4, 1.4, 1])),
        "noise": (np.abs(values + noise), affine),
        "half": (values[values.shape[0] // 2 :], affine),
    }
    assert verdict(*broken[kind], tmp_path, template) is not None


@pytest.mark.parametrize("kind", ["as it is", "skull-stripped", "lesion", "turned by 25°"])
def test_a_scan_that_only_looks_odd_is_kept(
    heads: list[Head], template: Template, tmp_path: Path, kind: str
) -> None:
    scan = heads[0]
    middle = np.argwhere(scan.brain).mean(axis=0) + np.array([12, 4, 4])
    distance = np.linalg.norm(np.moveaxis(np.indices(scan.image.shape), 0, -1) - middle, axis=-1)
    turn = from_matvec(Rotation.from_euler("z", 25, degrees=True).as_matrix(), [0, 0, 0])
    odd = {
        "as it is": (scan.image, scan.affine),
        "skull-stripped": (np.where(scan.brain, scan.image, 0), scan.affine),
        "lesion": (np.where(distance * 3 < 18, 0.3 * scan.image, scan.image), scan.affine),
        "turned by 25°": (scan.image, turn @ scan.affine),
    }
    assert verdict(*odd[kind], tmp_path, template) is None
