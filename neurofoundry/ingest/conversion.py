"""Converts one DICOM series to NIfTI, without anything that identifies the patient."""

from __future__ import annotations

import re
import subprocess
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np

from neurofoundry.ingest.scan import UnusableError
from neurofoundry.runtime.files import atomic

_TIMEOUT_SECONDS = 900
_OPTIONS = ("-b", "n", "-z", "n", "-g", "i", "-f", "volume")
"""No sidecar, no compression, none of the user's own defaults."""
_OVERLAY = re.compile(r"_ROI\d+$")
"""What dcm2niix calls the volume of an overlay plane, such as a region that somebody has drawn."""


def convert(sources: Iterable[Path], target: Path) -> None:
    """Convert the files of one series to one .nii.gz with a fresh header.

    Raises UnusableError when dcm2niix does not make exactly one volume of them.
    """
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as folder:
        volume = _run_dcm2niix(sources, Path(folder))
        with atomic(target) as temporary:
            # Python's gzip would write its version into the header: equal scans are to be equal
            # files.
            content = _with_fresh_header(volume).to_bytes()
            temporary.write_bytes(zlib.compress(content, level=6, wbits=zlib.MAX_WBITS | 16))


def _run_dcm2niix(sources: Iterable[Path], folder: Path) -> Path:
    slices, made = folder / "in", folder / "out"
    slices.mkdir()
    made.mkdir()
    for number, source in enumerate(sources):
        _offer(source, slices / f"{number:06d}.dcm")
    command = [dcm2niix.bin, *_OPTIONS, "-o", str(made), str(slices)]
    try:
        # What dcm2niix prints names the patient, so it is captured and dropped.
        code = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS).returncode
    except subprocess.TimeoutExpired:
        raise UnusableError(
            f"not convertible: dcm2niix took more than {_TIMEOUT_SECONDS} s"
        ) from None
    volumes = [file for file in made.glob("*.nii") if not _OVERLAY.search(file.stem)]
    if code or len(volumes) != 1:
        raise UnusableError(
            f"not convertible: dcm2niix made {len(volumes)} volumes, expected one "
            f"(exit code {code})"
        )
    return volumes[0]


def _offer(source: Path, place: Path) -> None:
    """Put a file where dcm2niix looks; one with a meta header and no preamble gets a preamble."""
    with source.open("rb") as stream:
        bare = stream.read(2) == b"\x02\0"
    if bare:
        place.write_bytes(bytes(128) + b"DICM" + source.read_bytes())
    else:
        place.symlink_to(source.resolve())


def _with_fresh_header(file: Path) -> nib.Nifti1Image:
    """Return the image in ``file`` with no header but type, shape, units and affine."""
    converted = nib.Nifti1Image.from_filename(file)
    voxels = np.asanyarray(converted.dataobj)
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    fresh = nib.Nifti1Image(voxels, converted.affine)
    fresh.header.set_xyzt_units("mm")
    fresh.set_sform(converted.affine, code="scanner")
    fresh.set_qform(converted.affine, code="scanner")
    return fresh
