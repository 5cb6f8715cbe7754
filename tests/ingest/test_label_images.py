"""Label images are found where people put them; one that does not fit costs its scan the label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from neurofoundry.contracts.labels import LABELS, read_labels
from tests.support.building import AFFINE, ALL_PRETRAIN, EVERY_SPLIT, Outcome, bids, run, write_scan

PLACES = {
    "beside": "ds/{0}/anat/{0}_label-lesion_mask.nii.gz",
    "derivatives": "ds/derivatives/{0}/anat/{0}_label-lesion_mask.nii.gz",
    "pipeline": "ds/derivatives/manual/{0}/anat/{0}_label-lesion_mask.nii.gz",
    "in words for its own space": "ds/derivatives/{0}/anat/{0}_space-orig_label-lesion_mask.nii.gz",
}
BY_NAME = {"suffix": "mask", "label": "lesion"}


def mask(voxels: int = 5, value: float = 1, dtype: type = np.uint8) -> NDArray[Any]:
    """Outline a block of voxels in a head of `building.head`."""
    classes = np.zeros((40, 40, 40), dtype)
    classes[20, 20, 10 : 10 + voxels] = value
    return classes


def ingested(
    tmp_path: Path, label: dict[str, Any], splits: dict[str, Any] = ALL_PRETRAIN, **task: Any
) -> Outcome:
    declared = {"kind": "segmentation", "column": "stroke", "classes": ["lesion"], **task}
    return run(
        tmp_path / "data",
        tmp_path / "out",
        tasks={"stroke": {**declared, "label": label, "required": False}},
        splits=splits,
    )


def of(outcome: Outcome) -> pd.DataFrame:
    return read_labels(outcome.folder, LABELS).set_index("scan_id")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_it_is_found_by_its_name(tmp_path: Path, place: str) -> None:
    bids(tmp_path / "data/ds", 4)
    for number in (1, 2, 3):
        voxels = mask(5 * (number > 1))
        write_scan(tmp_path / "data" / place.format(f"sub-{number:02d}"), voxels)
    outcome = ingested(tmp_path, BY_NAME)
    found = of(outcome)
    assert found["shows"].to_dict() == {
        "ds_sub-01_ses-1": "empty",
        "ds_sub-02_ses-1": "lesion",
        "ds_sub-03_ses-1": "lesion",
    }
    assert outcome.scans["stroke"].fillna("n/a").tolist() == ["empty", "lesion", "lesion", "n/a"]
    assert found["path"]["ds_sub-02_ses-1"] == place.format("sub-02")
    np.testing.assert_allclose(found["ml"], [0, 5 * 4.5**3 / 1000, 5 * 4.5**3 / 1000], rtol=1e-4)
    assert not outcome.excluded


def test_it_is_found_in_a_table(tmp_path: Path) -> None:
    table = "participant_id\toutline\nsub-01\tmasks/one.nii\nsub-02\tn/a\nsub-03\tgone.nii\n"
    bids(tmp_path / "data/ds", 4, table=table + "sub-04\t../../etc/passwd\n")
    write_scan(tmp_path / "data/ds/masks/one.nii", mask(value=255))
    outcome = ingested(tmp_path, {"column": "outline"})
    assert of(outcome)[["shows", "values"]].values.tolist() == [["lesion", "255"]]
    assert outcome.notes.count("the column outline names no file of the dataset") == 2


def test_a_label_of_another_image_of_the_session_is_none(tmp_path: Path) -> None:
    """Two persons have two runs each; the label images say to which they belong, or to none."""
    for number in (1, 2):
        for name in ("run-1", "run-2"):
            stem = f"sub-0{number}/anat/sub-0{number}_{name}"
            write_scan(tmp_path / f"data/ds/{stem}_T1w.nii.gz", number * 10 + int(name[-1]))
    folder = tmp_path / "data/ds/derivatives"
    write_scan(folder / "sub-01/anat/sub-01_run-1_label-lesion_mask.nii.gz", mask())
    write_scan(folder / "sub-01/anat/sub-01_run-2_label-lesion_mask.nii.gz", mask(2))
    write_scan(folder / "sub-02/anat/sub-02_run-2_label-lesion_mask.nii.gz", mask())
    found = of(ingested(tmp_path, BY_NAME))
    assert found["path"].to_dict() == {
        "ds_sub-01_ses-1": "ds/derivatives/sub-01/anat/sub-01_run-1_label-lesion_mask.nii.gz"
    }


def test_axes_in_another_order_are_the_same_grid(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    path = write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), mask())
    turned = nib.as_closest_canonical(nib.load(path))
    orientation = nib.orientations.axcodes2ornt(("P", "S", "L"))
    nib.save(turned.as_reoriented(orientation), path)
    assert nib.aff2axcodes(nib.load(path).affine) != ("R", "A", "S")
    assert of(ingested(tmp_path, BY_NAME))["shows"].tolist() == ["lesion"]


SHIFTED = AFFINE.copy()
SHIFTED[0, 3] = 1.0
UNFIT = {
    "another grid than the scan's: 39 × 40 × 40 voxels, expected 40 × 40 × 40": (
        mask()[:39],
        AFFINE,
    ),
    "another grid than the scan's: a corner lies 1 mm": (mask(), SHIFTED),
    "values that are no whole numbers": (mask(value=0.5, dtype=np.float32), AFFINE),
    "values 1, 2, expected 0 and one other": (mask() + mask(2), AFFINE),
    "values -1, expected 0 and one other": (mask(value=-1, dtype=np.int16), AFFINE),
    "NaN or infinite values": (mask(value=np.nan, dtype=np.float32), AFFINE),
    "not 3D": (np.stack([mask(), mask()], axis=-1), AFFINE),
}


@pytest.mark.parametrize(("reason", "image"), UNFIT.items(), ids=UNFIT)
def test_one_that_does_not_fit_costs_its_scan_the_label_alone(
    tmp_path: Path, reason: str, image: tuple[NDArray[Any], NDArray[np.float64]]
) -> None:
    bids(tmp_path / "data/ds", 2)
    for subject, (voxels, affine) in {"sub-01": image, "sub-02": (mask(), AFFINE)}.items():
        write_scan(tmp_path / "data" / PLACES["beside"].format(subject), voxels, affine)
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).index.tolist() == ["ds_sub-02_ses-1"]
    assert len(outcome.scans) == 2
    assert f"label image of stroke: sub-01_label-lesion_mask.nii.gz: {reason}" in outcome.notes


def test_a_damaged_file_costs_its_scan_the_label_alone(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    path = write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), mask())
    path.write_bytes(path.read_bytes()[:150])
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).empty
    assert "cut short" in outcome.notes


def test_two_that_fit_alike_are_none(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    for place in ("derivatives", "pipeline"):
        write_scan(tmp_path / "data" / PLACES[place].format("sub-01"), mask())
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).empty
    assert "2 images fit alike" in outcome.notes
    better = "ds/derivatives/{0}/anat/{0}_label-lesion_desc-corrected_mask.nii.gz"
    write_scan(tmp_path / "data" / better.format("sub-01"), mask())
    found = of(ingested(tmp_path, {**BY_NAME, "desc": "corrected"}))
    assert found["path"].tolist() == [better.format("sub-01")]


def test_several_classes_have_the_values_that_are_declared(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    voxels = mask(value=4) + np.roll(mask(3, value=43), 1, axis=0) + np.roll(mask(2, 9), 2, axis=0)
    write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), voxels)
    label = {**BY_NAME, "values": {"ventricles": [4, 43], "tumour": [10]}}
    found = of(ingested(tmp_path, label, classes=["ventricles", "tumour"]))
    assert found[["shows", "values"]].values.tolist() == [["ventricles", "4,43;10"]]
    np.testing.assert_allclose(found["ml"], 8 * 4.5**3 / 1000, rtol=1e-4)


def test_the_data_version_follows_label_images(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    path = write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), mask())
    first = ingested(tmp_path, BY_NAME).work.data_version
    assert ingested(tmp_path, BY_NAME).work.data_version == first
    write_scan(path, mask(3))
    assert ingested(tmp_path, BY_NAME).work.data_version != first


def test_splits_share_out_the_persons_with_a_lesion(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 24)
    for number in range(1, 25):
        voxels = mask(5 * (number % 3 == 0))
        write_scan(tmp_path / "data" / PLACES["derivatives"].format(f"sub-{number:02d}"), voxels)
    splits = {"mode": "stratified", **EVERY_SPLIT}
    scans = ingested(tmp_path, BY_NAME, splits).scans
    lesions = scans[scans["stroke"] == "lesion"]["split"].value_counts()
    assert lesions[["train", "val", "test"]].min() >= 2
