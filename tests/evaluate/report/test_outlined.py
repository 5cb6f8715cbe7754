"""The page for radiologists says of outlines of known quality what is true of them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from neurofoundry.evaluate.measure.outlines import OTSU, Example, Outlines
from neurofoundry.evaluate.report import outlined, plots
from neurofoundry.evaluate.rows import find_row
from tests.support import outlined as support
from tests.support.tiny import GRID


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Outlines:
    root = tmp_path_factory.mktemp("outlined")
    volumes = support.write_volumes(root / "volumes", 42)
    return support.measure(volumes, support.write_models(root / "models", volumes))


@pytest.fixture(scope="module")
def page(measured: Outlines, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    outlined.write(folder, measured, synthetic=True)
    return (folder / outlined.PAGE).read_text()


class Words(HTMLParser):
    """The words of a page, and whether every element that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def value(measured: Outlines, init: str, metric: str = "dice", split: str = "test") -> str:
    row = find_row(measured.measures, init=init, metric=metric, split=split)
    return outlined.number(row, metric)


def test_words_and_tables_hold_what_was_measured(measured: Outlines, page: str) -> None:
    read = Words(page)
    assert not read.open
    assert "perfect outlines hole better than shifted" in read.text
    persons = measured.scans.query("split == 'test'")["person"].nunique()
    reached = value(measured, "perfect")
    assert f"At familiar sites Dice is {reached} in {persons} persons; +0." in read.text
    for init in ("shifted", "perfect", "shifted-ensemble", "perfect-ensemble"):
        assert f"{init} " in read.text
        for split in ("test", "ood"):
            assert value(measured, init, split=split) in read.text
    assert f"reaches {value(measured, OTSU)}" in read.text
    assert "the mean of its models, against shifted-ensemble" in read.text
    assert not re.search(r"\b(nan|None|inf)\b", read.text)
    assert "These are synthetic heads." in read.text


def test_groups_of_people_are_shown_and_small_ones_counted(measured: Outlines, page: str) -> None:
    text = Words(page).text
    own = measured.subgroups.query("init == 'perfect'")
    for row in own.dropna(subset="value").to_dict("records"):
        where = {key: row[key] for key in ("split", "variable", "group")}
        cells = (find_row(measured.subgroups, init=init, **where) for init in support.OFF)
        versus, chosen = (outlined.number(cell, "dice") for cell in cells)
        shown = f"{row['variable']} {row['group']} {row['persons']:.0f} {chosen} {versus}"
        assert shown in text
    assert f"Not shown: {own['value'].isna().sum()} of too few people" in text


def test_it_shows_best_median_and_worst_and_a_dot_a_scan(measured: Outlines, page: str) -> None:
    for place, each in zip(("Best", "Median", "Worst"), measured.examples, strict=True):
        volumes = f"true {each.true_ml:.1f} ml, outlined {each.found_ml:.1f} ml"
        assert f"{place} of the test scans: Dice 1.00, {volumes}" in page
    pictures = re.findall(r'<div class="view">(.*?)</div>', page, re.DOTALL)
    assert len(pictures) == 3
    assert all(plots.TRUTH in picture and plots.FOUND in picture for picture in pictures)
    scans = measured.scans[measured.scans["init"] == "perfect"]
    plot = re.search(r"<figcaption>Bland and Altman.*?</figure>", page, re.DOTALL)
    assert plot is not None
    assert plot[0].count("<use ") >= len(scans)


def test_it_names_nobody_and_is_the_same_every_time(
    measured: Outlines, page: str, tmp_path: Path
) -> None:
    for column in ("scan_id", "person"):
        assert not [name for name in set(measured.scans[column]) if name in page]
    outlined.write(tmp_path, measured, synthetic=True)
    assert (tmp_path / outlined.PAGE).read_text() == page
    outlined.write(tmp_path, measured, synthetic=False)
    assert "synthetic" not in (tmp_path / outlined.PAGE).read_text()


def test_a_headline_claims_no_more_than_the_interval_allows(measured: Outlines) -> None:
    def headline(low: float, high: float) -> str:
        table = measured.differences.copy()
        row = (table["init"] == "perfect") & (table["metric"] == "dice")
        table.loc[row, ["value", "low", "high"]] = (low + high) / 2, low, high
        return said(replace(measured, differences=table))

    def said(measured: Outlines) -> str:
        return str(outlined.describe(replace(measured, examples=()))[0]["headline"])

    assert headline(0.01, 0.2) == "perfect outlines hole better than shifted"
    assert headline(-0.01, 0.2) == "perfect is not shown to outline hole better than shifted"
    assert headline(-0.2, -0.01) == "perfect outlines hole worse than shifted"
    same = said(replace(measured, chosen={"hole": "shifted"}))
    assert same == "On validation, no start outlines hole better than shifted"
    assert said(replace(measured, chosen={})) == "Not estimable: no model was trained"


@pytest.mark.parametrize(
    ("side", "at_left"), [((1, 0, 0), (True, True, None)), ((0, 1, 0), (None, None, True))]
)
def test_right_is_on_the_left_and_anterior_too(
    side: tuple[int, int, int], at_left: tuple[bool | None, ...]
) -> None:
    """A lesion to the right or to the front of the grid's centre, in its three pictures."""
    centre = np.array(GRID.shape) // 2
    x, y, z = centre + np.array(side) * 8
    truth = np.zeros(GRID.shape[::-1], bool)
    truth[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = True
    svg = plots.outlines(
        Example(
            **{"task": "t", "name": "n", "init": "i", "place": "best", "dice": 1.0},
            **{"true_ml": 1.0, "found_ml": 1.0, "volume": np.ones_like(truth, np.int16)},
            **{"truth": truth, "found": truth, "grid": GRID},
        ),
        "A lesion",
    )
    drawn = [path for path in re.findall(r"<path [^>]*>", svg, re.DOTALL) if plots.TRUTH in path]
    where = re.findall(r"([-\d.]+) ([-\d.]+)", " ".join(re.findall(r'd="([^"]*)"', str(drawn))))
    lines = np.array(where, float)
    widths = np.array([GRID.shape[0], GRID.shape[0], GRID.shape[1]]) + 1
    frame = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    assert frame is not None
    places = lines[:, 0] / float(frame[1]) * widths.sum()
    starts = np.concatenate([[0], np.cumsum(widths)])
    for number, left in enumerate(at_left):
        here = places[(places >= starts[number]) & (places < starts[number + 1])]
        assert len(here)
        if left is not None:
            assert (here.mean() - starts[number] < widths[number] / 2) == left
