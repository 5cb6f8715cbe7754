from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.measure import harmonization
from neurofoundry.evaluate.measure.harmonization import HARMONIZATION
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pd.DataFrame:
    """Features that tell the site and the sex, from sites of which one is new."""
    folder = tmp_path_factory.mktemp("harmonized")
    tasks = {"sex": TASKS["sex"], "age": TASKS["age"]}
    scans = scans_table(300)
    folders = write_inputs(folder / "in", scans, tasks=tasks)
    path = folder / "in/models/features/simclr.npz"
    with np.load(path) as content:
        scan_id = content["scan_id"]
    known = scans.set_index("scan_id").loc[scan_id]
    random = np.random.default_rng(0)
    features = random.normal(size=(len(known), 12))
    features[:, :4] += 2.5 * (known["site"] == "birch").to_numpy()[:, None]
    features[:, 4:8] += 1.2 * (known["sex"] == "M").to_numpy()[:, None]
    np.savez(path, scan_id=scan_id, features=features)
    run(folders, folder / "out", tasks=tasks, combat=["age"])
    return pd.read_csv(folder / "out/tables/harmonization.tsv", sep="\t")


def test_the_site_is_read_worse_and_the_task_as_well_as_before(table):
    assert list(table) == HARMONIZATION
    site = table[table["question"] == "site"].iloc[0]
    assert site["as_is_value"] > site["harmonized_value"] + 0.1
    assert site["difference_high"] < 0
    sex = table.query("question == 'sex' and split == 'test'").iloc[0]
    assert sex["harmonized_value"] > 0.8
    assert sex["difference_low"] < 0.02


def test_new_sites_are_unknown_and_left_as_they_are(table):
    known = table[table["question"] != "site"].set_index(["question", "split"])["known"]
    assert known.xs("test", level="split").eq(1).all()
    assert known.xs("ood", level="split").eq(0).all()
    assert table[table["question"] == "site"]["chance"].round(6).eq(round(1 / 3, 6)).all()


def test_without_the_option_nothing_is_harmonized(evaluated):
    table = pd.read_csv(evaluated.dir / "tables/harmonization.tsv", sep="\t")
    assert table.empty


def test_features_without_training_scans_are_a_reason(results):
    params = results.params.model_copy(update={"combat": ()})
    only = {
        name: each.__class__(
            each.scan_ids[keep := np.isin(each.scan_ids, results.tasks[2].scans["scan_id"])],
            each.values[keep],
        )
        for name, each in results.features.items()
    }
    found = harmonization.measure(only, results.tasks, results.inputs, params=params, seed=0)
    assert found["reason"].tolist() == [harmonization.NO_FEATURES]
