"""Masks lie in the voxels of the raw scan, where the lesion was painted, and name nobody."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.volumes import SLOPE, Grid, open_volume
from neurofoundry.errors import UsageError
from neurofoundry.inference.outlines import mask_name
from neurofoundry.inference.predictions import predict
from neurofoundry.ingest.label_images import find
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, Scan
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.label_images import read_placement, to_grid, to_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Image, antialias, resample
from neurofoundry.preprocess.template import Template
from neurofoundry.tasks import Segmentation
from tests.support.preprocessing import VOLUME, preprocess_one
from tests.support.segmenter import bright, write_model, write_models

RECIPE = PreprocessParams(grid=Grid(spacing=3.0), registration_spacing=4.0)
THRESHOLD = 6.0
SECRET = b"DOE^JANE"


def overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(2 * ((one == 1) & (other == 1)).sum() / ((one == 1).sum() + (other == 1).sum()))


@pytest.fixture(scope="module")
def painted() -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """An oblique scan with slices of 3.4 mm, a bright lesion painted in its own voxels."""
    subject = sample_subject(PhantomParams(seed=52), 1)
    made = head(subject, "1", SITES["alder"], build_atlas(2), 2.6)
    turn = Rotation.from_euler("xyz", [12, -9, 14], degrees=True).as_matrix()
    edges, shape = np.array([1.9, 2.3, 3.4]), (100, 104, 64)
    centre = ndimage.center_of_mass(made.brain)
    middle = apply_affine(made.affine, centre)
    affine = from_matvec(turn * edges, middle - turn @ (edges * np.array(shape) / 2))
    fine = antialias(Image(made.image.astype(np.float32), made.affine), 2.6)
    image = resample(fine, affine, shape).values
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    from_middle = (places - middle - [22, 12, 18]) @ turn
    lesion = np.linalg.norm(from_middle / [17, 12, 14], axis=-1) < 1
    image[lesion] = 900
    return image.astype(np.int16), lesion.astype(np.uint8), affine


def write_scan(
    path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], axes: str = "RAS"
) -> Path:
    """Write a scan with turned axes, and a header that says too much."""
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    image: Any = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
    image.header["descrip"], image.header["db_name"] = SECRET, SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def template() -> Template:
    return templates.build(4.0)


@pytest.fixture(scope="module")
def data(painted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scan with BIDS's name, its copy with other axes, and a file that is none."""
    voxels, _, affine = painted
    folder = tmp_path_factory.mktemp("outlines") / "raw"
    write_scan(folder / "sub-01/ses-1/anat/sub-01_ses-1_acq-a_T1w.nii.gz", voxels, affine)
    write_scan(folder / "later/turned.nii", voxels, affine, "PIL")
    (folder / "later/torn.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def outlined(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlines")
    model = write_model(folder / "model", bright(THRESHOLD), RECIPE)
    places = [data / "sub-01/ses-1/anat/sub-01_ses-1_acq-a_T1w.nii.gz", data / "later"]
    predict(places, model=model, out=folder / "spots.tsv", workers=1)
    return folder


def read(folder: Path, scan: str) -> tuple[pd.Series[Any], Any]:
    table = pd.read_csv(folder / "spots.tsv", sep="\t").set_index("scan")
    row = table.loc[scan]
    return row, nib.load(folder / row["mask"])


def test_a_mask_lies_where_the_lesion_was_painted_about_as_well_as_on_the_grid(
    painted: Any, outlined: Path, data: Path, template: Template, tmp_path: Path
) -> None:
    """Dice on the grid is that of the network's own outline and the label carried there."""
    _, lesion, affine = painted
    path = data / "sub-01/ses-1/anat/sub-01_ses-1_acq-a_T1w.nii.gz"
    preprocess_one(path, tmp_path / "work", template, RECIPE)
    volume = open_volume(tmp_path / "work" / VOLUME, RECIPE.grid)
    with torch.no_grad():
        logits = bright(THRESHOLD)(torch.from_numpy(volume[None, None] * np.float32(SLOPE)))
    on_grid = logits[0].argmax(0).numpy().transpose(2, 1, 0)
    placement = read_placement(tmp_path / "work", "a", RECIPE)
    of_grid = overlap(on_grid, to_grid(lesion, affine, placement, RECIPE.grid))
    of_scan = overlap(np.asarray(read(outlined, path.name)[1].dataobj), lesion)
    assert of_grid > 0.85
    assert of_scan > of_grid - 0.04


def test_a_mask_has_the_geometry_of_its_scan_and_none_of_its_texts(
    outlined: Path, data: Path
) -> None:
    for name in ("sub-01_ses-1_acq-a_T1w.nii.gz", "turned.nii"):
        raw: Any = nib.load(next(data.rglob(name)))
        row, mask = read(outlined, name)
        assert mask.shape == raw.shape
        assert mask.get_data_dtype() == np.uint8
        for each in (mask, raw):
            each.forms = [each.affine, *each.get_qform(coded=True), *each.get_sform(coded=True)]
        for one, other in zip(mask.forms, raw.forms, strict=True):
            np.testing.assert_array_equal(one, other)
        assert mask.header.get_xyzt_units() == raw.header.get_xyzt_units()
        voxels = np.asarray(mask.dataobj)
        assert set(np.unique(voxels)) == {0, 1}
        ml = (voxels == 1).sum() * abs(np.linalg.det(raw.affine)) / 1000
        assert row["ml_spot"] == pytest.approx(ml, abs=1e-4)
        assert SECRET not in mask.to_bytes()


