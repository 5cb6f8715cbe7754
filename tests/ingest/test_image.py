from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurofoundry.ingest.image import ImageHashes, inspect_image
from neurofoundry.ingest.scan import UnusableError
from neurofoundry.preprocess.load import read_scan
from tests.support.building import AFFINE, Outcome, as_nobody, bids, head, run, write_scan


def image(voxels: Any = None, affine: Any = AFFINE, **header: Any) -> bytes:
    """A NIfTI file; ``header`` fields are written as given, however wrong."""
    made = nib.Nifti1Image(head() if voxels is None else voxels, affine)
    made.header.set_xyzt_units("mm")
    content = bytearray(made.to_bytes())
    fields = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in header.items():
        fields[name] = value
    content[:348] = fields.binaryblock
    return bytes(content)


def rgb() -> bytes:
    colours = np.zeros((40, 40, 40), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return image(colours)


def with_value(value: float, voxels: Any) -> bytes:
    changed = voxels.astype(np.float32)
    changed[20, 20, 20:23] = value
    return image(changed)


def two_forms() -> bytes:
    made = nib.Nifti1Image(head(), None)
    made.set_sform(AFFINE, code=1)
    made.set_qform(np.diag([-4.5, 4.5, 4.5, 1]), code=1)
    return made.to_bytes()


def corrupted() -> bytes:
    packed = bytearray(gzip.compress(image()))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


SHEARED = AFFINE @ np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])

BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": (".nii.gz", lambda: b"", "empty file: 0 bytes"),
    "truncated gzip": (
        ".nii.gz",
        lambda: gzip.compress(image())[:-9_000],
        "cut short: the image needs 128352 bytes, the gzip stream ends after",
    ),
    "gzip without its end": (
        ".nii.gz",
        lambda: gzip.compress(image())[:-4],
        "cut short: the image needs 128352 bytes",
    ),
    "truncated plain": (
        ".nii",
        lambda: image()[:50_000],
        "cut short: the image needs 128352 bytes, the file holds 50000",
    ),
    "header only": (".nii", lambda: image()[:348], "cut short"),
    "corrupted gzip": (".nii.gz", corrupted, "bad gzip"),
    "no gzip": (".nii.gz", lambda: b"hello, world" * 100, "bad gzip: it does not start like"),
    "uncompressed .gz": (".nii.gz", image, "misnamed: an uncompressed NIfTI called .gz"),
    "compressed .nii": (".nii", lambda: gzip.compress(image()), "misnamed: gzip-compressed"),
    "text": (".nii", lambda: b"this is no image " * 40, "not NIfTI: the file does not start with"),
    "few bytes": (".nii", lambda: image()[:100], "not NIfTI"),
    "packed text": (".nii.gz", lambda: gzip.compress(b"no image " * 99), "not NIfTI"),
    "analyze": (
        ".nii",
        lambda: image(magic=b"\0\0\0\0"),
        "not NIfTI: the header has no NIfTI magic",
    ),
    "pair": (".nii", lambda: image(magic=b"ni1\0"), "not NIfTI: half of a .hdr/.img pair"),
    "lfs": (".nii.gz", lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer"),
    "annex": (".nii.gz", lambda: b"/annex/objects/MD5E-s3--abc.nii.gz\n", "a pointer"),
    "wild offset": (
        ".nii",
        lambda: image(vox_offset=np.nan),
        "not NIfTI: the header says that vox",
    ),
    "voxels in the header": (
        ".nii",
        lambda: image(vox_offset=348),
        "not NIfTI: the header says that voxels begin at byte 348, expected 352 or more",
    ),
    "no dimensions": (
        ".nii",
        lambda: image(dim=[0] * 8),
        "not NIfTI: the header says 0 dimensions",
    ),
    "negative size": (".nii", lambda: image(dim=[3, -4, 4, 4, 1, 1, 1, 1]), "not 3D"),
    "2D": (".nii", lambda: image(head()[:, :, 20]), "not 3D: a 2D image of 40 × 40 voxels"),
    "one slice": (".nii", lambda: image(head()[:, :, 20:21]), "not 3D: a 2D image of 40 × 40 × 1"),
    "4D": (
        ".nii",
        lambda: image(np.stack([head()] * 3, -1)),
        "not 3D: a 4D image of 40 × 40 × 40 × 3 voxels, expected one volume",
    ),
    "RGB": (".nii.gz", lambda: gzip.compress(rgb()), "not greyscale: a colour (RGB) image"),
    "complex": (
        ".nii",
        lambda: image(head().astype(np.complex64)),
        "not greyscale: data type com",
    ),
    "unknown type": (".nii", lambda: image(datatype=7), "not greyscale: unknown data type 7"),
    "enormous": (".nii", lambda: image(dim=[3, 9000, 9000, 9000, 1, 1, 1, 1]), "too large"),
    "padded": (".nii", lambda: image() + bytes(3_000_000), "too large"),
    "zeros": (
        ".nii",
        lambda: image(np.zeros((40, 40, 40), np.int16)),
        "all zero: every voxel is 0",
    ),
    "constant": (
        ".nii",
        lambda: image(np.full((40, 40, 40), 7, np.uint8)),
        "constant: every voxel is 7",
    ),
    "NaN": (
        ".nii",
        lambda: image(np.full((40, 40, 40), np.nan, np.float32)),
        "NaN or infinite values: there are no others",
    ),
    "overflow": (".nii", lambda: image(scl_slope=1e38), "scaling overflow"),
    "infinite slope": (".nii", lambda: image(scl_slope=np.inf), "scaling overflow"),
    "NaN intercept": (
        ".nii",
        lambda: image(scl_slope=1, scl_inter=np.nan),
        "scaling overflow",
    ),
    "vanishing slope": (
        ".nii",
        lambda: image(scl_slope=1e-20, scl_inter=5),
        "constant: every voxel is 5 after scaling",
    ),
    "zero spacing": (
        ".nii",
        lambda: image(pixdim=[1, 0, 4.5, 4.5, 1, 1, 1, 1]),
        "bad spacing: 0 × 4.5 × 4.5 mm, expected 0.2 to 8 mm",
    ),
    "absurd spacing": (
        ".nii",
        lambda: image(affine=np.diag([4.5, 4.5, 45, 1])),
        "bad spacing: 4.5 × 4.5 × 45 mm",
    ),
    "tiny spacing": (".nii", lambda: image(affine=np.diag([4.5, 4.5, 0.01, 1])), "bad spacing"),
    "NaN spacing": (
        ".nii",
        lambda: image(pixdim=[1, np.nan, 4.5, 4.5, 1, 1, 1, 1]),
        "bad spacing: nan",
    ),
    "two spacings": (
        ".nii",
        lambda: image(pixdim=[1, 1, 4.5, 4.5, 1, 1, 1, 1]),
        "contradictory spacing: pixdim says 1 × 4.5 × 4.5 mm, the affine 4.5 × 4.5 × 4.5 mm",
    ),
    "singular affine": (
        ".nii",
        lambda: image(srow_x=SHEARED[0], srow_y=SHEARED[1], srow_z=SHEARED[2]),
        "singular affine",
    ),
    "zero affine": (".nii", lambda: image(srow_x=[0] * 4, srow_y=[0] * 4), "singular affine"),
    "NaN affine": (".nii", lambda: image(srow_x=[np.nan] * 4), "singular affine: it holds NaN"),
    "wild quaternion": (
        ".nii",
        lambda: image(sform_code=0, qform_code=1, quatern_b=3),
        "singular affine: the qf",
    ),
    "no affine": (
        ".nii",
        lambda: image(sform_code=0, qform_code=0),
        "no orientation: sform and qform codes are both 0",
    ),
    "two orientations": (
        ".nii",
        two_forms,
        "contradictory orientation: sform says RAS, qform LAS",
    ),
    "metres": (".nii", lambda: image(xyzt_units=1), "unknown units: the header says metres"),
    "micrometres": (".nii", lambda: image(xyzt_units=3), "unknown units: the header says micro"),
    "odd units": (".nii", lambda: image(xyzt_units=5), "unknown units: the header says code 5"),
    "small view": (
        ".nii",
        lambda: image(affine=np.diag([1.0, 1, 1, 1])),
        "field of view: 40 × 40 × 40 mm is too small for a head, expected 90 to 420 mm",
    ),
    "large view": (
        ".nii",
        lambda: image(np.tile(head(), (1, 1, 3)), np.diag([4.5, 4.5, 8, 1])),
        "field of view: 180 × 180 × 960 mm is too large for a head",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    ending, content, reason = BAD[case]
    file = tmp_path / f"scan{ending}"
    file.write_bytes(content())
    inspected = inspect_image(file)
    assert isinstance(inspected, UnusableError)
    assert str(inspected).startswith(reason)


def shell_of(value: float, voxels: Any) -> bytes:
    """An image whose air has one value, as masking by division leaves it."""
    return image(np.where(voxels == 0, value, voxels.astype(np.float32)))


PIXDIM = np.array([1, 4.5, 4.5, 4.5, 1, 1, 1, 1])
NOWHERE = {f"srow_{axis}": [0] * 4 for axis in "xyz"}
ODD: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "qfac 0": (lambda v: image(v, pixdim=PIXDIM * [0, 1, 1, 1, 1, 1, 1, 1], qform_code=1), "qfac"),
    "qfac 0, no sform": (
        lambda v: image(v, pixdim=PIXDIM * [0, 1, 1, 1, 1, 1, 1, 1], qform_code=1, sform_code=0),
        "qfac",
    ),
    "negative pixdim": (
        lambda v: image(v, pixdim=PIXDIM * [1, -1, 1, -1, 1, 1, 1, 1], qform_code=1),
        "without their sign",
    ),
    "bad quaternion": (lambda v: image(v, qform_code=1, quatern_b=3), "the sform alone is used"),
    "NaN quaternion": (
        lambda v: image(v, qform_code=1, quatern_c=np.nan),
        "the sform alone is used",
    ),
    "zero sform": (lambda v: image(v, qform_code=1, **NOWHERE), "the qform alone is used"),
    "NaN sform": (
        lambda v: image(v, qform_code=1, srow_y=[0, 4.5, 0, np.nan]),
        "the qform alone is used",
    ),
    "flat sform": (
        lambda v: image(v, qform_code=1, srow_z=[4.5, 0, 0, 0]),
        "the qform alone is used",
    ),
    "NaN in the air": (lambda v: shell_of(np.nan, v), "NaN or infinite values (4"),
    "infinite air": (lambda v: shell_of(-np.inf, v), "NaN or infinite values (4"),
    "infinite voxels": (
        lambda v: with_value(np.inf, v),
        "NaN or infinite values (3 of 64000 voxels)",
    ),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """What other tools read, ingested: a folder of files, the cohort."""
    root = tmp_path_factory.mktemp("odd")
    ds = bids(root / "data" / "ds", 2, seed=50)
    for number, (content, _) in enumerate(ODD.values()):
        file = ds / f"sub-odd{number}" / "anat" / f"sub-odd{number}_T1w.nii"
        file.parent.mkdir(parents=True)
        file.write_bytes(content(head(number)))
    return ds, run(root / "data", root / "out")


@pytest.mark.parametrize("case", ODD)
def test_a_header_that_other_tools_read_is_read_with_a_note(
    case: str, odd: tuple[Path, Outcome]
) -> None:
    name = f"sub-odd{list(ODD).index(case)}"
    (row,) = [row for row in odd[1].scans.itertuples() if row.subject == name]
    assert isinstance(row.path, str)
    notes = pd.read_csv(odd[1].folder / "notes.tsv", sep="\t")
    (note,) = notes.loc[notes["path"] == row.path, "note"]
    assert ODD[case][1] in note
    read = read_scan(odd[0] / name / "anat" / f"{name}_T1w.nii")
    assert np.isfinite(read.values).all()
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-4)


def test_bad_images_are_excluded_and_the_cohort_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    bids(data / "ds", 3)
    for number, (ending, content, _) in enumerate(BAD.values()):
        name = f"sub-bad{number}"
        file = data / "ds" / name / "anat" / f"{name}_T1w{ending}"
        file.parent.mkdir(parents=True)
        file.write_bytes(content())
    outcome = run(data, tmp_path / "out")
    assert list(outcome.scans["subject"]) == ["sub-01", "sub-02", "sub-03"]
    for number, (ending, _, reason) in enumerate(BAD.values()):
        name = f"sub-bad{number}"
        assert outcome.excluded[f"ds/{name}/anat/{name}_T1w{ending}"].startswith(reason)
    assert outcome.work.summary["excluded"] == len(BAD)


def test_files_that_cannot_be_opened_are_refused() -> None:
    with as_nobody() as folder:
        open_file = write_scan(folder / "open.nii.gz")
        closed = write_scan(folder / "closed.nii.gz")
        closed.chmod(0)
        assert isinstance(inspect_image(open_file), ImageHashes)
        assert str(inspect_image(closed)).startswith("no permission")


def test_folders_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    assert str(inspect_image(tmp_path / "folder.nii")).startswith("not a file")
    assert str(inspect_image(tmp_path / "pipe.nii")).startswith("not a file")


@pytest.mark.parametrize(
    "content",
    [
        image(),
        image(xyzt_units=0),
        image(scl_slope=0, scl_inter=np.nan),
        image(head()[..., None]),
        image() + bytes(100),
        nib.Nifti2Image(head(), AFFINE).to_bytes(),
        nib.Nifti1Image(head().astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
        image(head().astype(np.float64)),
        image(head(), AFFINE @ np.diag([-1, 1, 1, 1.0])),
        image((head() // 8).astype(np.uint8)),
    ],
    ids=[
        "plain",
        "unknown units",
        "unscaled",
        "trailing axis",
        "padded",
        "nifti2",
        "big endian",
        "float",
        "LAS",
        "uint8",
    ],
)
def test_unusual_but_whole_images_are_taken_packed_or_not(content: bytes, tmp_path: Path) -> None:
    files = {
        "plain.nii": content,
        "packed.nii.gz": gzip.compress(content),
        "members.nii.gz": gzip.compress(content[:9000]) + gzip.compress(content[9000:]),
    }
    inspected = []
    for name, stored in files.items():
        (tmp_path / name).write_bytes(stored)
        hashes = inspect_image(tmp_path / name)
        assert isinstance(hashes, ImageHashes), hashes
        assert hashes.sha256 == hashlib.sha256(stored).hexdigest()
        inspected.append(hashes)
    assert len({hashes.sha256 for hashes in inspected}) == 3
    assert len({hashes.content for hashes in inspected}) == 1


def test_the_content_hash_knows_an_image_in_any_packing_and_no_other(tmp_path: Path) -> None:
    as_float = head().astype(np.float32)
    scaled = image((head() // 2 * 2) // 2, scl_slope=2, scl_inter=0)
    contents = {
        "a.nii": image(as_float),
        "b.nii": image(head()),
        "c.nii": scaled,
        "d.nii": image(head() // 2 * 2),
        "e.nii": image(head(7)),
        "f.nii": image(head().transpose(2, 1, 0).copy()),
    }
    hashes = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        inspected = inspect_image(tmp_path / name)
        assert isinstance(inspected, ImageHashes)
        hashes[name] = inspected.content
    assert hashes["a.nii"] == hashes["b.nii"]
    assert hashes["c.nii"] == hashes["d.nii"]
    assert len(set(hashes.values())) == 4
