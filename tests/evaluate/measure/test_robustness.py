from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from neurofoundry.errors import DataError
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.inputs import Features, Inputs, read_features
from neurofoundry.evaluate.measure import robustness
from neurofoundry.evaluate.params import EvaluateParams
from tests.evaluate.conftest import TASKS

PARAMS = EvaluateParams(reference="m", bootstraps=200)


def travellers(*, shift: float, persons: int = 40) -> Evidence:
    """Everybody twice, at two sites of which the second adds ``shift`` to what a model says."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "scan_id": [f"p{i:02d}_{s}" for i in range(persons) for s in (1, 2)],
            "person": [f"p{i:02d}" for i in range(persons) for _ in (1, 2)],
            "dataset": "d",
            "site": ["near", "far"] * persons,
            "session": ["1", "2"] * persons,
            "split": "test",
        }
    )
    age = random.normal(60, 10, persons).repeat(2)
    outputs = age + random.normal(0, 2, 2 * persons) + shift * np.tile([0, 1], persons)
    model = Model("m", 1.0, (0,), outputs[None])
    return Evidence("age", TASKS["age"], table, age, (model,))


def test_a_shift_between_sites_costs_agreement_and_not_consistency():
    steady, shifted = (
        robustness.repeats([travellers(shift=shift)], params=PARAMS)
        .query("sites == 'two'")
        .set_index("metric")
        for shift in (0, 15)
    )
    assert steady.loc["icc_agreement", "value"] == pytest.approx(100 / 104, abs=0.03)
    assert shifted.loc["icc_agreement", "value"] < 0.7
    assert shifted.loc["icc_consistency", "value"] == pytest.approx(
        steady.loc["icc_consistency", "value"]
    )
    assert (steady["low"] < steady["value"]).all()
    assert (steady["high"] < 1).all()


def test_few_who_were_scanned_twice_give_a_reason_and_no_number():
    table = robustness.repeats([travellers(shift=0, persons=4)], params=PARAMS)
    assert table["value"].isna().all()
    assert set(table["reason"]) == {f"{n} subjects scanned twice so, 5 are needed" for n in (0, 4)}


def test_a_model_that_contradicts_itself_has_an_agreement_and_does_not_stop_the_stage():
    evidence = travellers(shift=0, persons=5)
    contrary = np.array([1, -1, -1, 1, 2, -2, -2, 2, 0, 0], float)
    model = replace(evidence.models[0], outputs=contrary[None])
    table = robustness.repeats([replace(evidence, models=(model,))], params=PARAMS)
    agreement = table.query("sites == 'two'").set_index("metric")
    # The formula says −1 / (1 − 2/5), which no truth can be.
    assert agreement.loc["icc_agreement", "value"] == -1
    assert agreement.loc["icc_consistency", "value"] == pytest.approx(-1)
    assert agreement["low"].isna().all()
    assert agreement["reason"].str.contains("no interval can be given").all()


def held_out(scanned: pd.DataFrame) -> Inputs:
    return Inputs(scanned, pd.DataFrame(), (), pd.DataFrame(), {})


def scanned(*, confounded: bool) -> pd.DataFrame:
    random = np.random.default_rng(1)
    site = np.repeat(["a", "b", "c"], 60)
    return pd.DataFrame(
        {
            "scan_id": [f"s{i:03d}" for i in range(180)],
            "person": [f"p{i // 2}" for i in range(180)],
            "dataset": "d",
            "site": site,
            "split": "test",
            "usable": True,
            "age": random.normal(60, 5, 180) + 40 * confounded * (site == "a"),
            "sex": random.choice(["F", "M"], 180),
        }
    )


def test_a_site_that_shows_is_read_and_one_that_does_not_is_at_chance():
    random = np.random.default_rng(2)
    scans = scanned(confounded=False)
    noise = random.normal(size=(180, 40))
    telling = noise + 4 * (np.arange(40) == pd.factorize(scans["site"])[0][:, None])
    ids = scans["scan_id"].to_numpy(str)
    table = robustness.sites(
        {"blind": Features(ids, noise), "telling": Features(ids, telling)},
        held_out(scans),
        {},
    ).set_index("encoder")
    assert (table["chance"] == 1 / 3).all()
    assert table.loc["blind", "low"] < 1 / 3 < table.loc["blind", "high"]
    assert table.loc["telling", "low"] > 0.8
    assert table["from_age_sex_labels"].max() < 0.5


def test_sites_that_scanned_others_are_shown_to_be_confounded():
    scans = scanned(confounded=True)
    features = np.random.default_rng(0).normal(size=(180, 5))
    table = robustness.sites(
        {"e": Features(scans["scan_id"].to_numpy(str), features)},
        held_out(scans),
        TASKS,
    )
    assert table["from_age_sex_labels"].iloc[0] > 0.55


def test_one_site_cannot_be_told_from_others():
    scans = scanned(confounded=False).assign(site="a")
    table = robustness.sites(
        {"e": Features(scans["scan_id"].to_numpy(str), np.zeros((180, 3)))},
        held_out(scans),
        {},
    )
    assert "2 are needed" in table["reason"].iloc[0]


def test_features_of_another_cohort_are_refused(tmp_path):
    scans = scanned(confounded=False)
    features = {"e": Features(scans["scan_id"].to_numpy(str), np.zeros((180, 3)))}
    with pytest.raises(DataError, match=r"features/e\.npz: 1 scans are not among the usable"):
        robustness.sites(features, held_out(scans.iloc[1:]), {})
    (tmp_path / "features").mkdir()
    (tmp_path / "features/e.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"e\.npz: not features"):
        read_features(tmp_path)


@pytest.mark.parametrize(("persons", "sites"), [(10, 3), (9, 2)])
def test_a_site_of_exactly_the_minimum_takes_part(persons, sites):
    scans = scanned(confounded=False)
    few = scans[scans["site"] == "c"].iloc[: 2 * persons]  # two scans a person
    scans = pd.concat([scans[scans["site"] != "c"], few])
    features = {"e": Features(scans["scan_id"].to_numpy(str), np.eye(len(scans), 5))}
    table = robustness.sites(features, held_out(scans), {})
    assert table["sites"].item() == sites
    assert table["chance"].item() == 1 / sites


def test_a_site_is_not_read_from_a_person_who_was_learned_from():
    scans = scanned(confounded=False)
    own = np.random.default_rng(0).normal(size=(90, 60))  # known by heart, of no use for others
    features = {"e": Features(scans["scan_id"].to_numpy(str), own.repeat(2, axis=0))}
    table = robustness.sites(features, held_out(scans), {})
    assert table["value"].item() < 0.5


def test_the_first_two_scans_are_those_of_the_first_sessions_in_test_and_ood():
    scans = pd.DataFrame(
        {
            "person": ["b", "b", "b", "a", "a", "c", "d", "d"],
            "session": ["3", "1", "2", "2", "1", "1", "1", "2"],
            "scan_id": ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"],
            "split": ["test"] * 6 + ["val", "test"],
        }
    )
    first, second = robustness.first_two(scans)
    assert [*zip(first, second, strict=True)] == [(4, 3), (1, 2)]
