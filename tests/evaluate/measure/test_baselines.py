"""What can be reached without a network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from neurofoundry.evaluate.evidence import Model
from neurofoundry.evaluate.measure import baselines
from neurofoundry.tasks import Regression, Task
from tests.evaluate.conftest import TASKS, scans_table

SIZES = pd.DataFrame(
    np.random.default_rng(0).normal(size=(1000, 3)), columns=["brain_ml", "a", "b"]
)


def fit(task: Task, train: pd.DataFrame, scans: pd.DataFrame) -> tuple[Model, ...]:
    """Baselines where sizes say nothing."""
    ids = sorted({*train["scan_id"], *scans["scan_id"]})
    return baselines.fit(task, train, scans, SIZES.iloc[: len(ids)].set_axis(ids))


class TestAgeSexSite:
    def test_nothing_but_train_is_learned_from(self):
        scans, task = scans_table(200), TASKS["alzheimers"]
        train = scans[scans["split"] == "train"]
        held_out = task.select(scans[scans["split"].isin(["test", "ood"])])
        flipped = held_out.assign(diagnosis=held_out["diagnosis"].map({"AD": "CN", "CN": "AD"}))
        for before, after in zip(
            fit(task, train, held_out), fit(task, train, flipped), strict=True
        ):
            assert (before.outputs == after.outputs).all()

    def test_with_one_site_it_is_the_logistic_regression_of_scikit_learn(self):
        scans, task = scans_table(200).assign(site="alder"), TASKS["alzheimers"]
        train, test = (task.select(scans[scans["split"] == split]) for split in ("train", "test"))
        oracle = make_pipeline(
            make_column_transformer(
                (StandardScaler(), ["age"]),
                (FunctionTransformer(lambda sex: (sex == "M") - 0.5), ["sex"]),
            ),
            LogisticRegression(),
        ).fit(train, train["diagnosis"] == "AD")
        _, baseline, _ = fit(task, train, test)
        assert np.allclose(baseline.outputs[0], oracle.predict_proba(test), atol=1e-4)

    def test_it_finds_what_age_says(self):
        random = np.random.default_rng(0)
        scans = scans_table(300)
        scans = scans.assign(bmi=20 + 0.1 * scans["age"] + random.normal(0, 0.5, len(scans)))
        train, test = (scans[scans["split"] == split] for split in ("train", "test"))
        mean, known, _ = fit(Regression(column="bmi"), train, test)
        errors = [np.abs(f.outputs[0] - test["bmi"]).mean() for f in (mean, known)]
        assert errors[1] < 0.5 * errors[0]

    def test_it_finds_what_the_site_says_and_takes_an_unseen_site_for_an_average_one(self):
        scans = scans_table(300)
        scans = scans.assign(bmi=scans["site"].map({"alder": 20.0, "birch": 24.0}).fillna(28.0))
        train = scans[scans["split"] == "train"]
        seen, unseen = (scans[scans["split"] == split] for split in ("test", "ood"))
        for part in (seen, unseen):
            mean, known, _ = fit(Regression(column="bmi"), train, part)
            if part is seen:
                assert np.abs(known.outputs[0] - part["bmi"]).mean() < 0.5
            else:
                assert np.abs(known.outputs - mean.outputs).max() < 0.5

    @pytest.mark.parametrize(
        ("task", "name"),
        [
            ("age", "baseline-sex-site"),
            ("sex", "baseline-age-site"),
            ("stroke", "baseline-age-sex-site"),
        ],
    )
    def test_nothing_is_predicted_from_itself(self, task, name):
        scans = scans_table(60)
        train, test = (scans[scans["split"] == split] for split in ("train", "test"))
        other = {"age": test["age"] + 9, "sex": test["sex"].map({"F": "M", "M": "F"})}.get(task)
        one, two = (
            fit(TASKS[task], train, test.assign(**each))[1]
            for each in ({}, {task: other} if other is not None else {})
        )
        assert one.name == name
        assert (one.outputs == two.outputs).all()

    def test_who_lacks_age_or_sex_stands_in_the_middle(self):
        scans, task = scans_table(200), TASKS["stroke"]
        train = scans[scans["split"] == "train"]
        unknown = scans.iloc[:1].assign(age=np.nan, sex=None)
        middle = scans.iloc[:2].assign(
            age=train["age"].mean(), sex=["F", "M"], site=scans["site"].iloc[0]
        )
        of_unknown, of_middle = (fit(task, train, part)[1] for part in (unknown, middle))
        low, high = sorted(of_middle.outputs[0, :, 1])
        assert low < of_unknown.outputs[0, 0, 1] < high


def test_without_a_training_scan_of_a_class_there_is_none():
    scans = scans_table(60)
    train = scans[(scans["split"] == "train") & (scans["stroke"] == "no")]
    for baseline in fit(TASKS["stroke"], train, scans):
        assert baseline.seeds == ()
        assert "some class" in baseline.reason


class TestMorphometry:
    def test_sizes_that_say_something_are_used_and_the_penalty_is_chosen(self):
        random = np.random.default_rng(0)
        scans, task = scans_table(300), Regression(column="score")
        sizes = pd.DataFrame(random.normal(size=(len(scans), 5)), index=scans["scan_id"])
        score = 3 * sizes[0].to_numpy() + random.normal(0, 0.5, len(scans))
        scans = scans.assign(score=score)
        train, test = (scans[scans["split"] == split] for split in ("train", "test"))
        *_, baseline = baselines.fit(task, train, test, sizes)
        assert baseline.name == "baseline-morphometry"
        assert np.corrcoef(baseline.outputs[0], test["score"])[0, 1] > 0.95
        oracle = make_pipeline(StandardScaler(), Ridge(1.0)).fit(
            sizes.loc[train["scan_id"]], train["score"]
        )
        assert baseline.outputs[0] == pytest.approx(
            oracle.predict(sizes.loc[test["scan_id"]]), abs=0.3
        )

    def test_few_persons_of_a_class_do_without_cross_validation(self):
        scans, task = scans_table(60), TASKS["stroke"]
        train = task.select(scans[scans["split"] == "train"])
        one = train[train["stroke"] == "yes"].iloc[:1]
        train = pd.concat([one, train[train["stroke"] == "no"]])
        *_, baseline = fit(task, train, scans)
        assert np.isfinite(baseline.outputs).all()
