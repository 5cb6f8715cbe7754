from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from neurofoundry.contracts.volumes import open_volume
from neurofoundry.errors import UsageError
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import mask_command
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import MaskParams
from neurofoundry.preprocess.resample import Image
from neurofoundry.preprocess.template import Template
from tests.support.preprocessing import PARAMS, VOLUME, image_of, preprocess_one
from tests.support.processes import ended

BALL = """
import nibabel as nib, numpy as np, sys
scan = nib.load(sys.argv[1])
places = np.indices(scan.shape) - np.array(scan.shape).reshape(3, 1, 1, 1) / 2
"""
SCAN = Image(
    np.random.default_rng(0).random((40, 44, 36), dtype=np.float32), np.diag([4.0, 4, 4, 1])
)


def program(folder: Path, last: str) -> str:
    path = folder / "program.py"
    path.write_text(BALL + last)
    return f"{sys.executable} {path} {{input}} {{output}}"


def writing(values: str, affine: str = "scan.affine") -> str:
    return f"nib.save(nib.Nifti1Image({values}, {affine}), sys.argv[2])"


def test_the_mask_is_what_the_program_wrote(tmp_path: Path) -> None:
    ball = "((places**2).sum(axis=0) < 15**2).astype('uint8')"
    mask = mask_command.run(SCAN, MaskParams(command=program(tmp_path, writing(ball))))
    places = np.indices(SCAN.values.shape) - np.reshape([20, 22, 18], (3, 1, 1, 1))
    np.testing.assert_array_equal(mask.values, (places**2).sum(axis=0) < 15**2)
    np.testing.assert_array_equal(mask.affine, SCAN.affine)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("sys.exit('no licence')", "ended with 1"),
        ("", "wrote no file"),
        ("open(sys.argv[2], 'w').write('no image')", "cannot be read"),
        (writing("np.zeros(scan.shape, 'uint8')"), "empty"),
        (writing("(places[0] < -18).astype('uint8')"), "ml, expected 300"),
        (writing("np.eye(36)[:30, :30, None].repeat(30, 2)"), "another grid"),
        (
            writing("(places[0] < 0).astype('uint8')", "scan.affine @ np.diag([1, 1, 1.1, 1])"),
            "grid",
        ),
        ("import time; time.sleep(60)", "took more than 3 s"),
    ],
    ids=["fails", "no file", "no image", "empty", "small", "shape", "affine", "slow"],
)
def test_a_program_without_a_mask_costs_the_scan_and_says_why(
    tmp_path: Path, last: str, words: str
) -> None:
    params = MaskParams(command=program(tmp_path, last), timeout=3 if "sleep" in last else 60)
    with pytest.raises(UnusableScanError, match=words):
        mask_command.run(SCAN, params)


def test_what_a_slow_program_has_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "program.sh").write_text(f"sleep 600 & echo $! > {tmp_path}/started; wait")
    params = MaskParams(command=f"sh {tmp_path}/program.sh {{input}} {{output}}", timeout=3)
    with pytest.raises(UnusableScanError, match="took more than 3 s"):
        mask_command.run(SCAN, params)
    assert ended(int((tmp_path / "started").read_text()))


def test_a_mask_of_another_program_is_used_as_it_is(
    heads: list[Head], head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    # The true brain, which only the program knows.
    truth = image_of(heads[1])
    mask = nib.Nifti1Image(heads[1].brain.astype(np.uint8), truth.affine)
    nib.save(nib.as_closest_canonical(mask), tmp_path / "truth.nii.gz")
    copy = f"import shutil; shutil.copy({str(tmp_path / 'truth.nii.gz')!r}, sys.argv[2])"
    params = PARAMS.model_copy(update={"mask": MaskParams(command=program(tmp_path, copy))})
    result = preprocess_one(head_files[1], tmp_path / "out", template, params)
    assert result.reason is None
    ml = heads[1].brain.sum() * abs(np.linalg.det(truth.affine)) / 1000
    assert result.measures["mask_ml"] == pytest.approx(ml, rel=0.02)
    assert result.measures["local_correlation"] > 0.6
    volume = open_volume(tmp_path / "out" / VOLUME, PARAMS.grid)
    assert (volume != 0).sum() * 0.027 == pytest.approx(ml, rel=0.02)


def test_a_program_that_is_not_there_ends_the_run_before_it_begins() -> None:
    with pytest.raises(UsageError, match="no program synthstrip-nowhere"):
        mask_command.check(MaskParams(command="synthstrip-nowhere {input} {output}"))
    mask_command.check(MaskParams(command=f"{sys.executable} {{input}} {{output}}"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bet {input}", "must contain {output}"),
        ("bet {input} {output} {weights}", "braces"),
        ("{input} {output}", "start with a program"),
        ("bet '{input} {output}", "quotation"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MaskParams(command=command)
