"""Which scans can be used: by the bounds, by comparison within a site, and by a person's decision.

All of it is decided from the measures in the table, when every scan is done: other bounds and
other decisions cost no preprocessing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from neurofoundry.contracts.cohort import further as further_column
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import UsageError
from neurofoundry.preprocess import coregistration
from neurofoundry.preprocess.params import Bounds, PreprocessParams, QualityParams
from neurofoundry.preprocess.quality import CATCHES, MEASURES, judge, out_of_bounds
from neurofoundry.preprocess.scan import FurtherResult
from neurofoundry.runtime.files import hash_file

FEWEST_OF_SITE = 20
"""Usable scans that a site must have before any of them can be an outlier."""
HIGHER_IS_BETTER = ("template_correlation", "local_correlation", "contrast", "cnr")
"""Measures by which a scan must not lie far below its site. The other measures differ between
people: atrophy and infarcts lower the overlap of masks, for one."""
MANY, MANY_SHARE = 3, 0.1
"""Scans of a site, and their share, from which one bound sets aside many."""
MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

OVERRIDES_FILE = "qc_overrides.tsv"
"""At the root of the raw data, with which it is versioned and copied."""
OVERRIDES = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(str, unique=True),
        "decision": pa.Column(str, pa.Check.isin(["keep", "exclude"])),
        "reason": pa.Column(str, nullable=True),
    },
    coerce=True,
)
"""qc_overrides.tsv: what a person decided with qc.html, which exports it."""


Overrides = Mapping[str, tuple[str, str]]
"""By ``scan_id``: the decision and its reason."""


def read_overrides(path: Path, scans: pd.DataFrame) -> Overrides:
    """Read the decision and its reason by scan. Raises UsageError for a scan that is not in the
    cohort."""
    if not path.is_file():
        raise UsageError(
            f"preprocess.overrides: no file {path}. Export one from qc.html, or remove the key."
        )
    table = read_table(path, OVERRIDES)
    unknown = sorted(set(table["scan_id"]) - set(scans["scan_id"]))
    if unknown:
        raise UsageError(
            f"{path}: {len(unknown)} scans are not in the cohort, such as "
            f"{', '.join(unknown[:5])}. Remove their rows, or correct the names."
        )
    rows = table.fillna({"reason": "no reason given"}).to_dict("records")
    return {row["scan_id"]: (row["decision"], row["reason"]) for row in rows}


def find_overrides(params: PreprocessParams, data: Path) -> Path | None:
    """Return the overrides that the parameters name, or those at the root of the raw data.

    Raises UsageError where there are both: nobody would know which of them counts.
    """
    beside = data / OVERRIDES_FILE
    if params.overrides is None:
        return beside if beside.is_file() else None
    if beside.is_file() and not (params.overrides.exists() and beside.samefile(params.overrides)):
        raise UsageError(
            f"preprocess.overrides is {params.overrides}, and the raw data have their own "
            f"{OVERRIDES_FILE}. Move all decisions to the latter, and remove the key."
        )
    return params.overrides


def decisions(params: PreprocessParams, data: Path) -> dict[str, str]:
    """Return the hash of the overrides, which decide the stage's output as the parameters do."""
    path = find_overrides(params, data)
    return {"overrides_sha256": hash_file(path)} if path is not None and path.is_file() else {}


def decide(
    table: pd.DataFrame,
    params: PreprocessParams,
    overrides: Overrides,
    *,
    whole: bool,
) -> pd.DataFrame:
    """Return the table with ``usable``, ``qc_decision`` and every ``reason``.

    ``table`` has the measures, and a ``reason`` where nothing could be made of a scan. Unless it
    is the ``whole`` cohort there are no outliers: the rest of a site may be in another shard.
    """
    reasons: list[str | None] = []
    for scan in table.to_dict("records"):
        measured = {name: scan[name] for name in MEASURES if pd.notna(scan[name])}
        reasons.append(scan["reason"] or judge(measured, params.quality))
    if whole and params.outliers is not None:
        usable = table.reset_index(drop=True)[[reason is None for reason in reasons]]
        for row, reason in outliers(usable, params.outliers, params.quality).items():
            reasons[row] = reason
    decided = [overrides.get(scan_id, (None, "")) for scan_id in table["scan_id"]]
    for row, (decision, why) in enumerate(decided):
        fault = table["reason"].iloc[row]
        if decision == "exclude":
            reasons[row] = f"excluded by hand: {why}"
        elif decision == "keep":
            no_volume = f"{fault}; it cannot be kept by hand: there is no volume"
            reasons[row] = no_volume if fault else None
    return table.assign(
        usable=[reason is None for reason in reasons],
        reason=pd.Series(reasons, index=table.index, dtype=object),
        qc_decision=pd.Series(
            [decision for decision, _ in decided], index=table.index, dtype=object
        ),
    )


def decide_further(
    table: pd.DataFrame,
    further: Mapping[str, Sequence[FurtherResult | None]],
    params: PreprocessParams,
    overrides: Overrides,
    volumes: Mapping[str, Sequence[str | None]],
    *,
    required: Collection[str],
) -> pd.DataFrame:
    """Return the table, which is decided, with columns for each further contrast.

    ``further`` are the results of its rows by contrast, ``volumes`` the files. What is unlike the
    T1w image of its session is left out, and where the contrast is ``required`` so is the session.
    A person's decision to keep a scan keeps what could be made of its contrasts.
    """
    for contrast, results in further.items():
        kept = [overrides.get(scan_id, ("", ""))[0] == "keep" for scan_id in table["scan_id"]]
        paths = table[further_column("path", contrast)]
        reasons = [
            _why_not(result, params, named=isinstance(path, str), kept=keep)
            for result, path, keep in zip(results, paths, kept, strict=True)
        ]
        there = [each is None for each in reasons]
        measures = [result.measures if result else {} for result in results]
        columns: dict[str, list[Any]] = {
            "volume": _where(there, volumes[contrast]),
            "volume_sha256": _where(there, [each and each.volume_sha256 for each in results]),
            "reason": reasons,
        }
        for name in coregistration.MEASURES:
            columns[name] = [each.get(name, math.nan) for each in measures]
        for name, values in columns.items():
            dtype: type = float if name in coregistration.MEASURES else object
            column = pd.Series(values, index=table.index, dtype=dtype)
            table = table.assign(**{further_column(name, contrast): column})
        if contrast in required:
            lost = table["usable"] & ~pd.Series(there, index=table.index)
            why = [f"{contrast}: {reason}" for reason in reasons]
            table = table.assign(
                reason=table["reason"].where(~lost, pd.Series(why, index=table.index)),
                usable=table["usable"] & ~lost,
            )
    return table


