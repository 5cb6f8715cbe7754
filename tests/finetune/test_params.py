from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from neurofoundry.finetune.params import FinetuneParams, Tuning
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
        ({"learning_rate": []}, "at least 1 item"),
        ({"learning_rate": [1e-3, 1e-3]}, "duplicate value"),
        (
            {"initializations": {"a": {"encoder": "random", "mode": "probe", "freeze": 2}}},
            "freeze: no effect with mode 'probe'",
        ),
        (
            {
                "initializations": {
                    "a": {"encoder": "random", "mode": "finetune"},
                    "b": {"encoder": "sfcn", "mode": "finetune", "learning_rate": [0.1, 0.01]},
                    "c": {"encoder": "random", "mode": "probe"},
                }
            },
            "found a 1, b 2. Give as many for each",
        ),
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


def test_an_initialization_is_tuned_as_finetune_says_or_as_it_says_itself() -> None:
    params = FinetuneParams.model_validate(
        {
            **FINETUNED,
            "learning_rate": [1e-3, 1e-2],
            "layer_decay": 0.9,
            "initializations": {
                "plain": {"encoder": "random", "mode": "finetune"},
                "own": {
                    "encoder": "simclr",
                    "mode": "finetune",
                    "learning_rate": [1e-4, 1e-5],
                    "layer_decay": 0.5,
                    "epochs": 2,
                    "freeze": 1,
                    "head": "probe",
                },
            },
        }
    )
    assert params.tuning("plain") == Tuning((1e-3, 1e-2), 0.9, 6, 0, "zeros")
    assert params.tuning("own") == Tuning((1e-4, 1e-5), 0.5, 2, 1, "probe")
