"""Inspects one NIfTI file and says why it cannot be used.

Cheap checks come first; the voxels are read last. A head fills 90 to 420 mm along each axis with
voxels of 0.2 to 8 mm; what lies outside is another part of the body, a fragment, or a header in
other units.
"""

from __future__ import annotations

import hashlib
import math
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.nifti import has_useless_sform, spans_space
from neurofoundry.ingest.scan import UnusableError, as_reason, check_fetched

SPACING_MM = (0.2, 8.0)
EXTENT_MM = (90.0, 420.0)
_UNIT = 1 + 1e-6
"""What the squares of a quaternion's last three parts may add up to, in float32."""
MAX_VOXELS = 2**29
"""0.25 mm over a whole head."""
_PIECE = 1 << 22
"""Bytes that are read, unpacked and hashed at once. They bound the memory of a worker: a file of
4 MB may unpack to 4 GB."""
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
    notes: tuple[str, ...] = ()
    """How the file is read where it is not quite as it should be."""


def inspect_image(file: Path, *, may_be_empty: bool = False) -> ImageHashes | UnusableError:
    """Hash a .nii or .nii.gz file; return why not when it cannot be used.

    A label image ``may_be_empty``: all zero, or constant.
    """
    try:
        with as_reason("unreadable file"):
            return _inspect(file, may_be_empty)
    except UnusableError as reason:
        return reason


def _inspect(file: Path, may_be_empty: bool) -> ImageHashes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("not a file: expected an image file, found a folder or a device")
    if status.st_size == 0:
        raise UnusableError("empty file: 0 bytes")
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
        packed = _is_packed(start, file.name)
        header = _header(_start_of_unzipped(start) if packed else start)
        notes = _repair(header)
        shape, dtype = _shape(header), _dtype(header)
        _check_geometry(header, shape)
        offset = _offset(header)
        needed = offset + int(np.prod(shape)) * dtype.itemsize
        if status.st_size > 2 * needed + (1 << 20):
            raise UnusableError(f"too large: {status.st_size} bytes for an image of {needed} bytes")
        digest = hashlib.sha256()
        pieces = _pieces(start, stream, digest)
        unpacked = _unzip(pieces, needed) if packed else pieces
        content = _Content(shape, *_scaling(header))
        for voxels in _voxels(unpacked, dtype, offset, needed):
            content.add(voxels)
        for _ in pieces:  # what follows the voxels counts for the hash of the file
            pass
    notes += content.check(may_be_empty)
    return ImageHashes(digest.hexdigest(), content.digest.hexdigest(), tuple(notes))


