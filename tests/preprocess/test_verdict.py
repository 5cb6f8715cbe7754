from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry.errors import DataError, UsageError
from neurofoundry.preprocess.params import Bounds, PreprocessParams, QualityParams
from neurofoundry.preprocess.quality import BY_SYN, CATCHES, MEASURES
from neurofoundry.preprocess.verdict import (
    FEWEST_OF_SITE,
    decide,
    decisions,
    find_overrides,
    narrow_bounds,
    outliers,
    read_overrides,
)
from tests.support.preprocessing import GOOD_MEASURES

PARAMS = PreprocessParams()


def scans(count: int, site: str = "here") -> pd.DataFrame:
    table = pd.DataFrame([GOOD_MEASURES | dict.fromkeys(BY_SYN, np.nan)] * count)
    rng = np.random.default_rng(0)
    table["local_correlation"] = 0.7 + 0.01 * rng.normal(size=count)
    names = [f"{site}{number}" for number in range(count)]
    return table.assign(scan_id=names, site=site, reason=None)


def test_a_scan_far_below_its_site_stands_out_and_only_that_one() -> None:
    table = pd.concat([scans(30), scans(30, "there")], ignore_index=True)
    table.loc[7, "local_correlation"] = 0.35
    table.loc[8, "local_correlation"] = 0.45  # noisy, but nearer to its site than to a wrong fit
    table.loc[40, "local_correlation"] = 0.85  # better than its site
    values = table.loc[:29, "local_correlation"]
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    bounds = PARAMS.quality
    assert list(outliers(table, 6.0, bounds)) == [7]
    own = (np.median(values) - 0.35) / deviation
    assert list(outliers(table, own - 0.01, bounds)) == [7]
    assert outliers(table, own + 0.01, bounds) == {}
    # 0.45 is the geometric mean of the median and of this bound, which no scan is below.
    for least, found in ((0.99, [7]), (1.01, [7, 8])):
        bound = Bounds(min=least * 0.45**2 / np.median(values))
        narrower = bounds.model_copy(update={"local_correlation": bound})
        assert list(outliers(table, 6.0, narrower)) == found
    # Without a bound only neighbours tell.
    loose = bounds.model_copy(update={"local_correlation": Bounds(max=1)})
    assert list(outliers(table, 6.0, loose)) == [7, 8]
    decided = decide(table, PARAMS, {}, whole=True)
    assert decided.index[~decided["usable"]].tolist() == [7]
    assert decided.loc[7, "reason"].startswith("unlike its site: local correlation")
    assert decide(table, PARAMS, {}, whole=False)["usable"].all()
    params = PARAMS.model_copy(update={"outliers": None})
    assert decide(table, params, {}, whole=True)["usable"].all()


def test_nothing_stands_out_at_a_site_of_few_usable_scans() -> None:
    table = scans(FEWEST_OF_SITE)
    table.loc[3, "local_correlation"] = 0.3
    assert list(outliers(table, 6.0, PARAMS.quality)) == [3]
    table.loc[5, "contrast"] = 0.05  # not usable, and so no part of the comparison
    decided = decide(table, PARAMS, {}, whole=True)
    assert decided.index[~decided["usable"]].tolist() == [5]


def test_what_a_person_decided_goes_before_bounds_and_outliers(tmp_path: Path) -> None:
    table = scans(25)
    table.loc[0, "local_correlation"] = 0.3
    table.loc[1, "contrast"] = 0.05
    table.loc[2, "reason"] = "empty: every value is 0"
    path = tmp_path / "qc_overrides.tsv"
    path.write_text(
        "scan_id\tdecision\treason\nhere0\tkeep\tlooked fine\nhere1\tkeep\tn/a\n"
        "here2\tkeep\tn/a\nhere3\texclude\tghosting\n"
    )
    decided = decide(table, PARAMS, read_overrides(path, table), whole=True)
    assert decided["usable"].tolist() == [True, True, False, False] + [True] * 21
    assert "no volume" in decided.loc[2, "reason"]
    assert decided.loc[3, "reason"] == "excluded by hand: ghosting"
    assert decided["qc_decision"].tolist()[:5] == ["keep", "keep", "keep", "exclude", None]


