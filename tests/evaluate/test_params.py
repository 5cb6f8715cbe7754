from __future__ import annotations

import pytest

from neurofoundry import params as parameters
from neurofoundry.errors import UsageError
from neurofoundry.evaluate.params import EvaluateParams


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference: scratch\nbootstraps: 10", "bootstraps"),
        ("reference: scratch\nmin_subjects: 1", "min_subjects"),
        ("bootstraps: 2000", "reference: missing"),
        ("reference: scratch\npromotion: {task: a, initialization: b, metric: f2, over: c}", "auc"),
        (
            "reference: s\npromotion: {task: a, initialization: b, metric: r2, over: c, split: no}",
            "promotion.split",
        ),
        ("reference: scratch\nbootstrap: 2000", "Did you mean 'bootstraps'"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(tmp_path, text, message):
    path = tmp_path / "evaluate.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        parameters.load(path, EvaluateParams)
