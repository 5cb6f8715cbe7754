from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.models import PREDICTIONS, RUNS
from neurofoundry.contracts.tables import hash_table, read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES
from neurofoundry.errors import DataError
from tests.support.scans import scans


def test_a_table_reads_back_as_written(tmp_path: Path) -> None:
    table = scans(age=[60.5, np.nan], usable=[True, False], reason=[None, "no brain"])
    table["volume"], table["volume_sha256"] = ["a.nii", None], ["0" * 64, None]
    write_table(table, tmp_path / "scans.tsv", VOLUMES)
    assert "n/a" in (tmp_path / "scans.tsv").read_text()
    assert "\ttrue\t" in (tmp_path / "scans.tsv").read_text()
    found = read_table(tmp_path / "scans.tsv", VOLUMES)
    assert found["usable"].tolist() == [True, False]
    assert found["age"].isna().tolist() == [False, True]
    assert found["reason"].isna().tolist() == [True, False]
    assert found["scanner"].isna().all()
    pd.testing.assert_frame_equal(
        found[["scan_id", "person", "sha256", "split"]],
        table[["scan_id", "person", "sha256", "split"]],
        check_dtype=False,
    )


def test_values_are_written_as_they_were_given(tmp_path: Path) -> None:
    run = {"task": "sex", "init": "a", "fraction": "1.0", "seed": 0, "status": "done"}
    write_table(pd.DataFrame([{**run, "reason": None}]), tmp_path / "runs.tsv", RUNS)
    assert "\nsex\ta\t1.0\t0\tdone\tn/a\n" in (tmp_path / "runs.tsv").read_text()
    row = {"scan_id": "a", "person": "p", "split": "val", "label": 61.0, "output": 1 / 3}
    write_table(pd.DataFrame([row]), tmp_path / "predictions.tsv", PREDICTIONS)
    assert (tmp_path / "predictions.tsv").read_text().endswith("\na\tp\tval\t61\t0.3333333333\n")


def test_truth_values_in_a_column_of_objects_read_back(tmp_path: Path) -> None:
    table = scans(usable=[True, False]).assign(reason=None, volume=None, volume_sha256=None)
    table["usable"] = table["usable"].astype(object)
    write_table(table, tmp_path / "scans.tsv", VOLUMES)
    assert read_table(tmp_path / "scans.tsv", VOLUMES)["usable"].tolist() == [True, False]


def test_no_cell_is_a_formula_and_all_read_back(tmp_path: Path) -> None:
    paths, sites = ["=HYPERLINK(1)/a.nii", "@b.nii"], ["-3", "+site"]
    labels = {"=1+1": ["a", "b"]}
    write_table(scans(path=paths, site=sites, **labels), tmp_path / "scans.tsv", SCANS)
    text = (tmp_path / "scans.tsv").read_text()
    assert all(f"\t'{cell}\t" in text for cell in (*paths, "+site"))
    assert "\t-3\t" in text
    assert text.splitlines()[0].endswith("\t'=1+1")
    found = read_table(tmp_path / "scans.tsv", SCANS)
    assert found["=1+1"].tolist() == ["a", "b"]
    assert (found["path"].tolist(), found["site"].tolist()) == (paths, sites)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ["train", "holdout"]),
        ("scan_id", ["same", "same"]),
        ("scan_id", ["a b", "c"]),
        ("age", [60.0, 200.0]),
        ("sex", ["F", "female"]),
        ("sha256", ["0" * 64, "abc"]),
        ("site", ["a", None]),
    ],
)
def test_a_value_that_breaks_the_contract_is_named(
    tmp_path: Path, column: str, values: list
) -> None:
    with pytest.raises(DataError, match=f"column '{column}'"):
        write_table(scans(**{column: values}), tmp_path / "scans.tsv", SCANS)
    assert not list(tmp_path.iterdir())


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'site'"):
        write_table(scans().drop(columns="site"), tmp_path / "scans.tsv", SCANS)
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "scans.tsv", SCANS)


def test_a_hash_is_of_the_values_in_their_order() -> None:
    table = scans(age=[60.5, 61.0])
    assert hash_table(table) == hash_table(table.copy())
    assert hash_table(table) != hash_table(table[::-1])
    assert hash_table(table) != hash_table(table.assign(age=[60.5, 61.5]))
