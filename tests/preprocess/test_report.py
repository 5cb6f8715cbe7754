from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from neurofoundry.preprocess import coregistration, report
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import BY_SYN, MEASURES
from neurofoundry.preprocess.verdict import decide, narrow_bounds
from neurofoundry.runtime.cells import guard_cell, read_cell
from tests.support.preprocessing import GOOD_MEASURES

Card = dict[str, Any]


def page_of(
    count: int, folder: Path, contrasts: Sequence[str] = ("T1w",)
) -> tuple[str, list[Card]]:
    """A page of scans with pictures, of which every second has a FLAIR if it is asked for."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame([GOOD_MEASURES | dict.fromkeys(BY_SYN, np.nan)] * count).assign(
        scan_id=[f"s{number:04d}" for number in range(count)],
        site=[f"site{number % 3}" for number in range(count)],
        usable=True,
        reason=None,
        volume=[f"s{number:04d}_T1w.nii" for number in range(count)],
    )
    table["template_correlation"] = 0.6 + 0.3 * rng.random(count)
    table["usable"] = table.index != 2
    table.loc[2, "reason"] = "unlike its site: </script><b>"
    picture = Pillow.new("RGB", (60, 20))
    for number, name in enumerate(table["scan_id"]):
        for contrast in contrasts[: 1 + number % 2]:
            picture.save(folder / f"{name}_{contrast}.png")
    lacking = table.index % 2 == 0
    for contrast in contrasts[1:]:
        table[f"reason_{contrast}"] = np.where(lacking, "the session has none", None)
        for name in coregistration.MEASURES:
            table[f"{name}_{contrast}"] = np.where(lacking, np.nan, 0.2)
    decided = {"s0001": ("keep", 'a "good" one')}
    page = report.render(table, folder, PreprocessParams(), decided, contrasts=contrasts)
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    return page, json.loads(found[1])


def shown(card: Card) -> list[str]:
    return [picture["src"] for picture in card["pictures"]]


def test_the_worst_scans_come_first_with_their_pictures_and_decisions(tmp_path: Path) -> None:
    page, cards = page_of(5, tmp_path)
    assert cards[0]["scan"] == "s0002"
    assert cards[0]["reason"] == "unlike its site: </script><b>"
    assert "</script><b>" not in page
    by_scan = {card["scan"]: card for card in cards}
    assert by_scan["s0001"]["decision"] == "keep"
    assert by_scan["s0001"]["why"] == 'a "good" one'
    assert all(src.startswith("data:image/jpeg;base64,") for card in cards for src in shown(card))
    fits = [card["values"][list(GOOD_MEASURES).index("template_correlation")] for card in cards[1:]]
    assert fits == sorted(fits)
    assert "edges" not in page


def test_every_contrast_of_a_session_is_shown_or_said_to_be_missing(tmp_path: Path) -> None:
    page, cards = page_of(4, tmp_path, ("T1w", "FLAIR"))
    for card in cards:
        there = int(card["scan"][1:]) % 2 == 1
        assert [bool(src) for src in shown(card)] == [True, there]
        assert [each["contrast"] for each in card["pictures"]] == ["T1w", "FLAIR"]
        reasons = [each["reason"] for each in card["pictures"]]
        assert reasons == ["", "" if there else "the session has none"]
        assert card["values"][-len(coregistration.MEASURES)] == (0.2 if there else None)
    assert "<b>edges_FLAIR</b>: FLAIR: how parallel" in page
    assert f"bound: at least {PreprocessParams().coregistration.peak.min:g}" in page
    assert "Over FLAIR, red are the edges of the T1w image" in page


def test_what_the_page_exports_is_no_formula_and_is_read_back(tmp_path: Path) -> None:
    """With the page's own functions, as a browser runs them."""
    if shutil.which("node") is None:
        pytest.skip("no node to run the page's script")
    page, _ = page_of(3, tmp_path)
    functions = re.findall(r"^ *const (?:clean|guard) = .*$", page, re.M)
    assert len(functions) == 2
    texts = ["=1+1", "-x", "@SUM(A1)", "+49 30", "'=1", "\t=1+1", "\r\n-1", "a=1", "ghosting", "'s"]
    script = "\n".join([*functions, f"const texts = {json.dumps(texts)};"])
    script += "\nconsole.log(JSON.stringify(texts.map(text => guard(clean(text)))))"
    said = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    cells = json.loads(said.stdout)
    assert all(guard_cell(cell) == cell for cell in cells if not cell.startswith("'"))
    assert [read_cell(cell) for cell in cells] == [" ".join(text.split()) for text in texts]


def test_a_page_of_thousands_embeds_only_the_worst_and_thins_the_charts(tmp_path: Path) -> None:
    page, cards = page_of(2000, tmp_path)
    embedded = [shown(card)[0].startswith("data:") for card in cards]
    assert embedded == [True] * report.EMBEDDED + [False] * (2000 - report.EMBEDDED)
    assert shown(cards[-1]) == [f"{cards[-1]['scan']}_T1w.png"]
    assert len(page) < 4_000_000
    charts = page.count("<svg height")
    # On a phone nothing can be pointed at: the columns' names stand beside their words.
    for name in MEASURES:
        assert (f"<b>{name}</b>: " in page) == (name not in BY_SYN)
    dots = page.count("<circle") - 2  # two are the key
    assert dots <= charts * (3 * report.MOST_DOTS + 1)
    assert dots > charts * 3 * 100


def test_the_page_names_narrow_bounds_with_their_site_and_what_could_not_be_measured(
    tmp_path: Path,
) -> None:
    table = pd.DataFrame([GOOD_MEASURES | dict.fromkeys(BY_SYN, np.nan)] * 6).assign(
        scan_id=list("abcdef"), volume=None, site="<old scanner>", reason=None
    )
    table.loc[:3, "cnr"] = [1.2, 1.3, 1.4, 1.45]
    table.loc[4:, "ghosting"] = np.nan
    decided = decide(table, PreprocessParams(), {}, whole=True)
    narrow = narrow_bounds(decided, PreprocessParams())
    page = report.render(decided, tmp_path, PreprocessParams(), {}, narrow)
    assert "At &lt;old scanner&gt;, cnr alone sets aside 4 of its 6 scans" in page
    assert "preprocess.quality.cnr.min: 1.2 keeps them" in page
    assert page.count("could not be measured in 2 scans") == 1


def test_charts_have_axes_names_and_bounds_that_are_told_from_data(tmp_path: Path) -> None:
    page, _ = page_of(60, tmp_path)
    chart = page.split("<b>template_correlation</b>")[1].split("</figure>")[0]
    for site in ("site0", "site1", "site2"):
        assert re.search(rf'<text x="0" y="\d+"[^>]*>{site}</text>', chart)
    bound = PreprocessParams().quality.template_correlation.min
    assert f"bound: at least {bound:g} (beyond the chart)" in chart
    ticks = re.findall(r'<text x="([\d.]+)%"[^>]*>([\d.]+)</text>', chart)
    places, values = np.array(ticks, float).T
    assert 2 <= len(values) <= 7
    # The axis is that of the dots: 0.6 to 0.9 lie where the dots end.
    slope, start = np.polyfit(values, places, 1)
    dots = np.array(re.findall(r'<circle cx="([\d.]+)%"', chart), float)
    assert 0.55 < (dots.min() - start) / slope < 0.65
    assert 0.85 < (dots.max() - start) / slope < 0.95
    assert "<b>margin_mm</b>" in page
    assert "no bound" in page.split("<b>margin_mm</b>")[1].split("</figcaption>")[0]
