from __future__ import annotations

from dataclasses import replace

from neurofoundry.contracts.encoder import Pretraining
from neurofoundry.evaluate.report.limits import limits
from neurofoundry.evaluate.results import Results


def told(results: Results, *, sizes: bool) -> str:
    seen = Pretraining(data_version="v", persons=9, scans=9, epochs=1, seed=0, sizes=sizes)
    encoders = tuple(
        replace(each, plan=each.plan.model_copy(update={"pretraining": seen}))
        for each in results.inputs.encoders
    )
    return " ".join(limits(replace(results, inputs=replace(results.inputs, encoders=encoders))))


def test_morphometry_that_was_taught_is_said_to_be_no_baseline(results: Results) -> None:
    assert "no independent baseline for simclr" in told(results, sizes=True)
    assert "independent baseline" not in told(results, sizes=False)
    assert "independent baseline" not in " ".join(limits(results))
