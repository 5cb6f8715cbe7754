from __future__ import annotations

import itertools
from typing import Any

import pytest

from neurofoundry.finetune import runs
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.runs import Run
from neurofoundry.runtime.stage import Shard

TASKS = ("diagnosis", "age")
VALUES: dict[str, Any] = {
    "initializations": {
        "scratch": {"encoder": "random", "mode": "finetune"},
        "simclr": {"encoder": "simclr", "mode": "finetune"},
        "probe": {"encoder": "simclr", "mode": "probe"},
        "untrained": {"encoder": "random", "mode": "probe"},
    },
    "fractions": [0.5, 1.0],
    "seeds": [0, 1],
}
PARAMS = FinetuneParams.model_validate(VALUES)


def test_every_combination_is_declared_once_in_order() -> None:
    declared = runs.declared(TASKS, PARAMS)
    assert len(declared) == len(set(declared)) == 2 * 4 * 2 * 2
    assert [run.name for run in declared[:3]] == [
        "diagnosis/scratch/0.5/0",
        "diagnosis/scratch/0.5/1",
        "diagnosis/scratch/1.0/0",
    ]
    assert declared[-1] == Run("age", "untrained", 1.0, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_every_model_is_of_one_shard_and_the_probes_of_an_encoder_share_one(count: int) -> None:
    declared = runs.declared(TASKS, PARAMS)
    shards = [runs.of_shard(declared, PARAMS, Shard(number + 1, count)) for number in range(count)]
    assert sorted(itertools.chain(*shards), key=declared.index) == declared
    for shard in shards:
        assert shard == sorted(shard, key=declared.index)
    for init, groups in (("probe", [(0, 1)]), ("untrained", [(0,), (1,)])):
        for seeds in groups:
            probes = {run for run in declared if run.init == init and run.seed in seeds}
            assert sum(bool(probes & set(shard)) for shard in shards) == 1
    most = PARAMS.most_shards(len(TASKS))
    assert most == 2 * 2 * 2 * 2 + 3
    assert sum(map(bool, shards)) == min(count, most)


def test_every_fold_of_a_tuned_model_can_be_a_shard() -> None:
    declared = runs.declared(TASKS, PARAMS, folds=5)
    assert declared[4].name == "diagnosis/scratch/0.5/0/fold-5"
    most = PARAMS.most_shards(len(TASKS), folds=5)
    shards = [runs.of_shard(declared, PARAMS, Shard(number + 1, most)) for number in range(most)]
    assert all(shards)
    assert sorted(itertools.chain(*shards), key=declared.index) == declared


class TestEncodersToDescribe:
    def test_the_whole_describes_every_encoder_once(self) -> None:
        declared = runs.declared(TASKS, PARAMS)
        described = runs.encoders_to_describe(declared, declared, PARAMS, Shard())
        assert described == ["random", "simclr"]
        assert runs.encoders_to_describe([], [], PARAMS, Shard()) == []

    def test_a_shard_describes_those_of_its_probes_and_of_the_first_seed(self) -> None:
        part, declared = Shard(1, 2), runs.declared(TASKS, PARAMS)
        for run, names in [
            (Run("age", "scratch", 1.0, 0), []),
            (Run("age", "simclr", 1.0, 0), []),
            (Run("age", "probe", 1.0, 1), ["simclr"]),
            (Run("age", "untrained", 1.0, 0), ["random"]),
            (Run("age", "untrained", 1.0, 1), []),
        ]:
            assert runs.encoders_to_describe([run], declared, PARAMS, part) == names, run

    @pytest.mark.parametrize("count", [1, 2, 5])
    @pytest.mark.parametrize("probe", [True, False])
    def test_between_them_the_shards_describe_every_encoder_once(
        self, count: int, probe: bool
    ) -> None:
        """The run that takes them together has nothing left to compute, and no GPU."""
        kept = [name for name in PARAMS.initializations if probe or name in ("scratch", "simclr")]
        inits = {name: PARAMS.initializations[name] for name in kept}
        params = PARAMS.model_copy(update={"initializations": inits})
        declared = runs.declared(TASKS, params)
        described = [
            name
            for number in range(count)
            for name in runs.encoders_to_describe(
                runs.of_shard(declared, params, Shard(number + 1, count)),
                declared, params, Shard(number + 1, count),
            )
        ]  # fmt: skip
        assert sorted(described) == ["random", "simclr"]
