from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from neurofoundry.preprocess.params import Bounds, PreprocessParams, QualityParams
from neurofoundry.preprocess.quality import MEASURES, _local_correlation, judge

GOOD = {
    "coverage": 1.0,
    "in_box": 1.0,
    "mask_ml": 1400.0,
    "mask_dice": 0.95,
    "template_correlation": 0.7,
    "template_nmi": 1.1,
    "local_correlation": 0.7,
    "contrast": 0.9,
    "rotation_deg": 8.0,
    "scale": 0.92,
    "determinant": 0.78,
    "stretch": 1.1,
}


def test_a_good_scan_has_no_reason_and_every_bound_has_a_measure() -> None:
    assert judge(GOOD, QualityParams()) is None
    assert set(GOOD) == set(MEASURES)
    assert set(QualityParams.model_fields) <= set(MEASURES)


@pytest.mark.parametrize("name", list(QualityParams.model_fields))
def test_every_bound_is_kept_on_both_sides_and_named_in_the_reason(name: str) -> None:
    bound = getattr(QualityParams(), name)
    for end, beyond in ((bound.min, -1e-3), (bound.max, 1e-3)):
        if end is not None:
            assert judge({**GOOD, name: end}, QualityParams()) is None
            reason = judge({**GOOD, name: end + beyond}, QualityParams())
            assert reason is not None
            assert reason.startswith(MEASURES[name] + ":")
    assert judge({**GOOD, name: float("nan")}, QualityParams())


def test_bounds_that_bound_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="min, max or both"):
        Bounds()
    with pytest.raises(ValidationError, match="less than max"):
        Bounds(min=2, max=1)
    with pytest.raises(ValidationError, match="rotation_degrees"):
        PreprocessParams.model_validate({"quality": {"rotation_degrees": {"max": 3}}})


def test_local_correlation_agrees_with_correlations_counted_window_by_window() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((9, 8, 7), dtype=np.float32)
    b = (a + rng.random(a.shape, dtype=np.float32)).astype(np.float32)
    inside = np.ones(a.shape, bool)
    inside[:2] = False
    expected = []
    for i, j, k in np.argwhere(inside):
        window = tuple(slice(max(n - 2, 0), n + 3) for n in (i, j, k))
        chosen = inside[window]
        expected.append(np.corrcoef(a[window][chosen], b[window][chosen])[0, 1])
    assert _local_correlation(a, b, inside) == pytest.approx(np.mean(expected), abs=1e-4)