def test_decisions_are_known_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "qc_overrides.tsv"
    params = PARAMS.model_copy(update={"overrides": path})
    path.write_text("scan_id\tdecision\treason\na\tkeep\tn/a\n")
    first = decisions(params, tmp_path / "data")
    path.write_text("scan_id\tdecision\treason\na\texclude\tn/a\n")
    assert decisions(params, tmp_path / "data") != first
    assert decisions(PARAMS, tmp_path / "data") == {}


def test_decisions_in_the_raw_data_are_found_and_never_compete(tmp_path: Path) -> None:
    beside = tmp_path / "qc_overrides.tsv"
    assert find_overrides(PARAMS, tmp_path) is None
    beside.write_text("scan_id\tdecision\treason\nhere0\texclude\tghosting\n")
    assert find_overrides(PARAMS, tmp_path) == beside
    assert decisions(PARAMS, tmp_path).keys() == {"overrides_sha256"}
    assert find_overrides(PARAMS.model_copy(update={"overrides": beside}), tmp_path) == beside
    other = PARAMS.model_copy(update={"overrides": tmp_path / "other.tsv"})
    with pytest.raises(UsageError, match="have their own"):
        find_overrides(other, tmp_path)
    assert find_overrides(other, tmp_path / "elsewhere") == tmp_path / "other.tsv"


def test_wrong_overrides_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "qc_overrides.tsv"
    with pytest.raises(UsageError, match="no file"):
        read_overrides(path, scans(3))
    path.write_text("scan_id\tdecision\treason\nelsewhere\tkeep\tn/a\n")
    with pytest.raises(UsageError, match=r"1 scans are not in the cohort, such as elsewhere"):
        read_overrides(path, scans(3))
    path.write_text("scan_id\tdecision\treason\nhere0\tmaybe\tn/a\n")
    with pytest.raises(DataError, match="maybe"):
        read_overrides(path, scans(3))


def test_a_bound_that_sets_aside_many_scans_of_a_site_is_named_with_what_keeps_them() -> None:
    table = pd.concat([scans(12, "lyon"), scans(8, "bonn")], ignore_index=True)
    table.loc[:3, "local_correlation"] = [0.2, 0.18, 0.173, 0.21]
    table.loc[3, "cnr"] = 0.5  # set aside by another bound, too
    table.loc[12:13, "local_correlation"] = [0.19, 0.1]  # only two of a site
    table.loc[14:16, "ghosting"] = [0.05, 0.0612, 0.043]
    decided = decide(table, PARAMS, {}, whole=True)
    bonn, lyon = narrow_bounds(decided, PARAMS)
    assert (lyon.site, lyon.measure, lyon.set_aside, lyon.scans) == (
        "lyon",
        "local_correlation",
        3,
        12,
    )
    assert (lyon.end, lyon.wider, lyon.others) == ("min", 0.17, 1)
    assert (bonn.site, bonn.measure, bonn.end, bonn.wider) == (
        "bonn",
        "ghosting",
        "max",
        0.062,
    )
    # The settings that it names do what it says.
    words = f"{lyon.describe()} {bonn.describe()}"
    for name, end, wider in re.findall(r"preprocess\.quality\.(\w+)\.(\w+): ([\d.]+) keeps", words):
        bounds = {"quality": {name: {end: float(wider)}}}
        kept = decide(table, PreprocessParams.model_validate(bounds), {}, whole=True)["usable"]
        site = lyon if name == lyon.measure else bonn
        before = decided["usable"]
        at = table["site"] == site.site
        assert (kept & ~before & at).sum() == site.set_aside
        assert (kept & ~before & ~at).sum() == site.others
    assert "wrong registrations" in lyon.describe()
    assert "lyon" not in words
    assert "bonn" not in words
    # A person has looked at them.
    looked = decided.assign(qc_decision=["exclude"] * len(table))
    assert narrow_bounds(looked, PARAMS) == []


def test_every_bound_says_what_it_sets_aside() -> None:
    assert set(QualityParams.model_fields) == set(CATCHES) <= set(MEASURES)
