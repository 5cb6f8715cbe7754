from __future__ import annotations

import re

import pandas as pd
import pytest
import yaml

from benchmarks.splits import TASKS, cohort
from neurofoundry.contracts import folds
from neurofoundry.contracts.splits import Splits
from neurofoundry.ingest import remedies, splits
from neurofoundry.tasks import parse_task

HASH = Splits(pretrain=0.5, train=0.25, val=0.1, test=0.15)


def test_every_remedy_that_is_named_works() -> None:
    tried = 0
    for seed in range(6):
        rows = cohort(seed, exact=False)
        said = remedies.find(rows, HASH, "diagnosis", TASKS, seed=seed)
        for words in re.findall(r"ingest.splits=(\{.*?\}),", said):
            params = Splits(**yaml.safe_load(words))
            dealt = splits.assign(rows, params, TASKS, seed=seed)
            assert folds.gap(TASKS["diagnosis"], dealt) is None
            tried += 1
    assert tried == 12


def test_it_says_how_many_of_the_smallest_class_each_split_would_get() -> None:
    rows = cohort(1, exact=True)
    said = remedies.find(rows, HASH, "diagnosis", TASKS, seed=1)
    stratified = splits.assign(rows, Splits(mode="stratified", **HASH.shares), TASKS, seed=1)
    counts = stratified[stratified["diagnosis"] == "AD"]["split"].value_counts()
    in_folds = splits.assign(rows, Splits(mode="folds", folds=5, pretrain=0.5), TASKS, seed=1)
    tested = int(((in_folds["diagnosis"] == "AD") & (in_folds["split"] == "test")).sum())
    assert (
        "ingest.splits={mode: stratified, pretrain: 0.5, train: 0.25, val: 0.1, test: 0.15}, which "
        f"gives train {counts['train']}, val {counts['val']}, test {counts['test']} persons with "
        "diagnosis=AD; or ingest.splits={mode: folds, pretrain: 0.5, folds: 5}, which tests "
        f"{tested} persons"
    ) in said


def test_folds_are_asked_for_where_splits_are_those_that_were_published() -> None:
    params = Splits(mode="published", column="set")
    said = remedies.find(cohort(1, exact=True), params, "diagnosis", TASKS, seed=1)
    assert said == (
        "Would do: ingest.splits={mode: folds, folds: 5}, which tests 12 persons with diagnosis=AD "
        "(for pretraining, import weights: nobody is left)."
    )


def test_a_site_kept_apart_that_lacks_a_class_is_said_to_be_the_reason() -> None:
    rows = cohort(1, exact=True)
    rows.loc[rows["diagnosis"] == "AD", ["dataset", "site"]] = ["a", "north"]
    params = HASH.model_copy(update={"ood": {"dataset": ("b",)}})
    said = remedies.find(rows, params, "diagnosis", TASKS, seed=1)
    assert said.startswith(
        "Would do (without ood): ingest.splits={mode: stratified, pretrain: 0.5,"
    )


def test_a_site_that_stays_apart_is_part_of_what_is_pasted() -> None:
    params = HASH.model_copy(update={"ood": {"site": ("yes", "it's: south")}})
    rows = cohort(1, exact=True).assign(site="north")
    rows.loc[rows.index[::5], "site"] = "it's: south"
    said = remedies.find(rows, params, "diagnosis", TASKS, seed=1)
    words = said.partition("ingest.splits=")[2].partition(", which")[0]
    assert Splits(**yaml.safe_load(words)).ood == params.ood


@pytest.mark.parametrize("left", [0, 3])
def test_it_is_said_where_nothing_will_do(left: int) -> None:
    rows = cohort(1, exact=True)
    few = rows.drop(rows.index[rows["diagnosis"] == "AD"][left:])
    assert remedies.find(few, HASH, "diagnosis", TASKS, seed=1) == (
        f"No other way to split these persons will do: {left} have diagnosis=AD, and train and "
        "test need 2 each, val 1. Add persons, or leave out a class."
    )


def test_a_column_that_is_missing_is_no_matter_of_splits() -> None:
    other = parse_task({"kind": "regression", "column": "score"})
    said = remedies.find(pd.DataFrame(cohort(1, exact=True)), HASH, "x", {"x": other}, seed=1)
    assert said == "Name the column in ingest.columns."
