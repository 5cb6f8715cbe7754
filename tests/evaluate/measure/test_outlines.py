"""Outlines whose quality is known are judged as they are, and floors as a loop makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from neurofoundry.contracts.labels import CARRIED, FILE, open_classes, write_classes
from neurofoundry.contracts.masks import pack, write_masks
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate.measure import outlines
from neurofoundry.evaluate.measure.outlines import Outlines
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Segmentation
from tests.support import tiny
from tests.support.tiny import GRID

TASK = Segmentation.model_validate(
    {"kind": "segmentation", "column": "hole", "classes": ["hole"], "label": {"suffix": "mask"}}
)
INITS = ("shifted", "perfect")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Volumes with a dark ball that is outlined, and models that know it or miss it by a voxel."""
    root = tmp_path_factory.mktemp("outlines")
    scans, volumes, models = tiny.scans_table(42), root / "volumes", root / "models"
    tiny.write_volumes(volumes, scans)
    middle = ((np.array(GRID.shape) - 1) / 2)[:, None, None, None]
    radius = np.sqrt((((np.indices(GRID.shape) - middle) / middle) ** 2).sum(0)) / 0.8
    rows, truth = [], {}
    for scan in scans.itertuples():
        classes = (radius < (0.5 if scan.diagnosis == "AD" else 0.35)).astype(np.uint8)
        path = volumes / FILE.format(scan_id=scan.scan_id, task="hole")
        write_classes(path, classes, GRID.affine)
        truth[scan.scan_id] = classes.transpose(2, 1, 0)
        ml = classes.sum() * 0.1
        row = ("hole", scan.scan_id, "a.nii", "0" * 64, "1", "hole", ml, hash_file(path), ml)
        rows.append((*row, 0.1, None))
    write_table(pd.DataFrame(rows, columns=list(CARRIED.columns)), volumes / "labels.tsv", CARRIED)
    tiny.with_scans(volumes, scans.assign(hole="hole"))
    held_out = scans[scans["split"].isin(["val", "test", "ood"])].assign(label="hole")
    for init, steps in zip(INITS, (1, 0), strict=True):
        folder = models / "hole" / init / "1.0" / "0"
        folder.mkdir(parents=True)
        masks = {
            scan_id: pack(np.roll(truth[scan_id], steps, axis=0), 1)
            for scan_id in held_out["scan_id"]
        }
        write_masks(folder / "masks.npz", masks)
        write_table(held_out, folder / "predictions.tsv")
        losses = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.9, 0.2 + 0.1 * steps]})
        write_table(losses, folder / "history.tsv")
    return volumes, models


@pytest.fixture(scope="module")
def measured(folders: tuple[Path, Path]) -> Outlines:
    volumes, models = folders
    runs = pd.DataFrame(
        [("hole", init, 1.0, 0, "done") for init in INITS],
        columns=["task", "init", "fraction", "seed", "status"],
    )
    return outlines.measure(
        {"hole": TASK}, runs, Volumes(volumes), models, reference="shifted", fewest=3
    )


def cell(table: pd.DataFrame, **where: str) -> pd.Series:
    chosen = table
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_known_error_is_measured(measured: Outlines, folders: tuple[Path, Path]) -> None:
    volumes, _ = folders
    scans = Volumes(volumes).scans
    tested = scans[scans["split"] == "test"]
    expected = []
    for scan_id in tested["scan_id"]:
        path = volumes / FILE.format(scan_id=scan_id, task="hole")
        truth = open_classes(path, GRID) == 1
        expected.append(dice(truth, np.roll(truth, 1, axis=0)))
    row = cell(measured.measures, init="shifted", split="test", metric="dice")
    assert row["value"] == pytest.approx(np.mean(expected))
    assert row["low"] < row["value"] < row["high"]
    assert (row["persons"], row["scans"]) == (tested["person"].nunique(), len(tested))
    perfect = cell(measured.measures, init="perfect", split="ood", metric="dice")
    assert perfect["value"] == 1
    shifted = cell(measured.measures, init="shifted", split="test", metric="hd95_mm")
    assert shifted["value"] == 6
    assert cell(measured.measures, init="shifted", split="test", metric="volume_error_ml")[
        "value"
    ] == pytest.approx(0)
    empty = cell(measured.measures, init="perfect", split="test", metric="nothing_found")
    assert (empty["value"], empty["reason"]) == (None, "0 persons, 3 are needed") or np.isnan(
        empty["value"]
    )


