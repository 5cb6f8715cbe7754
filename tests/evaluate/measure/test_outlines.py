"""Outlines whose quality is known are judged as they are, and floors as a loop makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from neurofoundry.contracts.labels import FILE, open_classes
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate.measure import outlines
from neurofoundry.evaluate.measure.outlines import Outlines
from tests.support import outlined
from tests.support.tiny import GRID


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("outlines")
    volumes = outlined.write_volumes(root / "volumes", 42)
    return volumes, outlined.write_models(root / "models", volumes)


@pytest.fixture(scope="module")
def measured(folders: tuple[Path, Path]) -> Outlines:
    return outlined.measure(*folders)


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
    assert set(measured.differences["init"]) == {
        *("perfect", "perfect-ensemble", outlines.OTSU, outlines.ATLAS),
    }


def test_several_models_as_one_are_compared_with_several(measured: Outlines) -> None:
    """They miss by a voxel more than each of them: what was written for them is what counts."""
    values = {
        init: cell(measured.measures, init=init, split="test", metric="dice")["value"]
        for init in ("shifted", "perfect-ensemble", "shifted-ensemble")
    }
    assert values["perfect-ensemble"] == values["shifted"] > values["shifted-ensemble"]
    row = cell(measured.differences, init="perfect-ensemble", split="test", metric="dice")
    assert row["versus"] == "shifted-ensemble"
    assert row["value"] == pytest.approx(values["perfect-ensemble"] - values["shifted-ensemble"])


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


def test_groups_of_people_have_their_own_dice(
    measured: Outlines, folders: tuple[Path, Path]
) -> None:
    """The oracle is the table of single scans; groups of fewer than five keep even their count."""
    age = Volumes(folders[0]).scans.set_index("scan_id")["age"]
    table = measured.subgroups
    scans = measured.scans.query("init == 'shifted' and split == 'test'")
    part = scans[age[scans["scan_id"]].between(60, 79).to_numpy()]
    row = cell(table, init="shifted", split="test", variable="age", group="60–79")
    assert row["value"] == pytest.approx(part["dice"].mean())
    assert row["low"] < row["value"] < row["high"]
    assert row["persons"] == part["person"].nunique()
    few = table[table["reason"].notna()]
    assert set(few["reason"]) == {"fewer than 5 persons"}
    assert few[["value", "low", "high", "persons"]].isna().all(axis=None)


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
    only = outlined.measure(*folders, inits=("shifted",))
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
