"""Brain masks by another program, such as SynthStrip or HD-BET with weights of one's own.

The program sees a NIfTI file of the scan alone, in a folder that is removed afterwards, and writes
its mask on the same grid.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from neurofoundry.errors import UsageError
from neurofoundry.preprocess.load import UnusableScanError, read
from neurofoundry.preprocess.params import MaskParams
from neurofoundry.preprocess.resample import Image

PLAUSIBLE_ML = (300.0, 2500.0)
"""What can be a brain's volume at all; preprocess.quality bounds it further."""


def check(params: MaskParams) -> None:
    """Raise UsageError where there is no such program."""
    program = shlex.split(params.command)[0]
    if shutil.which(program) is None:
        raise UsageError(
            f"preprocess.mask.command: there is no program {program}. Install it, or give its "
            "whole path, here and on every machine that preprocesses a part."
        )


def extract(scan: Image, params: MaskParams) -> Image:
    """The mask (0 or 1) on the scan's grid.

    Raises UnusableScanError when the program fails or does not give a brain.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "scan.nii.gz", Path(folder) / "mask.nii.gz"
        nib.save(nib.Nifti1Image(scan.values, scan.affine), given)
        command = [part.format(input=given, output=made) for part in shlex.split(params.command)]
        try:
            done = subprocess.run(
                command,
                timeout=params.timeout,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnusableScanError(
                f"no mask: the command took more than {params.timeout:g} s"
            ) from error
        if done.returncode or not made.exists():
            # Its words may name what differs between runs; the reason must not.
            print(f"{command[0]}: {done.stderr.strip()[-500:]}", file=sys.stderr)
            raise UnusableScanError(
                f"no mask: the command ended with {done.returncode}"
                + ("" if done.returncode else " and wrote no file")
            )
        try:
            mask = read(made)
        except UnusableScanError as error:
            raise UnusableScanError(
                f"no mask: what the command wrote is unusable: {error}"
            ) from error
    if mask.values.shape != scan.values.shape or not np.allclose(
        mask.affine, scan.affine, atol=1e-3
    ):
        raise UnusableScanError(
            f"no mask: the command's is on another grid, {mask.values.shape} voxels instead of "
            f"{scan.values.shape}"
        )
    inside = mask.values > 0.5
    ml = inside.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if not PLAUSIBLE_ML[0] <= ml <= PLAUSIBLE_ML[1]:
        raise UnusableScanError(
            f"no mask: the command's has {ml:.0f} ml, expected {PLAUSIBLE_ML[0]:g} to "
            f"{PLAUSIBLE_ML[1]:g}"
        )
    return Image(inside.astype(np.float32), scan.affine)
