from __future__ import annotations

import pytest
from pydantic import ValidationError

from neurofoundry.phantom.params import PhantomParams


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": 3},
        {"seed": -1},
        {"spacing_mm": 0.2},
        {"two_session_fraction": 1.1},
        {"travelling_fraction": 0.96},
        {"ad_effect": -1},
        {"stroke_ml": 0},
        {"lesion_load": 9},
        {"contrasts": ["FLAIR"]},
        {"contrasts": ["T1w", "FLAIR", "FLAIR"]},
        {"contrasts": ["T1w", "bold"]},
        {"subject": 10},
    ],
)
def test_parameters_out_of_range_or_unknown_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PhantomParams.model_validate(wrong)
