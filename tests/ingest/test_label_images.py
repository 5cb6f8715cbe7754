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
    """As a path of any system, which does not lead elsewhere."""
    one, two, three = (f"masks/{name}.nii" for name in ("one", "two", "three"))
    for size, name in enumerate((one, two, three), 1):
        write_scan(tmp_path / "data/ds" / name, mask(size, value=255))
    cells = [one, "n/a", "gone.nii", "../../etc/passwd", r"masks\two.nii"]
    cells.append(str(tmp_path / "data/ds" / three))
    rows = [f"sub-{number:02d}\t{cell}\n" for number, cell in enumerate(cells, 1)]
    bids(tmp_path / "data/ds", len(rows), table="participant_id\toutline\n" + "".join(rows))
    outcome = ingested(tmp_path, {"column": "outline"})
    assert of(outcome)["path"].tolist() == [f"ds/{name}" for name in (one, two, three)]
    assert of(outcome)["values"].tolist() == ["255"] * 3
    assert outcome.notes.count("the column outline names no file of the dataset") == 1
    assert outcome.notes.count("leads outside the dataset: the path leaves") == 1


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


def moved(mm: float) -> NDArray[np.float64]:
    """The grid of a head, elsewhere."""
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def background(value: float) -> NDArray[np.float32]:
    """Outlined by ones, with another value where there is nothing."""
    return np.where(mask() == 1, 1, value).astype(np.float32)


OUTSIDE = np.full((40, 40, 40), 0.0, np.float32)
OUTSIDE[:2] = np.nan
COLOURS = np.zeros((40, 40, 40), [("R", "u1"), ("G", "u1"), ("B", "u1")])
UNFIT: dict[str, tuple[NDArray[Any], NDArray[np.float64]]] = {
    "another grid than the scan's: 39 × 40 × 40 voxels, expected 40 × 40 × 40": (
        mask()[:39],
        AFFINE,
    ),
    "another grid than the scan's: a corner lies 1 mm": (mask(), moved(1)),
    "another grid than the scan's: a corner lies 176 mm": (mask(), AFFINE * [[-1], [1], [1], [1]]),
    "values that are no whole numbers. Threshold": (mask(value=0.5, dtype=np.float32), AFFINE),
    "values 1, 2, expected 0 and one other": (mask() + mask(2), AFFINE),
    "values -1, expected 0 and one other": (mask(value=-1, dtype=np.int16), AFFINE),
    "values 1, 2035, expected 0 and one other": (
        mask(dtype=np.int32) + mask(2, 2034, np.int32),
        AFFINE,
    ),
    "NaN or infinite values": (mask(value=np.nan, dtype=np.float32), AFFINE),
    "NaN or infinite values, expected 0": (mask(1, np.inf, np.float32), AFFINE),
    "NaN or infinite values, expected 0 as background": (background(0) + OUTSIDE, AFFINE),
    "not 3D: a 4D image": (np.stack([mask(), mask()], axis=-1), AFFINE),
    "not 3D: a 2D image": (mask()[:, :, :1], AFFINE),
    "not greyscale: a colour (RGB) image": (COLOURS, AFFINE),
    "every voxel is outlined, expected 0 as background": (mask() * 0 + 1, AFFINE),
}
FIT: dict[str, tuple[NDArray[Any], NDArray[np.float64]]] = {
    "floats": (mask(dtype=np.float64), AFFINE),
    "rounded": (mask(value=0.99996, dtype=np.float32), AFFINE),
    "another value": (mask(value=2035, dtype=np.int32), AFFINE),
    "a hundredth of a voxel aside": (mask(), moved(0.04)),
    "one volume of a series": (mask()[..., None], AFFINE),
    "empty": (mask(0), AFFINE),
}


def test_what_does_not_fit_costs_its_scan_the_label_alone(tmp_path: Path) -> None:
    """A person for each way in which a label image can be wrong, or odd and right."""
    images = {**UNFIT, **FIT}
    bids(tmp_path / "data/ds", len(images) + 1)
    names = [f"sub-{number:02d}" for number in range(1, len(images) + 2)]
    for name, (voxels, affine) in zip(names, images.values(), strict=False):
        write_scan(tmp_path / "data" / PLACES["beside"].format(name), voxels, affine)
    cut = write_scan(tmp_path / "data" / PLACES["beside"].format(names[-1]), mask())
    cut.write_bytes(cut.read_bytes()[:150])
    outcome = ingested(tmp_path, BY_NAME)
    assert len(outcome.scans) == len(names)
    reasons = [*UNFIT, *[None] * len(FIT), "cut short"]
    used = [f"ds_{name}_ses-1" for name, why in zip(names, reasons, strict=True) if why is None]
    assert sorted(of(outcome).index) == used
    assert of(outcome)["shows"][used].tolist() == ["lesion"] * 5 + ["empty"]
    for name, reason in zip(names, reasons, strict=True):
        if reason:
            said = f"label image of stroke: {name}_label-lesion_mask.nii.gz: {reason}"
            assert said in outcome.notes


