from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from neurofoundry.contracts.evaluation import (
    Decision,
    read_decision,
    read_metrics,
    write_decision,
    write_metrics,
)
from neurofoundry.contracts.models import (
    PREDICTIONS,
    RUNS,
    ModelPlan,
    read_model_plan,
    write_model_plan,
)
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Grid, Volumes, VolumesRecord, write_record
from neurofoundry.errors import DataError
from tests.support.plans import model_plan


class TestModelPlan:
    def test_it_reads_back_as_written_and_knows_its_task(self, tmp_path: Path) -> None:
        written = ModelPlan.model_validate(model_plan())
        write_model_plan(tmp_path, written)
        read = read_model_plan(tmp_path)
        assert read == written
        assert read.predicts.output_columns == ("p_F", "p_M")
        assert read.weights.grid["spacing_mm"] == 6.0

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"task": {"kind": "classification", "column": "sex"}}, "no name"),
            ({"task": {"name": "x", "kind": "survival", "column": "sex"}}, "task"),
            ({"initialization": {"name": "x", "encoder": "y", "mode": "guess"}}, "mode"),
            ({"schema_version": 2}, "schema_version"),
            ({"extra": 1}, "extra"),
        ],
    )
    def test_what_is_no_plan_is_named_with_what_to_do(
        self, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        (tmp_path / "plan.json").write_text(json.dumps(model_plan(**change)))
        with pytest.raises(DataError, match=rf"{words}[\s\S]*run finetune again\.") as raised:
            read_model_plan(tmp_path)
        assert str(tmp_path / "plan.json") in str(raised.value)

    def test_no_file_is_told_as_well(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="not the plan of a model"):
            read_model_plan(tmp_path)


SCORES = {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}, "subjects": 20, "scans": 22}


class TestMetrics:
    def test_they_read_back_as_written(self, tmp_path: Path) -> None:
        unknown = {"value": None, "low": None, "high": None, "reason": "too few subjects"}
        content = {"sex": {"simclr": {"1.0": {"test": SCORES, "ood": {**SCORES, "auc": unknown}}}}}
        write_metrics(tmp_path, content)
        assert json.loads((tmp_path / "metrics.json").read_text()) == content
        assert read_metrics(tmp_path) == content

    @pytest.mark.parametrize("score", [{"value": 0.8}, {"value": "high", "low": 0, "high": 1}, 0.8])
    def test_what_breaks_the_contract_is_never_written(self, tmp_path: Path, score: Any) -> None:
        content = {"sex": {"simclr": {"1.0": {"test": {"auc": score}}}}}
        with pytest.raises(ValidationError):
            write_metrics(tmp_path, content)
        assert not list(tmp_path.iterdir())
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="not the metrics of an evaluation"):
            read_metrics(tmp_path)


def test_a_decision_reads_back_as_written_and_a_torn_one_is_named(tmp_path: Path) -> None:
    decision = Decision(promoted=False, reason="no rule.", rule=None, difference=None)
    write_decision(tmp_path, decision)
    assert read_decision(tmp_path) == decision
    (tmp_path / "promotion.json").write_text('{"promoted": true')
    with pytest.raises(DataError, match=r"promotion\.json: not a decision on promotion"):
        read_decision(tmp_path)
    (tmp_path / "promotion.json").write_text('{"promoted": true}')
    with pytest.raises(DataError, match="reason: Field required"):
        read_decision(tmp_path)


def test_grid_json_is_checked_when_it_is_written_and_when_it_is_read(tmp_path: Path) -> None:
    write_record(tmp_path, VolumesRecord(grid=Grid(spacing=3.0).describe(), params={"a": None}))
    assert Volumes(tmp_path).grid == Grid(spacing=3.0)
    assert json.loads((tmp_path / "grid.json").read_text())["params"] == {"a": None}
    with pytest.raises(ValidationError, match="spacing_mm"):
        VolumesRecord(grid={}, params={})
    (tmp_path / "grid.json").write_text(json.dumps({"grid": {"spacing_mm": 7}, "params": {}}))
    with pytest.raises(DataError, match="must divide 192 mm"):
        Volumes(tmp_path)


def test_tables_of_models_are_checked_when_they_are_written(tmp_path: Path) -> None:
    run = {"task": "sex", "init": "a", "fraction": 1.0, "seed": 0, "status": "done", "reason": None}
    write_table(pd.DataFrame([run]), tmp_path / "runs.tsv", RUNS)
    with pytest.raises(DataError, match="column 'status'"):
        write_table(pd.DataFrame([{**run, "status": "half"}]), tmp_path / "runs.tsv", RUNS)
    with pytest.raises(DataError, match="break the table's contract"):
        write_table(pd.DataFrame([run, run]), tmp_path / "runs.tsv", RUNS)
    row = {"scan_id": "a", "person": "p", "split": "train", "label": "F"}
    with pytest.raises(DataError, match="column 'split'"):
        write_table(pd.DataFrame([row]), tmp_path / "predictions.tsv", PREDICTIONS)
