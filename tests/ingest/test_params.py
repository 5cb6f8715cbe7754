from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from neurofoundry.ingest.params import IngestParams
from tests.support.building import ALL_PRETRAIN


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"columns": {"split": {"from": ["x"]}}}, "'split' is set by the pipeline itself"),
        ({"columns": {"age": {"from": ["x"], "values": {"1": ["a"]}}}}, "`values` has no effect"),
        ({"columns": {"sex": {"from": ["x"], "values": {"f": ["a"]}}}}, "values are F and M"),
        ({"columns": {"d": {"from": []}}}, "at least 1 item"),
        ({"columns": {"d": {"from": ["x"], "values": {False: ["no"]}}}}, "without quotes"),
        ({"columns": {"d": {"from": ["x"], "values": {"no": [False]}}}}, "without quotes"),
        ({"columns": {"d": {"from": ["x"], "values": {"a": ["1"], "b": [1]}}}}, "under two values"),
        ({"datasets": "all"}, "expected 'auto' or a list"),
        ({"datasets": [{"name": "a", "kind": "bids", "path": "../x"}]}, "below the data root"),
        ({"datasets": [{"name": "a", "kind": "bids", "path": "/x"}]}, "below the data root"),
        ({"datasets": [{"name": "a\n", "kind": "bids", "path": "x"}]}, "without line breaks"),
        ({"datasets": [{"name": "a", "kind": "bids", "path": "x"}] * 2}, "two datasets are called"),
        ({"shared_subjects": [["a", "b"], ["b", "c"]]}, "a dataset is in two groups"),
        ({"shared_subjects": [["a"]]}, "at least two datasets"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IngestParams.model_validate({"splits": ALL_PRETRAIN, **params})