def test_the_label_image_of_another_person_is_refused_for_both(tmp_path: Path) -> None:
    """Small ones may be alike by chance; those of one person are her own."""
    blocks = {"01": 12, "02": 12, "03": 3, "04": 3, "05": 15}
    bids(tmp_path / "data/ds", [*blocks])
    for number, size in blocks.items():
        voxels = np.zeros((40, 40, 40), np.uint8)
        voxels[20 : 20 + size, 20, 10:20] = 1
        path = tmp_path / "data" / PLACES["derivatives"].format(f"sub-{number}")
        write_scan(path.with_suffix("") if number == "02" else path, voxels)  # packed, or not
    outcome = ingested(tmp_path, BY_NAME)
    assert sorted(of(outcome).index) == [f"ds_sub-0{number}_ses-1" for number in (3, 4, 5)]
    for one, other in (("01", "02"), ("02", "01")):
        assert f"sub-{one}_label-lesion_mask.nii" in outcome.notes
        assert f"the same 120 voxels as in sub-{other}_label-lesion_mask.nii" in outcome.notes


def test_what_is_called_like_a_label_image_of_something_else_is_told(tmp_path: Path) -> None:
    called = {
        "sub-01/anat/sub-02_label-lesion_mask": "of sub-02, and the scan of sub-01",
        "sub-02/anat/sub-02_ses-2_label-lesion_mask": "of ses-2, and the scan of no ses",
        "sub-03/anat/sub-03_space-MNI152_label-lesion_mask": "in space-MNI152, and the scan is raw",
        "sub-04/anat/sub-04_label-brain_mask": None,
        "sub-05/anat/sub-05_label-lesion_dseg": None,
    }
    bids(tmp_path / "data/ds", 5)
    for name in called:
        write_scan(tmp_path / f"data/ds/derivatives/{name}.nii.gz", mask())
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).empty
    assert outcome.notes.count("label image of stroke") == 3
    for name, reason in called.items():
        if reason:
            assert f"{Path(name).name}.nii.gz: {reason}" in outcome.notes


def test_values_that_no_label_image_has_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bids(tmp_path / "data/ds", 2)
    write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), mask())
    caplog.set_level("INFO", "neurofoundry")
    ingested(tmp_path, {**BY_NAME, "values": {"lesion": [10]}})
    assert "no label image shows lesion. Are its values 10 in label.values right?" in caplog.text
    ingested(tmp_path, BY_NAME)
    assert "1 of 2 scans have a label image, 0 of them empty; the others outline 0.456 ml" in (
        caplog.text
    )


def test_two_that_fit_alike_are_none(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    for place, voxels in (("derivatives", mask()), ("pipeline", mask(2))):
        write_scan(tmp_path / "data" / PLACES[place].format("sub-01"), voxels)
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).empty
    assert "2 images fit alike" in outcome.notes
    better = "ds/derivatives/{0}/anat/{0}_label-lesion_desc-corrected_mask.nii.gz"
    write_scan(tmp_path / "data" / better.format("sub-01"), mask())
    found = of(ingested(tmp_path, {**BY_NAME, "desc": "corrected"}))
    assert found["path"].tolist() == [better.format("sub-01")]


def test_copies_of_one_label_image_are_one(tmp_path: Path) -> None:
    """Beside the scan and in derivatives/, as data sets are handed on."""
    bids(tmp_path / "data/ds", 2)
    beside = write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), mask())
    copy = tmp_path / "data" / PLACES["pipeline"].format("sub-01")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(beside.read_bytes())
    assert of(ingested(tmp_path, BY_NAME))["shows"].tolist() == ["lesion"]


def test_one_that_is_not_nifti_is_told_unless_there_is_one_that_is(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    for number in (1, 2):
        path = tmp_path / "data" / PLACES["derivatives"].format(f"sub-0{number}")
        path.parent.mkdir(parents=True)
        for ending in (".hdr", ".img"):
            path.with_name(path.name.replace(".nii.gz", ending)).touch()
    write_scan(tmp_path / "data" / PLACES["pipeline"].format("sub-02"), mask())
    outcome = ingested(tmp_path, BY_NAME)
    assert of(outcome).index.tolist() == ["ds_sub-02_ses-1"]
    assert outcome.notes.count("not NIfTI: expected .nii or .nii.gz. Convert it") == 1


def test_numbered_lesions_are_one_class(tmp_path: Path) -> None:
    bids(tmp_path / "data/ds", 2)
    voxels = sum(np.roll(mask(2, value=9 * n), 3 * n, axis=0) for n in range(1, 6)) + mask(1, 4)
    write_scan(tmp_path / "data" / PLACES["beside"].format("sub-01"), voxels)
    assert "or 'any' where lesions are numbered" in ingested(tmp_path, BY_NAME).notes
    found = of(ingested(tmp_path, {**BY_NAME, "values": {"lesion": "any"}}))
    assert found[["shows", "values"]].values.tolist() == [["lesion", "4,9,18,27,36,45"]]
    label = {**BY_NAME, "values": {"lesion": "any", "core": [4]}}
    found = of(ingested(tmp_path, label, classes=["core", "lesion"]))
    assert found[["shows", "values"]].values.tolist() == [["core+lesion", "4;9,18,27,36,45"]]


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
