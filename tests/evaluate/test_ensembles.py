"""What the models of all seeds and folds predict as one is judged like any other model."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import mean_absolute_error, roc_auc_score

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import predictions
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.results import Results, measure
from neurofoundry.evaluate.rows import find_row
from neurofoundry.stats.comparisons import holm
from tests.evaluate.conftest import TASKS, Folders, run, scans_table, write_inputs
from tests.evaluate.test_cross_validation import COUNT, MEASURED, REPEATS, in_folds

SEEDS = (0, 4, 7)
RULE = {
    "task": "stroke",
    "initialization": "simclr-ensemble",
    "metric": "auc",
    "over": "scratch-ensemble",
}


def results_of(folders: Folders) -> Results:
    return measure(
        folders.read(),
        Volumes(folders.inputs["volumes"]),
        folders.inputs["models"],
        tasks=MEASURED,
        params=EvaluateParams(reference="scratch", bootstraps=100),
        seed=0,
    )


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("seeded") / "in"
    return write_inputs(folder, scans_table(200), tasks=MEASURED, seeds=SEEDS)


@pytest.fixture(scope="module")
def results(seeded: Folders) -> Results:
    return results_of(seeded)


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t").set_index("scan_id")


def value(results: Results, task: str, init: str, split: str, metric: str) -> float:
    found = find_row(results.measured.measures, task=task, init=init, split=split, metric=metric)
    assert found is not None
    return float(found["value"])


@pytest.mark.parametrize("split", ["test", "ood"])
def test_of_seeds_log_odds_or_values_are_averaged(
    seeded: Folders, results: Results, split: str
) -> None:
    tables = [read(seeded.predictions("stroke", "simclr", seed=seed)) for seed in SEEDS]
    inside = tables[0]["split"] == split
    odds = np.mean([logit(each["p_yes"][inside]) for each in tables], axis=0)
    area = roc_auc_score(tables[0]["label"][inside] == "yes", odds)
    assert value(results, "stroke", "simclr-ensemble", split, "auc") == pytest.approx(area)
    brier = np.mean((expit(odds) - (tables[0]["label"][inside] == "yes")) ** 2)
    assert value(results, "stroke", "simclr-ensemble", split, "brier") == pytest.approx(brier)
    tables = [read(seeded.predictions("age", "simclr", seed=seed)) for seed in SEEDS]
    inside = tables[0]["split"] == split
    mean = np.mean([each["output"][inside] for each in tables], axis=0)
    error = mean_absolute_error(tables[0]["label"][inside], mean)
    assert value(results, "age", "simclr-ensemble", split, "mae") == pytest.approx(error)


def test_it_is_compared_with_its_own_models_and_with_the_ensemble_of_the_reference(
    results: Results,
) -> None:
    table = results.measured.differences.query("task == 'stroke' and metric == 'auc'")
    simclr = table[table["init"] == "simclr-ensemble"]
    networks = {name for name in simclr["versus"] if not name.startswith("baseline")}
    assert networks == {"simclr", "scratch-ensemble"}
    assert set(table[table["init"] == "simclr"]["versus"]) & {"scratch-ensemble"} == set()
    own = simclr.query("versus == 'simclr' and split == 'test'").iloc[0]
    gain = value(results, "stroke", "simclr-ensemble", "test", "auc") - value(
        results, "stroke", "simclr", "test", "auc"
    )
    assert own["value"] == pytest.approx(gain)
    assert own["low"] < gain < own["high"]


def test_comparisons_of_ensembles_are_adjusted_among_themselves(results: Results) -> None:
    table = results.measured.differences.query("split == 'test' and p_holm == p_holm")
    ensembles = table["init"].str.endswith("-ensemble")
    assert set(table["versus"][ensembles]) == {"scratch-ensemble"}
    assert set(table["versus"][~ensembles]) == {"scratch"}
    for family in (table[ensembles], table[~ensembles]):
        assert len(family) == 6  # three others in two tasks
        assert family["p_holm"].to_list() == pytest.approx(holm(family["p"].tolist()))


def test_models_that_agree_are_no_ensemble(tmp_path) -> None:
    tasks = {"stroke": TASKS["stroke"]}
    folders = write_inputs(tmp_path / "in", scans_table(120), tasks=tasks, seeds=(0, 1))
    first = folders.predictions("stroke", "frozen-random", seed=0).read_bytes()
    folders.predictions("stroke", "frozen-random", seed=1).write_bytes(first)
    run(folders, tmp_path / "out", tasks=tasks)
    inits = set(pd.read_csv(tmp_path / "out/tables/metrics.tsv", sep="\t")["init"])
    assert "frozen-random-ensemble" not in inits
    assert {"simclr-ensemble", "scratch-ensemble"} <= inits


def test_of_folds_those_speak_that_have_not_learned_from_the_person(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("crossed") / "in"
    folders = write_inputs(folder, in_folds(140), tasks=MEASURED)
    results = results_of(folders)
    tables = [
        read(folders.predictions("stroke", "simclr", fold=fold))
        for fold in range(1, COUNT * REPEATS + 1)
    ]
    # In every repeat one model has not learned from somebody, and all from nobody of new sites.
    for split, speaking in (("test", REPEATS), ("ood", COUNT * REPEATS)):
        rows = pd.concat([each[each["split"] == split] for each in tables])
        odds = logit(rows["p_yes"]).groupby(level=0)
        assert set(odds.size()) == {speaking}
        label = rows.groupby(level=0)["label"].first() == "yes"
        area = roc_auc_score(label, odds.mean())
        assert value(results, "stroke", "simclr-ensemble", split, "auc") == pytest.approx(area)
    members = results.measured.measures.query("init == 'simclr-ensemble'")["members"]
    assert set(members) == {COUNT * REPEATS}
    predictions.write(folder / "kept", results.tasks[0])
    back = predictions.read(folder / "kept", "stroke", TASKS["stroke"])
    assert [each.members for each in back.models] == [
        each.members for each in results.tasks[0].models
    ]


def test_it_can_be_promoted_and_the_card_says_what_it_is(seeded: Folders, tmp_path) -> None:
    run(seeded, tmp_path / "out", tasks=MEASURED, promotion=RULE)
    decision = json.loads((tmp_path / "out/promotion.json").read_text())
    assert decision["conditions"][0]["name"] == "better"
    assert "AUC of simclr-ensemble less that of scratch-ensemble is +" in decision["reason"]
    card = (tmp_path / "out/model_card.md").read_text()
    assert "- simclr-ensemble is an ensemble: the predictions of 3 models of simclr" in card
    headline = json.loads((tmp_path / "out/headline.json").read_text())
    table = pd.read_csv(tmp_path / "out/tables/metrics.tsv", sep="\t")
    own = table.query("init == 'simclr-ensemble' and split == 'test' and metric == 'auc'")
    assert headline["stroke"] == pytest.approx(own["value"].item())
    page = (tmp_path / "out/report.html").read_text()
    assert "against simclr, its models one by one" in page


def test_the_ensemble_of_one_model_is_refused(usual: Folders, tmp_path) -> None:
    with pytest.raises(UsageError, match="'simclr-ensemble' is not one of"):
        run(usual, tmp_path / "out", promotion=RULE)
