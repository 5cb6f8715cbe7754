"""What can be reached without a network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.evaluate.inputs import Model
from neurofoundry.evaluate.measure import baselines, morphometry
from neurofoundry.tasks import Regression, Task
from tests.evaluate.conftest import GRID, TASKS, head, scans_table

SIZES = pd.DataFrame(
    np.random.default_rng(0).normal(size=(1000, 3)), columns=["brain_ml", "a", "b"]
)


def fit(task: Task, train: pd.DataFrame, scans: pd.DataFrame) -> tuple[Model, ...]:
    """Floors where sizes say nothing."""
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
        _, floor, _ = fit(task, train, test)
        assert np.allclose(floor.outputs[0], oracle.predict_proba(test), atol=1e-4)

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
        [("age", "floor-sex-site"), ("sex", "floor-age-site"), ("stroke", "floor-age-sex-site")],
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
    for floor in fit(TASKS["stroke"], train, scans):
        assert floor.seeds == ()
        assert "some class" in floor.reason


class TestMorphometry:
    def steps(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """As `write_volume` and `open_volume` leave a volume."""
        found = np.where(mask, np.rint(image / SLOPE), 0).astype(np.int16)
        found[mask & (found == 0)] = 1
        return found.transpose(2, 1, 0)

    def measured(self, image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        found = morphometry.features(self.steps(image, mask), GRID)
        return dict(zip(morphometry.FEATURES, found, strict=True))

    def test_a_head_of_known_size_is_measured_in_millilitres_and_millimetres(self):
        image, mask = head(wide=False, large=False)
        found = self.measured(image, mask)
        assert found["brain_ml"] == pytest.approx(4 / 3 * np.pi * 6.8 * 8.4 * 6.6, rel=0.03)
        assert found["width_mm"] == pytest.approx(136, abs=7)
        assert found["length_mm"] == pytest.approx(168, abs=7)
        assert found["fluid_share"] == pytest.approx(0.3**3, rel=0.25)
        assert found["white_share"] == pytest.approx(0.75**3 - 0.3**3, rel=0.1)
        assert found["ventricles_ml"] > 0.8 * found["fluid_share"] * found["brain_ml"]
        assert found["mean_asymmetry"] < 0.1

    def test_wide_ventricles_and_large_heads_show_and_brightness_does_not(self):
        usual, wide, large = (
            self.measured(*head(*how)) for how in ((False, False), (True, False), (False, True))
        )
        assert wide["ventricles_ml"] > 2 * usual["ventricles_ml"]
        assert large["brain_ml"] == pytest.approx(1.1**3 * usual["brain_ml"], rel=0.05)
        image, mask = head(wide=False, large=False)
        assert self.measured(0.7 * image + 0.4, mask) == pytest.approx(usual, rel=1e-6)

    def test_a_lesion_of_one_side_is_an_asymmetry(self):
        image, mask = head(wide=False, large=False)
        image[5:9, 14:18, 11:15] = -2
        assert self.measured(image, mask)["largest_asymmetry"] > 0.8

    def test_finer_grids_give_the_same_sizes(self):
        random = np.random.default_rng(0)
        fine, coarse = Grid(spacing=1.0), Grid(spacing=3.0)
        small = random.integers(1, 3000, (5, 5, 5)).repeat(10, 0).repeat(12, 1).repeat(12, 2)
        volume = np.zeros(coarse.shape[::-1], np.int16)
        volume[:50, :60, :60] = small
        whole = volume.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        one, other = morphometry.features(volume, coarse), morphometry.features(whole, fine)
        assert one == pytest.approx(other)

    @pytest.mark.parametrize("seed", range(3))
    def test_tissues_are_parted_where_a_search_over_all_pairs_finds_most_variance_between(
        self, seed
    ):
        random = np.random.default_rng(seed)
        values = np.concatenate(
            [random.normal(m, 250, n) for m, n in ((-2000, 300), (0, 800), (1200, 700))]
        ).astype(np.int16)
        low, high = morphometry.tissue_thresholds(values)

        def between(a: float, b: float) -> float:
            parts = [values[values < a], values[(values >= a) & (values < b)], values[values >= b]]
            return sum(len(p) * (p.mean() - values.mean()) ** 2 for p in parts if len(p))

        best = max(
            between(a, b) for a in range(-2600, 2000, 100) for b in range(a + 100, 2000, 100)
        )
        assert between(low, high) > 0.995 * best

    def test_an_empty_volume_is_measured_as_nothing(self):
        assert not morphometry.features(np.zeros(GRID.shape[::-1], np.int16), GRID).any()

    def test_sizes_that_say_something_are_used_and_the_penalty_is_chosen(self):
        random = np.random.default_rng(0)
        scans, task = scans_table(300), Regression(column="score")
        sizes = pd.DataFrame(random.normal(size=(len(scans), 5)), index=scans["scan_id"])
        score = 3 * sizes[0].to_numpy() + random.normal(0, 0.5, len(scans))
        scans = scans.assign(score=score)
        train, test = (scans[scans["split"] == split] for split in ("train", "test"))
        *_, floor = baselines.fit(task, train, test, sizes)
        assert floor.name == "floor-morphometry"
        assert np.corrcoef(floor.outputs[0], test["score"])[0, 1] > 0.95
        oracle = make_pipeline(StandardScaler(), Ridge(1.0)).fit(
            sizes.loc[train["scan_id"]], train["score"]
        )
        assert floor.outputs[0] == pytest.approx(
            oracle.predict(sizes.loc[test["scan_id"]]), abs=0.3
        )

    def test_few_persons_of_a_class_do_without_cross_validation(self):
        scans, task = scans_table(60), TASKS["stroke"]
        train = task.select(scans[scans["split"] == "train"])
        one = train[train["stroke"] == "yes"].iloc[:1]
        train = pd.concat([one, train[train["stroke"] == "no"]])
        *_, floor = fit(task, train, scans)
        assert np.isfinite(floor.outputs).all()
