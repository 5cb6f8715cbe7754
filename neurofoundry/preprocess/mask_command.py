"""Brain masks by another program, such as SynthStrip or HD-BET with weights of one's own.

The program sees a NIfTI file of the scan alone, in a folder that is removed afterwards, and writes
its mask on the same grid.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from neurofoundry.errors import UsageError
from neurofoundry.preprocess.load import UnusableScanError, read_scan
from neurofoundry.preprocess.params import MaskParams
from neurofoundry.preprocess.resample import Image
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.processes import end_family

PLAUSIBLE_ML = (300.0, 2500.0)
"""What can be a brain's volume at all; preprocess.quality bounds it further."""


def check(params: MaskParams) -> None:
    """Raise UsageError where the program is not installed."""
    program = shlex.split(params.command)[0]
    if shutil.which(program) is None:
        raise UsageError(
            f"preprocess.mask.command: there is no program {program}. Install it, or give its "
            "full path, here and on every machine that preprocesses a shard."
        )


def run(scan: Image, params: MaskParams) -> Image:
    """Return the program's mask (0 or 1) on the scan's grid.

    Raises UnusableScanError when the program fails or its mask cannot be a brain.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "scan.nii.gz", Path(folder) / "mask.nii.gz"
        nib.save(nib.Nifti1Image(scan.values, scan.affine), given)
        words = shlex.split(params.command)
        _call([word.format(input=given, output=written) for word in words], params.timeout, written)
        try:
            mask = read_scan(written)
        except UnusableScanError as error:
            raise UnusableScanError(
                f"no mask: the file that the command wrote is unusable: {error}"
            ) from error
    shape = mask.values.shape
    if shape != scan.values.shape or not np.allclose(mask.affine, scan.affine, atol=1e-3):
        raise UnusableScanError(
            f"no mask: the command's mask is on another grid, {shape} voxels instead of "
            f"{scan.values.shape}"
        )
    inside = mask.values > 0.5
    ml = inside.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    low, high = PLAUSIBLE_ML
    if not low <= ml <= high:
        raise UnusableScanError(
            f"no mask: the command's mask has {ml:.0f} ml, expected {low:g} to {high:g}"
        )
    return Image(inside.astype(np.float32), scan.affine)


def _call(command: list[str], timeout: float, written: Path) -> None:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as program:
        try:
            _, said = program.communicate(timeout=timeout)
        except BaseException as error:
            end_family(program.pid)  # it may be a script that has started others
            if isinstance(error, subprocess.TimeoutExpired):
                why = f"no mask: the command took more than {timeout:g} s"
                raise UnusableScanError(why) from error
            raise
    if program.returncode or not written.exists():
        # What it says may differ between runs, which the reason in scans.tsv must not.
        LOGGER.warning("%s: %s", command[0], said.strip()[-500:])
        raise UnusableScanError(
            f"no mask: the command ended with {program.returncode}"
            + ("" if program.returncode else " and wrote no file")
        )
