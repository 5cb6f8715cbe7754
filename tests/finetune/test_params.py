from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from neurofoundry.finetune.params import FinetuneParams
from tests.support.tiny import FINETUNED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"initializations": {}}, "at least 1 item"),
        ({"initializations": {"a/b": {"encoder": "random", "mode": "probe"}}}, "match pattern"),
        ({"initializations": {"..": {"encoder": "random", "mode": "probe"}}}, "match pattern"),
        ({"initializations": {"a": {"encoder": "a/b", "mode": "probe"}}}, "match pattern"),
        ({"initializations": {"baseline-a": {"encoder": "random", "mode": "probe"}}}, "reserved"),
        ({"fractions": [0.5, 0.5]}, "duplicate value"),
        ({"fractions": [0]}, "greater than 0"),
        ({"fractions": [1.5]}, "less than or equal to 1"),
        ({"fractions": []}, "at least 1 item"),
        ({"seeds": [1, 1]}, "duplicate value"),
        ({"seeds": []}, "at least 1 item"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"epoch": 3}, "Extra inputs"),
        (
            {"explain": {"initializations": ["mae"]}},
            r"'mae' is not one of initializations \(scratch",
        ),
        ({"explain": {"initializations": []}}, "at least 1 item"),
        ({"explain": {"initializations": ["scratch"], "scans": 1}}, "greater than or equal to 2"),
        ({"explain": {"initializations": ["scratch"], "steps": 1}}, "greater than or equal to 4"),
    ],
)
def test_parameters_without_sense_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FinetuneParams.model_validate({**FINETUNED, **change})