def _why_not(
    result: FurtherResult | None, params: PreprocessParams, *, named: bool, kept: bool
) -> str | None:
    """Return why a further contrast, whose image the cohort has ``named``, is left out; None when
    it is used."""
    if result is None:
        return "nothing could be made of the T1w image" if named else "the session has none"
    if result.reason or kept:
        return result.reason
    return coregistration.judge(result.measures, params.coregistration)


def _where(there: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    return [value if each else None for each, value in zip(there, values, strict=True)]


def outliers(usable: pd.DataFrame, deviations: float, bounds: QualityParams) -> dict[int, str]:
    """Return why scans are outliers of their site, in words, by the row of the table.

    One of ``HIGHER_IS_BETTER`` is then more than ``deviations`` robust standard deviations (the
    median absolute deviation, scaled) below the site's median, and nearer to its bound than to the
    median: where neighbours resemble each other, a noisy scan lies far from them and is right.
    """
    reasons: dict[int, str] = {}
    for site, rows in usable.groupby("site", sort=True):
        if len(rows) < FEWEST_OF_SITE:
            continue
        for name in HIGHER_IS_BETTER:
            median = rows[name].median()
            spread = MAD_TO_DEVIATION * (rows[name] - median).abs().median()
            least = min(median - deviations * spread, _halfway(getattr(bounds, name), median))
            far_below = rows.loc[rows[name] < least, name]
            for row, value in zip(far_below.index.tolist(), far_below, strict=True):
                reasons.setdefault(
                    row,
                    f"unlike its site: {MEASURES[name]} {value:.3g}, expected at least "
                    f"{least:.3g} at {site}, whose median is {median:.3g}",
                )
    return reasons


def _halfway(bound: Bounds, median: float) -> float:
    """Return the value that is as many times the bound as the median is times this value."""
    return math.sqrt(bound.min * median) if bound.min and bound.min > 0 else median


@dataclass(frozen=True)
class Narrow:
    """A bound that alone sets aside many scans of a site, which may be right."""

    site: str
    measure: str
    scans: int
    """Of the site."""
    set_aside: int
    """Of these, those that no other bound sets aside."""
    values: tuple[float, float]
    """The lowest and the highest of theirs."""
    end: str
    """min or max."""
    bound: float
    wider: float
    """The bound that would keep them."""
    others: int
    """Scans of other sites that it would let in."""

    def describe(self) -> str:
        """Return what was found, and what to do, without the site's name."""
        low, high = self.values
        expected = f"at {'least' if self.end == 'min' else 'most'} {self.bound:g}"
        return (
            f"{self.measure} alone sets aside {self.set_aside} of its {self.scans} scans (values "
            f"of {low:.3g} to {high:.3g}, expected {expected}). Look at them in qc.html. If they "
            f"are right, preprocess.quality.{self.measure}.{self.end}: {self.wider:g} keeps them, "
            f"and lets in {self.others} scans of other sites. What this bound is there to set "
            f"aside: {CATCHES[self.measure]}"
        )


def narrow_bounds(table: pd.DataFrame, params: PreprocessParams) -> list[Narrow]:
    """Return the bounds that alone set aside many scans of a site, of a table that is decided."""
    alone = []
    for scan in table[table["qc_decision"].isna()].to_dict("records"):
        measured = {name: scan[name] for name in MEASURES if pd.notna(scan[name])}
        faults = list(out_of_bounds(measured, params.quality)) if measured else []
        if len(faults) == 1 and faults[0] in measured:
            alone.append((scan["site"], faults[0], measured[faults[0]]))
    set_aside = pd.DataFrame(alone, columns=["site", "measure", "value"])
    found = []
    for (site, name), rows in set_aside.groupby(["site", "measure"]):
        scans = int((table["site"] == site).sum())
        if len(rows) >= max(MANY, MANY_SHARE * scans):
            elsewhere = set_aside.query("site != @site and measure == @name")["value"]
            found.append(_narrow(str(site), str(name), scans, rows["value"], elsewhere, params))
    return found


def _narrow(
    site: str,
    name: str,
    scans: int,
    values: pd.Series[float],
    elsewhere: pd.Series[float],
    params: PreprocessParams,
) -> Narrow:
    low, high = float(values.min()), float(values.max())
    bound = getattr(params.quality, name)
    end = "min" if bound.min is not None and low < bound.min else "max"
    wider = _outwards(low, math.floor) if end == "min" else _outwards(high, math.ceil)
    others = int((elsewhere >= wider if end == "min" else elsewhere <= wider).sum())
    return Narrow(
        site, name, scans, len(values), (low, high), end, getattr(bound, end), wider, others
    )


def _outwards(value: float, rounded: Callable[[float], int]) -> float:
    """Return a value of two digits that lies beyond."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 1.0
    return round(rounded(round(value / unit, 6)) * unit, 12)
