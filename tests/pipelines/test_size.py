from __future__ import annotations

from pathlib import Path

import pytest

from neurofoundry.errors import UsageError
from neurofoundry.params import load
from neurofoundry.project import AUTOMATIC_SHARDS, Params
from pipelines import size

PARAMS = load(Path(__file__).parents[2] / "params.yaml", Params)


def test_the_estimate_is_that_of_the_run_that_was_measured() -> None:
    estimated = size.estimate(preprocess_shards=100, finetune_shards=40, methods=1)
    # The text of the parameters stood in the command of every step then.
    estimated += (100 * 2_900 + 40 * 3_800) * size.PATCHES // size.RATIO
    assert estimated == pytest.approx(0.90e6 + size.SPEC, rel=0.06)
    assert estimated > 0.95 * size.LIMIT  # it was the last version that fitted


@pytest.mark.parametrize(("scans", "methods"), [(4, 1), (32, 2), (60, 3), (400, 1)])
def test_the_shards_that_are_chosen_are_the_most_that_fit(scans: int, methods: int) -> None:
    most = size.most_finetune_shards(preprocess_shards=scans, methods=methods)
    given = {"preprocess_shards": scans, "methods": methods}
    if most > 1:
        size.check(finetune_shards=most, **given)
    with pytest.raises(UsageError, match="would grow"):
        size.check(finetune_shards=most + 1, **given)


def test_the_paper_s_study_fits() -> None:
    """4 tasks, 5 initializations, 5 fractions and 3 seeds: 300 models."""
    task = next(iter(PARAMS.tasks.values()))
    start = {"encoder": "random", "mode": "finetune"}
    changed = PARAMS.finetune.model_copy(
        update={
            "initializations": {
                str(i): type(next(iter(PARAMS.finetune.initializations.values()))).model_validate(
                    start
                )
                for i in range(5)
            },
            "fractions": (0.1, 0.2, 0.3, 0.5, 1.0),
            "seeds": (0, 1, 2),
        }
    )
    study = PARAMS.model_copy(
        update={"finetune": changed, "tasks": {str(i): task for i in range(4)}}
    )
    assert changed.most_shards(4) == 300
    shards = study.finetune_shards(0)
    assert shards == AUTOMATIC_SHARDS
    # 45,000 scans in 32 shards are 1,400 each.
    assert shards <= size.most_finetune_shards(preprocess_shards=32, methods=2)
    size.check(preprocess_shards=32, finetune_shards=shards, methods=2)


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"would grow to 0\.95 MB .*\(100 shards .* 64 of"):
        size.check(preprocess_shards=100, finetune_shards=64, methods=1)


def test_asked_for_shards_are_those_that_are_made() -> None:
    assert PARAMS.finetune_shards(40) == 40
