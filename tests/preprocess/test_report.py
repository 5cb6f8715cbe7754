from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from neurofoundry.preprocess import report
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import BY_SYN, MEASURES
from neurofoundry.preprocess.verdict import decide, narrow_bounds
from tests.support.preprocessing import GOOD_MEASURES


def page_of(count: int, folder: Path) -> tuple[str, list[dict[str, object]]]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame([GOOD_MEASURES | dict.fromkeys(BY_SYN, np.nan)] * count).assign(
        scan_id=[f"s{number:04d}" for number in range(count)],
        site=[f"site{number % 3}" for number in range(count)],
        usable=True,
        reason=None,
        volume=[f"s{number:04d}.nii" for number in range(count)],
    )
    table["template_correlation"] = 0.6 + 0.3 * rng.random(count)
    table["usable"] = table.index != 2
    table.loc[2, "reason"] = "unlike its site: </script><b>"
    picture = Pillow.new("RGB", (60, 20))
    for name in table["scan_id"]:
        picture.save(folder / f"{name}.png")
    decided = {"s0001": ("keep", 'a "good" one')}
    page = report.render(table, folder, PreprocessParams(), decided)
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    return page, json.loads(found[1])


def test_the_worst_scans_come_first_with_their_pictures_and_decisions(tmp_path: Path) -> None:
    page, cards = page_of(5, tmp_path)
    assert cards[0]["scan"] == "s0002"
    assert cards[0]["reason"] == "unlike its site: </script><b>"
    assert "</script><b>" not in page
    by_scan = {card["scan"]: card for card in cards}
    assert by_scan["s0001"]["decision"] == "keep"
    assert by_scan["s0001"]["why"] == 'a "good" one'
    assert all(str(card["picture"]).startswith("data:image/jpeg;base64,") for card in cards)
    fits = [card["values"][list(GOOD_MEASURES).index("template_correlation")] for card in cards[1:]]  # type: ignore[index]
    assert fits == sorted(fits)


def test_a_page_of_thousands_embeds_only_the_worst_and_thins_the_charts(tmp_path: Path) -> None:
    page, cards = page_of(2000, tmp_path)
    embedded = [str(card["picture"]).startswith("data:") for card in cards]
    assert embedded == [True] * report.EMBEDDED + [False] * (2000 - report.EMBEDDED)
    assert cards[-1]["picture"] == f"{cards[-1]['scan']}.png"
    assert len(page) < 4_000_000
    charts = page.count("<svg")
    # On a phone nothing can be pointed at: the columns' names stand beside their words.
    for name in MEASURES:
        assert (f"<b>{name}</b>: " in page) == (name not in BY_SYN)
    assert page.count("<circle") <= charts * (3 * report.MOST_DOTS + 1)
    assert page.count("<circle") > charts * 3 * 100


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
