"""Models of folds are judged as one: each person is tested once, by whom they did not teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.cross_validation import cohort, interval
from neurofoundry.contracts import folds
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import DataError
from neurofoundry.evaluate import predictions
from neurofoundry.evaluate.measure import baselines, performance
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.results import Results, measure
from neurofoundry.evaluate.rows import find_row
from neurofoundry.stats import metrics
from neurofoundry.stats.intervals import Jackknife
from tests.evaluate.conftest import TASKS, Folders, run, scans_table, write_inputs

COUNT, REPEATS = 4, 2
MEASURED = {name: TASKS[name] for name in ("stroke", "age")}


def in_folds(subjects: int) -> pd.DataFrame:
    scans = scans_table(subjects)
    number = scans["person"].str[-4:].astype(int)
    places = [number // 4 % COUNT + 1, (number // 4 + number // 8) % COUNT + 1]
    fold = places[0].astype(str) + f"/{COUNT} " + places[1].astype(str) + f"/{COUNT}"
    alone = (scans["split"] == "pretrain") | (scans["split"] == "val")
    split = np.select([scans["split"] == "ood", alone], ["ood", "pretrain"], "test")
    return scans.assign(split=split, fold=fold.mask(alone))


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("crossed") / "in"
    return write_inputs(folder, in_folds(140), tasks=MEASURED)


@pytest.fixture(scope="module")
def results(crossed: Folders) -> Results:
    return measure(
        crossed.read(),
        Volumes(crossed.inputs["volumes"]),
        crossed.inputs["models"],
        tasks=MEASURED,
        params=EvaluateParams(reference="scratch", bootstraps=200),
        seed=0,
    )


def of_repeat(folders: Folders, task: str, init: str, repeat: int) -> dict[str, pd.DataFrame]:
    """The predictions of a repeat by split, from the files, with the ``fold`` of the model."""
    scans = folders.read().scans
    place = pd.Series(folds.places(scans)[0][:, repeat], scans["scan_id"])
    tables = []
    for fold in range(1, COUNT + 1):
        path = folders.predictions(task, init, fold=fold + COUNT * repeat)
        table = pd.read_csv(path, sep="\t").assign(fold=fold)
        here = place[table["scan_id"]].to_numpy() == fold
        tables.append(table[(table["split"] != "ood") | here])
    whole = pd.concat(tables)
    return {str(split): rows for split, rows in whole.groupby("split")}


@pytest.mark.parametrize("split", ["test", "ood"])
def test_values_are_those_of_the_pooled_predictions_mean_over_repeats(
    crossed: Folders, results: Results, split: str
) -> None:
    pooled = [of_repeat(crossed, "stroke", "simclr", repeat)[split] for repeat in range(REPEATS)]
    areas = [roc_auc_score(rows["label"] == "yes", rows["p_yes"]) for rows in pooled]
    row = find_row(
        results.measured.measures, task="stroke", init="simclr", split=split, metric="auc"
    )
    assert row is not None
    assert row["value"] == pytest.approx(np.mean(areas))
    assert row["seed_sd"] == pytest.approx(np.std(areas, ddof=1))
    scans = crossed.read().scans
    usable = scans[scans["usable"] & (scans["split"] == split)]
    assert (row["subjects"], row["scans"]) == (usable["person"].nunique(), len(usable))


def test_the_threshold_of_a_fold_comes_from_those_who_validate_in_it(
    crossed: Folders, results: Results
) -> None:
    found = []
    for repeat in range(REPEATS):
        rows = of_repeat(crossed, "stroke", "simclr", repeat)
        called = []
        for fold, tested in rows["test"].groupby("fold"):
            val = rows["val"][rows["val"]["fold"] == fold]
            least = metrics.youden_threshold(
                (val["label"] == "yes").to_numpy(), val["p_yes"].to_numpy()
            )
            called.append(tested[tested["label"] == "yes"]["p_yes"] >= least)
        found.append(pd.concat(called).mean())
    row = find_row(
        results.measured.measures, task="stroke", init="simclr", split="test", metric="sensitivity"
    )
    assert row is not None
    assert row["value"] == pytest.approx(np.mean(found))


def test_repeats_that_say_the_same_are_no_further_evidence(tmp_path) -> None:
    scans = in_folds(120)
    once = scans.assign(fold=scans["fold"].str.split().str[0])
    twice = once.assign(fold=once["fold"] + " " + once["fold"])
    tables = {}
    for name, table in (("once", once), ("twice", twice)):
        tasks = {"stroke": TASKS["stroke"]}
        folders = write_inputs(tmp_path / name / "in", table, tasks=tasks, pictures=0)
        for init in ("simclr", "simclr-probe", "scratch", "frozen-random"):
            for fold in range(1, COUNT + 1):
                for repeat in range(2 if name == "twice" else 1):
                    source = tmp_path / "once/in/models/stroke" / init / f"1.0/0/fold-{fold}"
                    target = folders.predictions("stroke", init, fold=fold + COUNT * repeat)
                    target.write_bytes((source / "predictions.tsv").read_bytes())
        run(folders, tmp_path / name / "out", tasks=tasks)
        table = pd.read_csv(tmp_path / name / "out/tables/metrics.tsv", sep="\t")
        tables[name] = table[["init", "split", "metric", "value", "low", "high", "subjects"]]
    pd.testing.assert_frame_equal(tables["once"], tables["twice"])


def test_a_baseline_learns_from_the_training_persons_of_the_fold(
    crossed: Folders, results: Results
) -> None:
    evidence = results.tasks[0]
    _, name, _ = baselines.names(evidence.task)
    pooled = next(model for model in evidence.models if model.name == name).outputs
    assert len(pooled) == REPEATS
    scans = crossed.read().scans
    sizes = pd.DataFrame(0.0, index=scans["scan_id"], columns=["volume"])
    for number in range(1, COUNT * REPEATS + 1):
        inside = folds.in_fold(scans[scans["usable"]], number)
        learned = inside[inside["split"] == "train"]
        repeat = (number - 1) // COUNT
        made = evidence.made_by[repeat] == number
        tested = evidence.inside("test") & made
        assert tested.sum() == (inside["split"] == "test").sum() > 0
        own = baselines.fit(evidence.task, learned, evidence.scans[tested], sizes)[1]
        assert pooled[repeat, tested] == pytest.approx(own.outputs[0])
        assert set(evidence.scans["scan_id"][evidence.inside("val") & made]) == set(
            inside["scan_id"][inside["split"] == "val"]
        )


def test_the_same_answer_for_everybody_is_the_same_in_all_folds(results: Results) -> None:
    constant = baselines.names(TASKS["stroke"])[0]
    where = {"task": "stroke", "init": constant, "split": "test", "metric": "auc"}
    row = find_row(results.measured.measures, **where)
    assert row is not None
    assert row["value"] == 0.5


def test_a_prediction_for_somebody_of_another_fold_is_refused(crossed: Folders, tmp_path) -> None:
    one, other = (crossed.predictions("age", "scratch", fold=fold) for fold in (1, 2))
    before = one.read_bytes()
    try:
        one.write_bytes(other.read_bytes())
        with pytest.raises(DataError, match="run finetune again"):
            run(crossed, tmp_path / "out", tasks=MEASURED)
    finally:
        one.write_bytes(before)


def test_the_report_says_what_was_done_and_the_first_declared_stands_for_all(
    crossed: Folders, tmp_path
) -> None:
    run(crossed, tmp_path / "one", tasks=MEASURED)
    page = " ".join((tmp_path / "one/report.html").read_text().split())
    scans = crossed.read().scans
    persons = scans[scans["usable"] & (scans["split"] == "test")]["person"].nunique()
    assert f"Cross-validation: {persons} subjects were dealt to 4 folds, 2 times." in page
    assert "Intervals count each subject once, however many folds and repeats there are," in page
    assert "the model declared first" in page
    assert "The numbers are those of a way to make models, 4 of them" in page
    checklist = (tmp_path / "one/checklist.md").read_text()
    assert "in a cross-validation, those who validate are tested too" in checklist


def test_of_two_initializations_the_other_is_not_said_to_be_the_first(results: Results) -> None:
    evidence = results.tasks[0]
    two = [model for model in evidence.models if model.name in ("scratch", "simclr")]
    alone = replace(evidence, models=tuple(two))
    reasons = [narrative.candidate(each, results.measured, "scratch") for each in (evidence, alone)]
    assert [because.partition(";")[0] for _, because in filter(None, reasons)] == [
        "it is the first declared of the others",
        "it is the only other one",
    ]


def test_predictions_come_back_with_the_folds_that_made_them(results: Results, tmp_path) -> None:
    evidence = results.tasks[0]
    predictions.write(tmp_path / "predictions", evidence)
    back = predictions.read(tmp_path / "predictions", evidence.name, evidence.task)
    assert back.fold_of is not None
    before, after = (performance.thresholds_of(each) for each in (evidence, back))
    for model, same in zip(evidence.models, back.models, strict=True):
        for one, other in zip(before[model], after[same], strict=True):
            if one is None or other is None:
                assert one is other
            else:
                assert sorted(one) == sorted(other)


def test_repeats_move_a_value_and_narrow_nothing() -> None:
    values = np.array([[0.7, 0.6, 0.8], [0.9, 0.9, 0.9], [0.5, 0.4, 0.6], [0.3, 0.1, 0.9]])
    crossed = Jackknife(values, np.zeros(2, int)).of_folds(repeats=2, widening=2.0)
    assert crossed.values[:, 0].tolist() == [0.7, 0.9, 0.5, 0.3]
    moved = crossed.values[:, 1:] - crossed.values[:, :1]
    assert moved == pytest.approx(np.array([[-0.2, 0.2]] * 4))


def test_intervals_of_simulated_cross_validations_hold_the_truth() -> None:
    drawn = [cohort(np.random.default_rng(seed), 20, 20, 1.0, 1) for seed in range(150)]
    truth = np.mean([own for _, _, own in drawn])
    found = [interval(pooled, labels) for pooled, labels, _ in drawn]
    held = np.mean([each.low <= truth <= each.high for each in found])
    assert held >= 0.93  # 0.97 of 200; without the widening 0.92
