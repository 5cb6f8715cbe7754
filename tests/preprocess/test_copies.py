from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.sketches import sketch
from neurofoundry.contracts.volumes import SLOPE, Grid, open_volume, write_volume
from neurofoundry.preprocess.copies import describe, find_similar, refuse_copies
from tests.contracts.test_sketches import brain

GRID = Grid(spacing=3)


def cohort(folder: Path, scans: dict[str, tuple[str, Any]]) -> pd.DataFrame:
    """Write volumes, {scan: (person, voxels)}, and return their table."""
    rows = []
    for scan_id, (person, voxels) in scans.items():
        path = folder / f"{scan_id}.nii"
        write_volume(path, voxels.T * SLOPE, voxels.T != 0, GRID)
        drawn = sketch(open_volume(path, GRID))
        rows.append((scan_id, person, True, None, None, path.name, drawn))
    columns = ["scan_id", "person", "usable", "qc_decision", "reason", "volume", "sketch"]
    return pd.DataFrame(rows, columns=columns).astype({"qc_decision": object, "reason": object})


def mixed(share: float) -> Any:
    """A brain that has a ``share`` of the detail of brain 1."""
    return (share * brain(1) + np.sqrt(1 - share**2) * brain(9)).astype(np.int16)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, 20, brain(1).shape)
    copy = np.where(brain(1), np.rint(brain(1) * 1.01 + noise), 0).astype(np.int16)
    return cohort(
        tmp_path,
        {
            "a1": ("A", brain(1)),
            "a2": ("A", mixed(0.85)),
            "b": ("B", copy),
            "c": ("C", mixed(0.8)),
            "d": ("D", brain(3)),
        },
    )


def test_copies_under_two_names_are_set_aside_and_likely_rescans_listed(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    similar = find_similar(table, tmp_path, GRID)
    found = {tuple(sorted(pair)) for pair in similar[["scan_id", "other"]].itertuples(index=False)}
    assert found == {("a1", "b"), ("a1", "c"), ("a2", "b"), ("a2", "c"), ("b", "c")}
    refused = refuse_copies(table, similar)
    usable = dict(zip(refused["scan_id"], refused["usable"], strict=True))
    assert (usable["a1"], usable["b"], usable["d"]) == (False, False, True)
    assert refused.set_index("scan_id")["reason"]["b"].startswith("duplicate: the same image as a1")
    assert "copies under two names" in describe(similar)[0]


def test_a_copy_that_is_kept_by_hand_stays(table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[table["scan_id"] == "b", "qc_decision"] = "keep"
    refused = refuse_copies(table, find_similar(table, tmp_path, GRID)).set_index("scan_id")
    assert refused["usable"]["b"]
    assert not refused["usable"]["a1"]


def test_scans_of_one_person_and_those_set_aside_are_not_compared(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    table.loc[table["scan_id"].isin(["b", "c"]), "usable"] = False
    similar = find_similar(table, tmp_path, GRID)
    assert similar.empty
    assert describe(similar) == []
    pd.testing.assert_series_equal(refuse_copies(table, similar)["usable"], table["usable"])


def test_a_cohort_without_sketches_has_no_pairs(table: pd.DataFrame, tmp_path: Path) -> None:
    assert find_similar(table.assign(sketch=None), tmp_path, GRID).empty
