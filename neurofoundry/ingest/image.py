"""Inspects one NIfTI file and says why it cannot be used.

Cheap checks come first; the voxels are read last. A head fills 90 to 420 mm along each axis with
voxels of 0.2 to 8 mm; what lies outside is another part of the body, a fragment, or a header in
other units.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from neurofoundry.ingest.scan import UnusableError

SPACING_MM = (0.2, 8.0)
EXTENT_MM = (90.0, 420.0)
MAX_VOXELS = 2**29
"""Bounds the memory of a worker: 0.25 mm over a whole head."""
_HEADERS: dict[int, Callable[..., nib.Nifti1Header]] = {
    348: nib.Nifti1Header,
    540: nib.Nifti2Header,
}
"""By their size in bytes, which is also their first number."""


@dataclass(frozen=True)
class ImageHashes:
    """What a usable image is known by."""

    sha256: str
    """Of the file."""
    content: str
    """Of the shape and the voxel values as float32."""


def inspect_image(file: Path) -> ImageHashes | UnusableError:
    """Hash a .nii or .nii.gz file; return why not when it cannot be used."""
    try:
        return _inspect(file)
    except UnusableError as reason:
        return reason
    except PermissionError:
        return UnusableError("no permission: the file cannot be opened. Change its access rights")
    except OSError as error:
        return UnusableError(f"unreadable file: {os.strerror(error.errno or 0)}")


def _inspect(file: Path) -> ImageHashes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("not a file: expected an image file, found a folder or a device")
    if status.st_size == 0:
        raise UnusableError("empty file: 0 bytes")
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
        packed = _is_packed(start, file.name)
        header = _header(_unpack(start, 1024, whole=False) if packed else start)
        shape, dtype = _shape(header), _dtype(header)
        _check_geometry(header, shape)
        offset = _offset(header)
        needed = offset + int(np.prod(shape)) * dtype.itemsize
        if status.st_size > 2 * needed + (1 << 20):
            raise UnusableError(f"too large: {status.st_size} bytes for an image of {needed} bytes")
        content = start + stream.read()
    sha256 = hashlib.sha256(content).hexdigest()
    if packed:
        content = _unpack(content, needed, whole=True)
    if len(content) < needed:
        raise UnusableError(
            f"cut short: the image needs {needed} bytes, the file holds {len(content)}. "
            "Copy it again from its source"
        )
    voxels = np.frombuffer(content, dtype, count=int(np.prod(shape)), offset=offset)
    slope, intercept = _scaling(header, voxels)
    return ImageHashes(sha256, _content_hash(voxels, slope, intercept, shape))


def _is_packed(start: bytes, name: str) -> bool:
    """Return whether the file is gzip-compressed; its name must say the same."""
    packed = start.startswith(b"\x1f\x8b")
    if start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start[:200]:
        raise UnusableError(
            "a pointer: the image itself was not fetched (`git lfs pull`, `datalad get`)"
        )
    if packed and not name.lower().endswith(".gz"):
        raise UnusableError("misnamed: gzip-compressed, though called .nii. Rename it to .nii.gz")
    if name.lower().endswith(".gz") and not packed:
        plain = start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
        raise UnusableError(
            "misnamed: an uncompressed NIfTI called .gz. Rename it to .nii"
            if plain
            else "bad gzip: it does not start like a gzip file, though called .gz"
        )
    return packed


def _unpack(packed: bytes, size: int, *, whole: bool) -> bytes:
    """Return the first ``size`` bytes that are packed; ``whole`` insists on the final checksum.

    zlib does it in one call, which lets other threads run.
    """
    members: list[bytes] = []
    while packed and (missing := size - sum(map(len, members))) > 0:
        unzip = zlib.decompressobj(wbits=31)
        try:
            members.append(unzip.decompress(packed, missing))
            more = whole and unzip.decompress(unzip.unconsumed_tail, 1)
        except zlib.error as error:
            if not whole and members:
                break
            detail = str(error).rpartition(":")[2].strip()
            raise UnusableError(
                f"bad gzip: {detail}. Copy the file again from its source"
            ) from None
        if whole and not unzip.eof and not more:
            raise UnusableError(
                f"cut short: the image needs {size} bytes, the gzip stream ends after "
                f"{sum(map(len, members))}. Copy the file again from its source"
            )
        packed = unzip.unused_data
    return b"".join(members)


def _header(start: bytes) -> nib.Nifti1Header:
    """Return the header at the start of a file. Raises UnusableError."""
    for size, version in _HEADERS.items():
        if len(start) >= size and size in (
            int.from_bytes(start[:4], "little"),
            int.from_bytes(start[:4], "big"),
        ):
            header = version(start[:size], check=False)
            magic = bytes(header["magic"])[:3]
            if magic in (b"n+1", b"n+2"):
                return header
            if magic in (b"ni1", b"ni2"):
                raise UnusableError("not NIfTI: half of a .hdr/.img pair. Save it as one .nii file")
            raise UnusableError("not NIfTI: the header has no NIfTI magic (an ANALYZE file?)")
    raise UnusableError(
        f"not NIfTI: the file does not start with a NIfTI header ({start[:4].hex()})"
    )


def _offset(header: nib.Nifti1Header) -> int:
    """Return where the voxels begin, in bytes."""
    offset = float(header["vox_offset"])
    if not 0 <= offset < 1 << 30:
        raise UnusableError(f"not NIfTI: the header says that voxels begin at byte {offset:g}")
    return max(int(offset), len(header.binaryblock))


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Return the size of the only volume. Raises UnusableError."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise UnusableError(f"not NIfTI: the header says {count} dimensions")
    shape = tuple(int(size) for size in header["dim"][1 : count + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    sides = " × ".join(map(str, shape))
    if min(shape) < 0 or 0 in shape:
        raise UnusableError(f"not 3D: the header says {sides} voxels")
    if len(shape) < 3 or 1 in shape:
        raise UnusableError(f"not 3D: a 2D image of {sides} voxels")
    if len(shape) > 3:
        raise UnusableError(
            f"not 3D: a {len(shape)}D image of {sides} voxels, expected one volume. "
            "Extract the volume that is T1-weighted"
        )
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise UnusableError(
            f"too large: {sides} voxels, expected {MAX_VOXELS} at most. Downsample it"
        )
    x, y, z = shape
    return x, y, z


def _dtype(header: nib.Nifti1Header) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except KeyError:
        raise UnusableError(f"not greyscale: unknown data type {code}") from None
    if dtype.fields:
        raise UnusableError("not greyscale: a colour (RGB) image")
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype.itemsize == 0:
        raise UnusableError(f"not greyscale: data type {dtype.name}, expected integers or floats")
    return dtype


def _check_geometry(header: nib.Nifti1Header, shape: tuple[int, int, int]) -> None:
    """Raise UnusableError unless the header describes a box that a head fits in."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):  # 0, 'unknown', is what many tools write and mean mm by
        name = {1: "metres", 3: "micrometres"}.get(unit, f"code {unit}")
        raise UnusableError(
            f"unknown units: the header says {name}, expected mm. Correct the header"
        )
    stored = np.asarray(header["pixdim"][1:4], float)
    _check_spacing(stored)
    affine = _affine(header)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3]))
    if volume < 0.1 * np.prod(spacing) or not volume:
        raise UnusableError("singular affine: its axes do not span three dimensions")
    _check_spacing(spacing)
    if not np.allclose(np.log(spacing / stored), 0, atol=np.log(1.5)):
        raise UnusableError(
            f"contradictory spacing: pixdim says {_by(stored)} mm, the affine {_by(spacing)} mm. "
            "Convert the scan again from its source"
        )
    extent = spacing * shape
    low, high = EXTENT_MM
    if extent.min() < low or extent.max() > high:
        word = "small" if extent.min() < low else "large"
        raise UnusableError(
            f"field of view: {_by(extent.round())} mm is too {word} for a head, expected {low:g} "
            f"to {high:g} mm along each axis"
        )