def _pieces(start: bytes, stream: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    """Yield ``start`` and what follows it in a file, and hash it."""
    piece = start
    while piece:
        digest.update(piece)
        yield piece
        piece = stream.read(_PIECE)


def _voxels(
    pieces: Iterator[bytes], dtype: np.dtype[np.generic], offset: int, end: int
) -> Iterator[NDArray[Any]]:
    """Yield the voxels that lie from ``offset`` to ``end``, bytes, in an unpacked file."""
    position, rest = 0, b""
    for piece in pieces:
        first, position = position, position + len(piece)
        rest += piece[max(0, offset - first) : max(0, end - first)]
        whole = len(rest) // dtype.itemsize * dtype.itemsize
        if whole:
            yield np.frombuffer(rest[:whole], dtype)
        rest = rest[whole:]
    if position < end:
        raise UnusableError(
            f"cut short: the image needs {end} bytes, the file holds {position}. "
            "Copy it again from its source"
        )


def _is_packed(start: bytes, name: str) -> bool:
    """Return whether the file is gzip-compressed; its name must say the same."""
    packed = start.startswith(b"\x1f\x8b")
    check_fetched(start, "image")
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


def _unzip(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the first ``size`` bytes that are packed in members of a gzip file.

    Raises UnusableError for what is damaged or cut short. The checksum counts where a member ends
    with these bytes.
    """
    missing, unzip = size, zlib.decompressobj(wbits=31)
    for packed in pieces:
        while packed:
            try:
                unpacked = unzip.decompress(packed, min(missing, _PIECE) or 1)
            except zlib.error as error:
                detail = str(error).rpartition(":")[2].strip()
                raise UnusableError(
                    f"bad gzip: {detail}. Copy the file again from its source"
                ) from None
            if not missing and unpacked:
                return
            yield unpacked
            missing -= len(unpacked)
            if not missing and unzip.eof:
                return
            packed = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
            unzip = zlib.decompressobj(wbits=31) if unzip.eof else unzip
    raise UnusableError(
        f"cut short: the image needs {size} bytes, the gzip stream ends after "
        f"{size - missing}. Copy the file again from its source"
    )


def _start_of_unzipped(start: bytes) -> bytes:
    """Return what the start of a gzip file holds: enough for a header, if it is whole."""
    unpacked = b""
    try:
        for piece in _unzip(iter([start]), 1024):
            unpacked += piece
    except UnusableError:
        if not unpacked:
            raise
    return unpacked


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


def _repair(header: nib.Nifti1Header) -> list[str]:
    """Correct in place what nibabel, FSL and ITK correct as they read, and say what that was."""
    notes = []
    if header["pixdim"][0] not in (-1, 1):
        notes.append(f"pixdim[0] (qfac) is {header['pixdim'][0]:g}: read as 1, as other tools do")
        header["pixdim"][0] = 1
    if (header["pixdim"][1:4] < 0).any():
        notes.append("pixdim has negative voxel sizes: read without their sign")
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    turned = np.array([header[f"quatern_{axis}"] for axis in "bcd"], float)
    if header["sform_code"] > 0 and header["qform_code"] > 0 and not turned @ turned <= _UNIT:
        notes.append("the qform has no valid rotation: the sform alone is used")
        header["qform_code"] = 0
    if has_useless_sform(header):
        notes.append("the sform places no voxels (zeros or NaN): the qform alone is used")
        header["sform_code"] = 0
    return notes


def _offset(header: nib.Nifti1Header) -> int:
    """Return where the voxels begin, in bytes."""
    offset, first = float(header["vox_offset"]), header.single_vox_offset
    if not first <= offset < 1 << 30:
        # Tools that read such a file begin at different bytes.
        raise UnusableError(
            f"not NIfTI: the header says that voxels begin at byte {offset:g}, expected {first} "
            "or more. Correct vox_offset"
        )
    return int(offset)


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
            "Extract the one that is meant"
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
        raise UnusableError("not greyscale: a colour (RGB) image. Save it with one channel")
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
    if not spans_space(affine):
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


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Return the slope and intercept of the stored values."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return (1.0, 0.0) if slope == 0 or np.isnan(slope) else (slope, intercept)


class _Content:
    """The image that scaled voxels make: their hash, and whether it can be one of a head."""

    def __init__(self, shape: tuple[int, int, int], slope: float, intercept: float) -> None:
        self.digest = hashlib.sha256(repr(shape).encode())
        self._shape, self._scale = shape, (slope, intercept)
        self._ends = np.array([math.inf, -math.inf])
        self._bad = self._count = 0

    def add(self, voxels: NDArray[Any]) -> None:
        """Add the next voxels."""
        slope, intercept = self._scale
        with np.errstate(invalid="ignore", over="ignore"):
            self.digest.update((voxels * slope + intercept).astype("<f4").tobytes())
        self._count += voxels.size
        if voxels.dtype.kind == "f" and not np.isfinite([voxels.min(), voxels.max()]).all():
            finite = np.isfinite(voxels)
            self._bad += int(np.count_nonzero(~finite))
            voxels = voxels[finite]
        if voxels.size:
            low, high = float(voxels.min()), float(voxels.max())
            self._ends = np.array([min(low, self._ends[0]), max(high, self._ends[1])])

    def check(self, may_be_empty: bool) -> list[str]:
        """Return what readers should know of the values.

        Preprocess, which finds the brain, judges what of it NaN and infinite values hide. Raises
        UnusableError where there is nothing else, for values that show nothing (unless the image
        ``may_be_empty``), and for those that float32 cannot hold.
        """
        notes = []
        if self._bad == self._count:
            raise UnusableError("NaN or infinite values: there are no others")
        if self._bad:
            notes.append(
                f"NaN or infinite values ({self._bad} of {self._count} voxels): read as what lies "
                "around them; preprocess refuses the scan if they hide some of the brain"
            )
        low, high = self._ends
        if low == high and not may_be_empty:
            raise UnusableError(
                "all zero: every voxel is 0" if not high else f"constant: every voxel is {high:g}"
            )
        slope, intercept = self._scale
        with np.errstate(invalid="ignore", over="ignore"):
            ends = self._ends * slope + intercept
        if not np.isfinite(ends).all() or np.abs(ends).max() > np.finfo(np.float32).max:
            raise UnusableError(
                f"scaling overflow: values {low:g} to {high:g} times slope {slope:g} plus "
                f"{intercept:g} exceed what float32 holds. Convert the scan again from its source"
            )
        if np.float32(ends[0]) == np.float32(ends[1]) and not may_be_empty:
            raise UnusableError(f"constant: every voxel is {ends[0]:g} after scaling by {slope:g}")
        return notes


def _by(numbers: NDArray[np.float64]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