def test_differences_are_paired(measured: Outlines) -> None:
    row = cell(measured.differences, init="perfect", split="test", metric="dice")
    low = cell(measured.measures, init="shifted", split="test", metric="dice")["value"]
    assert row["versus"] == "shifted"
    assert row["value"] == pytest.approx(1 - low)
    assert 0 < row["low"] < row["value"] < row["high"]
    assert row["p"] < 0.001
    assert set(measured.differences["init"]) == {"perfect", outlines.OTSU, outlines.ATLAS}


def test_volumes_agree_as_bland_and_altman_have_it(measured: Outlines) -> None:
    """The oracle is the table of single scans, one a person but for a few."""
    scans = measured.scans[measured.scans["init"] == outlines.ATLAS]
    scans = scans[scans["split"] == "test"]
    row = cell(measured.volumes, init=outlines.ATLAS, split="test")
    apart = scans["found_ml"] - scans["true_ml"]
    assert row["bias"] == pytest.approx(apart.mean())
    assert row["limit_high"] == pytest.approx(apart.mean() + 1.96 * apart.std())
    assert row["low"] < row["bias"] < row["high"]
    assert np.isnan(row["correlation"])  # the atlas outlines the same for everybody
    assert cell(measured.volumes, init="perfect", split="ood")["correlation"] == pytest.approx(1)


def test_examples_are_of_the_model_that_validation_chose(measured: Outlines) -> None:
    assert measured.chosen == {"hole": "perfect"}
    assert [each.place for each in measured.examples] == ["best", "median", "worst"]
    for each in measured.examples:
        assert each.dice == 1
        np.testing.assert_array_equal(each.truth, each.found)
        assert each.true_ml == pytest.approx(each.truth.sum() * 0.1)


def test_the_worst_scan_is_the_one_that_fits_least(
    measured: Outlines, folders: tuple[Path, Path]
) -> None:
    volumes, models = folders
    runs = pd.DataFrame(
        [("hole", "shifted", 1.0, 0, "done")],
        columns=["task", "init", "fraction", "seed", "status"],
    )
    only = outlines.measure(
        {"hole": TASK}, runs, Volumes(volumes), models, reference="shifted", fewest=3
    )
    scans = only.scans[(only.scans["init"] == "shifted") & (only.scans["split"] == "test")]
    best, _, worst = only.examples
    assert (best.dice, worst.dice) == pytest.approx((scans["dice"].max(), scans["dice"].min()))


def test_floors_need_no_network(measured: Outlines) -> None:
    """The ball is dark, so that Otsu finds it; the atlas is the ball of most of the training."""
    otsu = cell(measured.measures, init=outlines.OTSU, split="test", metric="dice")
    atlas = cell(measured.measures, init=outlines.ATLAS, split="test", metric="dice")
    assert otsu["value"] > 0.6
    assert 0.5 < atlas["value"] < 1
    assert "Dice" in next(outlines.describe(measured))


def test_the_threshold_is_that_of_a_loop() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(-2, 0.5, 400), random.normal(1, 0.7, 900)])

    def between(level: float) -> float:
        low, high = values[values <= level], values[values > level]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    levels = np.linspace(-3, 2, 500)
    best = levels[int(np.argmax([between(level) for level in levels]))]
    assert outlines.otsu(values) == pytest.approx(best, abs=0.1)