def _check_spacing(spacing: NDArray[np.float64]) -> None:
    low, high = SPACING_MM
    # float32 stores 0.2 as 0.2000000030
    if not (np.isfinite(spacing).all() and spacing.min() > low - 1e-4 and spacing.max() <= high):
        raise UnusableError(f"bad spacing: {_by(spacing)} mm, expected {low:g} to {high:g} mm")


def _affine(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """Return the affine from voxels to mm: the sform if there is one, as nibabel does."""
    try:
        sform = header.get_sform(coded=True)[0]
        qform = header.get_qform(coded=True)[0]
    except (ValueError, KeyError, nib.spatialimages.HeaderDataError):
        raise UnusableError("singular affine: the qform has no valid rotation") from None
    forms = [form for form in (sform, qform) if form is not None]
    if not forms:
        raise UnusableError(
            "no orientation: sform and qform codes are both 0, so left and right are unknown. "
            "Convert the scan again from its source"
        )
    if not all(np.isfinite(form).all() for form in forms):
        raise UnusableError("singular affine: it holds NaN or infinite values")
    if len(forms) == 2 and np.linalg.det(sform[:3, :3]):
        codes = ["".join(nib.aff2axcodes(form)) for form in forms]
        if codes[0] != codes[1]:
            raise UnusableError(
                f"contradictory orientation: sform says {codes[0]}, qform {codes[1]}. "
                "Convert the scan again from its source"
            )
    return np.asarray(forms[0], float)


def _scaling(header: nib.Nifti1Header, voxels: NDArray[Any]) -> tuple[float, float]:
    """Return slope and intercept, after checking the values that they make of the voxels."""
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():
        bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        raise UnusableError(f"NaN or infinite values: {bad} of {voxels.size} voxels")
    if low == high:
        raise UnusableError(
            "all zero: every voxel is 0" if not high else f"constant: every voxel is {high:g}"
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        slope, intercept = 1.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        ends = np.array([low, high]) * slope + intercept
    if not np.isfinite(ends).all() or np.abs(ends).max() > np.finfo(np.float32).max:
        raise UnusableError(
            f"scaling overflow: values {low:g} to {high:g} times slope {slope:g} plus "
            f"{intercept:g} exceed what float32 holds. Convert the scan again from its source"
        )
    if np.float32(ends[0]) == np.float32(ends[1]):
        raise UnusableError(f"constant: every voxel is {ends[0]:g} after scaling by {slope:g}")
    return slope, intercept


def _content_hash(
    voxels: NDArray[Any], slope: float, intercept: float, shape: tuple[int, int, int]
) -> str:
    """Hash the image that scaled voxels make."""
    digest = hashlib.sha256(repr(shape).encode())
    step = 1 << 20
    for begin in range(0, voxels.size, step):
        chunk = voxels[begin : begin + step]
        digest.update((chunk * slope + intercept).astype("<f4").tobytes())
    return digest.hexdigest()


def _by(numbers: NDArray[np.float64]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
