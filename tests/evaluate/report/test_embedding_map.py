"""The map of the embeddings: what its page holds, and what it does not."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurofoundry.evaluate.inputs import Features
from neurofoundry.evaluate.report import embedding_map
from neurofoundry.evaluate.report.embedding_map import MOST, PAGE, alike, bands, groups, nearest
from neurofoundry.evaluate.results import Results
from tests.evaluate.conftest import run, scans_table, write_inputs


def content(page: Path) -> dict[str, Any]:
    text = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert text
    return json.loads(text[1])


@pytest.fixture(scope="module")
def shown(usual, evaluated) -> tuple[dict[str, Any], pd.DataFrame, np.ndarray]:
    """The content of the page, the scan behind each of its numbers (identified by its place, which
    no other has), and the features of these."""
    data = content(evaluated.dir / PAGE)
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    with np.load(usual.root / "models/features/simclr.npz") as file:
        held_out = np.isin(file["scan_id"], scans["scan_id"][scans["split"] != "train"])
        names, values = file["scan_id"][held_out], file["features"][held_out]
    x = (values - values.mean(0)) / values.std(0)
    _, _, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    where = np.array(data["encoders"][0]["points"])
    away = np.abs(np.abs(where[:, None]) - np.abs(x @ axes[:6].T)).max(axis=2)
    scan_of = away.argmin(axis=1)
    assert away[np.arange(len(scan_of)), scan_of].max() < 1e-3
    assert len(set(scan_of)) == len(names)
    return (
        data,
        scans.set_index("scan_id").loc[names[scan_of]].reset_index(),
        x[scan_of],
    )


def test_every_held_out_scan_is_placed_by_its_principal_components(shown):
    data, scans, x = shown
    assert len(data["scans"]) == len(scans)
    shares = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(
        data["encoders"][0]["shares"], (shares / shares.sum())[:6], atol=1e-4
    )


def test_numbers_do_not_follow_the_order_of_names(shown):
    _, scans, _ = shown
    ranks = scans["scan_id"].rank().to_numpy()
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.3


def test_neighbours_are_the_nearest_scans_of_others(shown):
    data, scans, x = shown
    person = scans["person"].to_numpy()
    for at in range(0, len(x), 7):
        away = {
            other: float(np.sqrt(((x[at] - x[other]) ** 2).sum()))
            for other in range(len(x))
            if person[other] != person[at]
        }
        expected = sorted(away, key=away.__getitem__)[:6]
        assert data["encoders"][0]["near"][at] == expected
        distances = data["encoders"][0]["distance"][at]
        np.testing.assert_allclose(distances, [away[k] for k in expected], atol=0.006)


def test_a_scan_is_coloured_by_what_is_known_of_it(shown):
    data, scans, _ = shown
    variables = {each["name"]: number for number, each in enumerate(data["variables"])}
    assert list(variables) == ["site", "age", "sex", "diagnosis", "stroke"]
    for row, scan in zip(data["scans"], scans.to_dict("records"), strict=True):
        known = {
            name: data["variables"][number]["values"][row["groups"][number]]
            for name, number in variables.items()
        }
        assert known["site"] == scan["site"]
        assert (known["sex"], known["stroke"]) == (scan["sex"], scan["stroke"])
        low, high = ends(known["age"])
        assert low <= float(scan["age"]) < high
        assert row["new"] == (scan["split"] == "ood")


def ends(band: str) -> tuple[float, float]:
    numbers = [float(text) for text in re.findall(r"[\d.]+", band)]
    if band.startswith("under"):
        return -np.inf, numbers[0]
    return (numbers[0], np.inf) if band.startswith("from") else (numbers[0], numbers[1])


def test_a_thumbnail_is_the_slice_of_its_volume(usual, shown):
    data, scans, _ = shown
    for number in (0, 11):
        sent = base64.b64decode(data["scans"][number]["slice"])
        with Image.open(io.BytesIO(sent)) as picture:
            seen = np.asarray(picture, float)
        image = nib.load(usual.root / f"volumes/{scans['scan_id'][number]}.nii")
        height = round((np.linalg.inv(image.affine) @ [0, 0, 10, 1])[2])
        expected = np.asarray(image.dataobj)[:, ::-1, height].T  # (y, x), the front up
        inside = expected != 0
        assert seen.shape == expected.shape
        assert np.corrcoef(seen[inside], np.clip(expected[inside], -2.5, 2.5))[0, 1] > 0.95
        assert seen[~inside].mean() < 12 < seen[inside].mean()


def test_a_site_that_the_encoder_sees_shows(shown):
    """The fixture shifts one of sixteen features at one site."""
    data, _, _ = shown
    shares = dict(
        zip(
            [each["name"] for each in data["variables"]],
            data["encoders"][0]["alike"],
            strict=True,
        )
    )
    assert shares["site"][0] > shares["site"][1] + 0.04
    assert abs(shares["sex"][0] - shares["sex"][1]) < 0.06


class TestNearest:
    def test_in_pieces_it_is_the_same(self, monkeypatch):
        x = np.random.default_rng(0).normal(size=(50, 4))
        person = np.arange(50) // 2
        whole = nearest(x, person, 5)
        monkeypatch.setattr(embedding_map, "CHUNK", 7)
        for first, second in zip(whole, nearest(x, person, 5), strict=True):
            assert np.array_equal(first, second)
        assert not (person[whole[0]] == person[:, None]).any()


class TestAlike:
    def test_it_is_what_loops_count_and_what_chance_gives(self):
        random = np.random.default_rng(0)
        person = np.repeat(np.arange(20), random.integers(1, 4, 20))
        n = len(person)
        group = random.integers(-1, 3, n)
        near = nearest(random.normal(size=(n, 3)), person, 4)[0]
        same = [
            group[i] == group[j] for i in range(n) for j in near[i] if min(group[i], group[j]) >= 0
        ]
        by_chance = []
        for i in np.flatnonzero(group >= 0):
            others = [j for j in range(n) if group[j] >= 0 and person[j] != person[i]]
            by_chance.append(np.mean([group[j] == group[i] for j in others]))
        share, chance = alike(near, group, person)
        assert share == pytest.approx(np.mean(same), abs=1e-4)
        assert chance == pytest.approx(np.mean(by_chance), abs=1e-4)

    def test_without_groups_there_is_nothing_to_say(self):
        assert alike(np.array([[1], [0]]), np.array([-1, -1]), np.array([0, 1])) is None


class TestFew:
    def test_a_class_of_few_persons_is_not_told_from_the_unknown(self):
        values = pd.Series(["a"] * 9 + ["b"] * 8 + ["c", None])
        person = pd.Series([*range(9), *([20, 21, 22, 23] * 2), 30, 31])
        grouped = groups(values, ["a", "b", "c"], person, 5)
        assert grouped.names == ["a"]
        assert grouped.codes.tolist() == [0] * 9 + [-1] * 10

    def test_the_oldest_is_not_told_from_the_old(self):
        ages = np.r_[np.linspace(50, 80, 60), 103.0, np.nan]
        banded = bands(ages, np.arange(62), 5)
        names, codes = banded.names, banded.codes
        assert codes[-1] == -1
        assert np.bincount(codes[:-1]).min() >= 5
        assert codes[60] == codes[59] == len(names) - 1
        assert all(float(text) <= 80 for text in re.findall(r"\d+", " ".join(names)))

    def test_of_few_persons_there_are_no_bands(self):
        assert bands(np.arange(9.0), np.arange(9), 5).names == []
        assert bands(np.repeat([40.0, 60.0], 20), np.repeat([0, 1], 20), 5).names == []
        assert bands(np.full(9, np.nan), np.arange(9), 5).names == []


def test_sites_of_one_name_are_told_apart_by_their_datasets():
    scans = scans_table(80)
    both = pd.concat([scans, scans_table(80, dataset="other")], ignore_index=True)
    for table, count in ((scans, 4), (both, 8)):
        names = embedding_map.site_names(table)
        assert names.nunique() == count
        assert ("other / alder" in set(names)) == (count == 8)
        assert (table.groupby(names)[["dataset", "site"]].nunique() == 1).all(axis=None)


def written(results: Results, out: Path) -> bool:
    out.mkdir(exist_ok=True)
    return embedding_map.write(out, results)


def test_of_more_scans_than_a_page_bears_a_random_sample_is_shown(results, tmp_path, monkeypatch):
    assert MOST > 1000
    monkeypatch.setattr(embedding_map, "MOST", 50)
    assert written(results, tmp_path)
    assert len(content(tmp_path / PAGE)["scans"]) == 50
    assert "these are a random sample" in (tmp_path / PAGE).read_text()


def test_features_that_say_nothing_are_no_map(results, tmp_path):
    scan_ids = results.features["simclr"].scan_ids
    same = {"simclr": Features(scan_ids, np.ones((len(scan_ids), 4)))}
    assert written(replace(results, features=same), tmp_path / "out")
    assert content(tmp_path / "out" / PAGE)["encoders"] == [{"name": "simclr", "shares": []}]


def test_where_there_is_too_little_there_is_no_page_and_no_link(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(8), estimable=False)
    run(folders, tmp_path / "out", reference="scratch")
    assert not (tmp_path / "out" / PAGE).exists()
    assert PAGE not in (tmp_path / "out/report.html").read_text()
