from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.splits import TASKS, cohort, measure, modes
from neurofoundry.contracts.splits import Splits
from neurofoundry.ingest import splits, stratified
from neurofoundry.ingest.stratified import Group
from neurofoundry.tasks import parse_task

SHARES = {"pretrain": 0.2, "train": 0.4, "val": 0.15, "test": 0.25}


@pytest.mark.parametrize("file", ["params.yaml", "neurofoundry/presets/first-look.yaml"])
def test_a_study_of_sixty_can_be_split_where_a_hash_cannot(file: str) -> None:
    found = {name: measure(params, cohorts=10, exact=True) for name, params in modes(file)}
    assert found.pop("hash")["judged"] < 0.5
    assert [each["feasible"] for each in found.values()] == [1.0, 1.0]
    assert [each["judged"] for each in found.values()] == [1.0, 1.0]


def test_sizes_and_groups_are_within_a_person_or_two_of_their_shares() -> None:
    rng = np.random.default_rng(11)
    for seed in range(20):
        persons = [f"p{number}" for number in range(int(rng.integers(50, 150)))]
        values = {kind: rng.choice(4, size=len(persons), p=[0.4, 0.3, 0.2, 0.1]) for kind in "abc"}
        among = [
            Group(f"{kind}{value}", frozenset(np.array(persons)[values[kind] == value]), kind_of)
            for kind, kind_of in zip("abc", ("class", "other", "other"), strict=True)
            for value in range(4)
        ]
        dealt = pd.Series(stratified.deal(persons, SHARES, among, key=str(seed)))
        for group in [Group("all", frozenset(persons), "everybody"), *among]:
            counts = dealt[list(group.persons)].value_counts().reindex(list(SHARES), fill_value=0)
            expected = len(group.persons) * pd.Series(SHARES)
            assert (counts - expected).abs().max() < {"other": 4}.get(group.kind, 2.5), group.name


def test_rare_classes_of_several_tasks_reach_every_split_that_needs_them() -> None:
    tasks = {
        name: parse_task({"kind": "classification", "column": name, "classes": ["no", "yes"]})
        for name in ("stroke", "tumour")
    }
    rng = np.random.default_rng(5)
    for seed in range(20):
        rows = cohort(seed, exact=True)
        for name in tasks:
            rows[name] = np.where(rng.permutation(len(rows)) < 6, "yes", "no")
        dealt = splits.assign(rows, Splits(mode="stratified", **SHARES), tasks | TASKS, seed=seed)
        assert [task.gap(dealt) for task in tasks.values()] == [None, None]


def test_it_depends_on_the_persons_not_on_the_order_of_their_scans() -> None:
    rows = cohort(3, exact=False)
    params = Splits(mode="stratified", **SHARES)
    one = splits.assign(rows, params, TASKS, seed=1).set_index("person")["split"]
    other = splits.assign(rows[::-1], params, TASKS, seed=1).set_index("person")["split"]
    assert one.equals(other[one.index])
    assert not one.equals(splits.assign(rows, params, TASKS, seed=2).set_index("person")["split"])


def test_the_scans_of_a_person_stay_together_and_out_of_distribution_comes_first() -> None:
    rows = cohort(4, exact=True)
    again = rows[:30].assign(scan_id=rows["scan_id"][:30] + "b", dataset="b")
    both = pd.concat([rows, again], ignore_index=True)
    params = Splits(mode="stratified", ood={"dataset": ("b",)}, **SHARES)
    dealt = splits.assign(both, params, TASKS, seed=1)
    assert (dealt.groupby("person")["split"].nunique() == 1).all()
    in_b = both["person"].isin(both["person"][both["dataset"] == "b"])
    assert ((dealt["split"] == "ood") == in_b).all()


@pytest.mark.parametrize(("ill", "tested"), [(12, 6), (10, 6), (9, 5), (8, 2), (5, 2)])
def test_as_many_are_tested_as_numbers_take_before_others_get_more(ill: int, tested: int) -> None:
    rows = cohort(2, exact=True)
    few = rows.drop(rows.index[rows["diagnosis"] == "AD"][ill:])
    params = Splits(mode="stratified", pretrain=0.5, train=0.25, val=0.1, test=0.15)
    dealt = splits.assign(few, params, TASKS, seed=1)
    counts = dealt[dealt["diagnosis"] == "AD"]["split"].value_counts()
    assert counts["test"] == tested
    assert counts["train"] >= 2
    assert counts["val"] >= (2 if ill > 5 else 1)
    assert TASKS["diagnosis"].gap(dealt) is None


def test_each_split_has_one_person_to_spare_if_the_class_has_so_many() -> None:
    shares = {"pretrain": 0.5, "train": 0.25, "val": 0.1, "test": 0.15}
    for seed in range(10):
        dealt = splits.assign(
            cohort(seed, exact=True), Splits(mode="stratified", **shares), TASKS, seed=seed
        )
        ill = dealt[dealt["diagnosis"] == "AD"]["split"].value_counts()
        assert ill[["train", "val", "test"]].min() == 3