def test_turned_axes_turn_the_mask_and_nothing_else(outlined: Path, painted: Any) -> None:
    straight = read(outlined, "sub-01_ses-1_acq-a_T1w.nii.gz")[1]
    turned = nib.as_closest_canonical(read(outlined, "turned.nii")[1])
    one, other = (np.asarray(nib.as_closest_canonical(each).dataobj) for each in (straight, turned))
    assert overlap(one, other) > 0.99


def test_what_is_no_scan_has_a_reason_and_no_mask(outlined: Path) -> None:
    table = pd.read_csv(outlined / "spots.tsv", sep="\t").set_index("scan")
    assert table.loc["torn.nii.gz", ["mask", "ml_spot"]].isna().all()
    assert isinstance(table.loc["torn.nii.gz", "reason"], str)


def test_masks_are_named_as_derivatives_are(outlined: Path) -> None:
    files = sorted(p.relative_to(outlined / "spots").as_posix() for p in _files(outlined / "spots"))
    assert files == [
        "dataset_description.json",
        "desc-hotspot_dseg.json",
        "desc-hotspot_dseg.tsv",
        "sub-01/ses-1/anat/sub-01_ses-1_acq-a_desc-hotspot_dseg.nii.gz",
        "turned_desc-hotspot_dseg.nii.gz",
    ]
    assert (outlined / "spots/desc-hotspot_dseg.tsv").read_text() == "index\tname\n1\tspot\n"
    assert not list(outlined.glob(".*"))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_masks_serve_as_label_images(outlined: Path, data: Path, tmp_path: Path) -> None:
    """In derivatives/ of the raw data they are what the next model learns from."""
    root = tmp_path / "data"
    scan = root / "sub-01/ses-1/anat/sub-01_ses-1_acq-a_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes((data / scan.relative_to(root)).read_bytes())
    shutil.copytree(outlined / "spots", root / "derivatives/corrected")
    task = {"kind": "segmentation", "classes": ["spot"], "column": "spot"}
    label = {"suffix": "dseg", "desc": "hotspot"}
    tasks = {"spot": Segmentation.model_validate({**task, "label": label})}
    findings = Findings(root)
    found = Scan("d", "sub-01", "ses-1", "bids", scan.name, scan, scan.name, (), ())
    dataset = Dataset(name="d", kind="bids", path=".")
    labels = find([found], [dataset], tasks, findings, workers=1)
    assert findings.notes == []
    assert labels["shows"].tolist() == ["spot"]
    assert labels["ml"][0] == pytest.approx(read(outlined, scan.name)[0]["ml_spot"], abs=1e-3)


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        ("sub-1_T1w.nii", "sub-1/anat/sub-1_desc-x_dseg.nii.gz"),
        (
            "a/sub-1/ses-b/anat/sub-1_ses-b_run-2_T1w.nii.gz",
            "a/sub-1/ses-b/anat/sub-1_ses-b_run-2_desc-x_dseg.nii.gz",
        ),
        ("x/sub-1_acq-a_desc-n4_T1w.nii", "x/sub-1/anat/sub-1_acq-a_desc-x_dseg.nii.gz"),
        ("clinic/sub-9/ses-1/series-1", "clinic/sub-9/ses-1/series-1_desc-x_dseg.nii.gz"),
        ("old/head 1.nii.gz", "old/head 1_desc-x_dseg.nii.gz"),
    ],
)
def test_names_follow_the_scans(scan: str, name: str) -> None:
    assert mask_name(scan, "x") == name


def test_an_ensemble_outlines_what_its_mean_probabilities_do(
    data: Path, template: Template, tmp_path: Path
) -> None:
    networks = [bright(4.5, steepness=1), bright(8.0, steepness=3)]
    model = write_models(tmp_path / "models", networks, RECIPE)
    scan = data / "later"
    predict([scan], model=model, out=tmp_path / "spots.tsv", workers=1)
    preprocess_one(scan / "turned.nii", tmp_path / "work", template, RECIPE)
    volume = open_volume(tmp_path / "work" / VOLUME, RECIPE.grid)[None, None] * np.float32(SLOPE)
    with torch.no_grad():
        each = [network(torch.from_numpy(volume)).softmax(1)[0].numpy() for network in networks]
    raw: Any = nib.load(scan / "turned.nii")
    expected, *alone = (
        to_scan(
            shares.transpose(0, 3, 2, 1),
            read_placement(tmp_path / "work", "a", RECIPE),
            RECIPE.grid,
            raw.affine,
            raw.shape,
        )
        for shares in (np.mean(each, axis=0), *each)
    )
    found = np.asarray(read(tmp_path, "turned.nii")[1].dataobj)
    np.testing.assert_array_equal(found, expected)
    assert all((found != one).any() for one in alone)


def test_what_is_there_is_never_replaced(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", bright(THRESHOLD), RECIPE)
    (tmp_path / "spots").mkdir()
    (tmp_path / "spots/corrected.nii").touch()
    with pytest.raises(UsageError, match="corrected by hand, so nothing is replaced"):
        predict([data], model=model, out=tmp_path / "spots.tsv", workers=1)


def test_volumes_without_raw_scans_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", bright(THRESHOLD), RECIPE)
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes/grid.json").touch()
    with pytest.raises(UsageError, match="Give the raw scans instead"):
        predict([tmp_path / "volumes"], model=model, out=tmp_path / "spots.tsv", workers=1)
