from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from neurofoundry.tasks import Segmentation, Tasks, of_one_label, segmentations

TWO = {"kind": "segmentation", "classes": ["core", "edema"], "label": {"suffix": "dseg"}}


def parsed(**tasks: dict[str, Any]) -> dict[str, Any]:
    return dict(TypeAdapter(Tasks).validate_python(tasks))


def test_the_column_has_the_name_of_the_task() -> None:
    age = {"kind": "regression", "column": "age"}
    tasks = parsed(stroke=TWO, age=age)
    assert tasks["stroke"].column == "stroke"
    assert list(of_one_label(tasks)) == ["age"]
    assert list(segmentations(tasks)) == ["stroke"]
    again = Segmentation.model_validate(tasks["stroke"].model_dump(mode="json"))
    assert again == tasks["stroke"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "at least one class"),
        ({"classes": ["a", "a"]}, "duplicate among a, a"),
        ({"classes": ["a+b"]}, "'a\\+b' is not letters"),
        ({"classes": ["empty"]}, "'empty' says"),
        ({"label": {}}, "either suffix, with entities as in the name, or column"),
        ({"label": {"suffix": "mask", "column": "c"}}, "either suffix"),
        ({"label": {"column": "c", "desc": "x"}}, "desc: no effect with column"),
        ({"label": {"suffix": "mask", "desc": "a-b"}}, "desc: 'a-b' is not letters and digits"),
        ({"label": {"suffix": "mask", "values": {"core": [1]}}}, "label.values: found core"),
        ({"label": {"suffix": "mask", "values": dict.fromkeys(TWO["classes"], "any")}}, "twice"),
        ({"label": {"suffix": "mask", "dsc": "x"}}, "dsc"),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        parsed(stroke={**TWO, **change})


def test_gaps_count_persons_of_whom_each_class_is_outlined() -> None:
    task = parsed(stroke=TWO)["stroke"]
    scans = pd.DataFrame(
        {
            "person": list("abcdef"),
            "split": ["train", "train", "val", "val", "test", "test"],
            "stroke": ["core+edema", "core+edema", "core", "core+edema", "core+edema", None],
        }
    )
    assert task.gap(scans, {"train": 2, "val": 1, "test": 1}) is None
    gap = task.gap(scans, {"val": 2})
    assert gap == "split 'val' has 1 subject with edema outlined, 2 are needed"
    chosen = task.select(scans)
    assert task.targets(chosen).tolist() == [1] * 5
    assert task.describe_labels(chosen) == (
        "5 with core outlined, 4 with edema outlined, 0 with an empty label image"
    )


def test_nobody_with_a_lesion_is_a_shortage() -> None:
    task = parsed(stroke=TWO)["stroke"]
    rows = pd.Series([0.0, 0.0, 1.0], index=list("aab"))
    assert task.strata(rows).to_dict() == {"a": 0, "b": 1}
    assert task.shortage(task.strata(rows), rows) == (
        "1 subject of whom anything is outlined, 2 are needed"
    )
