"""qc.html: every scan with its verdict, measures and picture, the worst first."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from neurofoundry.contracts.cohort import T1W, further
from neurofoundry.contracts.volumes import picture_of
from neurofoundry.preprocess import coregistration
from neurofoundry.preprocess.layout import beside
from neurofoundry.preprocess.params import Bounds, PreprocessParams
from neurofoundry.preprocess.quality import MEASURES
from neurofoundry.preprocess.verdict import Narrow, Overrides
from neurofoundry.runtime import templates

PAGE = Path(__file__).with_name("qc.html")

EMBEDDED = 300
"""Scans whose pictures are within the page, the worst; the others are loaded from the files beside
it when they come into view. With all of 5,000 no browser would open it."""
NAMES_END = 22
MOST_DOTS = 120
"""Dots for the usable scans of a site in one chart; more are thinned out, extremes stay."""


def render(
    table: pd.DataFrame,
    folder: Path,
    params: PreprocessParams,
    overrides: Overrides,
    narrow: Sequence[Narrow] = (),
    contrasts: Sequence[str] = (T1W,),
) -> str:
    """Return the page: ``table`` is volumes/scans.tsv, ``folder`` holds the pictures.

    ``overrides`` were decided by hand before; what the page exports holds them, too. ``narrow`` are
    bounds that set aside many scans of a site.
    """
    measures, bounds = _measures(params, contrasts)
    # Unusable scans first, and of them those without any volume.
    order = table.sort_values(
        ["usable", "template_correlation", "scan_id"], na_position="first", kind="stable"
    )
    cards = [
        _card(scan, folder, overrides, measures, contrasts, embed=number < EMBEDDED)
        for number, scan in enumerate(order.to_dict("records"))
    ]
    faults = Counter(reason.partition(":")[0] for reason in table["reason"].dropna())
    context = {
        "scans": len(table),
        "usable": int(table["usable"].sum()),
        "faults": sorted(faults.items(), key=lambda item: (-item[1], item[0])),
        "narrow": [(bound.site, bound.describe()) for bound in narrow],
        "sites": [_site(name, rows, measures) for name, rows in table.groupby("site", sort=True)],
        "measures": measures,
        "charts": [
            _chart(name, table, bounds.get(name)) for name in measures if table[name].notna().any()
        ],
        "further": contrasts[1:],
        "names_end": NAMES_END,
        "cards": cards,
        "embedded": EMBEDDED,
        "spacing": params.grid.spacing,
        "registration": params.registration,
    }
    return templates.render(PAGE, context)


def _measures(
    params: PreprocessParams, contrasts: Sequence[str]
) -> tuple[dict[str, str], dict[str, Bounds]]:
    """Return the columns of measures in words, those of further contrasts among them, and what
    bounds they have."""
    words, bounds = dict(MEASURES), dict(params.quality)
    for contrast in contrasts[1:]:
        of_contrast = coregistration.MEASURES.items()
        words |= {further(name, contrast): f"{contrast}: {text}" for name, text in of_contrast}
        bounds |= {further(name, contrast): each for name, each in params.coregistration}
    return words, bounds


def unmeasured(table: pd.DataFrame, name: str) -> int:
    """Return how many scans have a volume, but not this measure."""
    return int((table["mask_ml"].notna() & table[name].isna()).sum())


def _site(name: Any, rows: pd.DataFrame, measures: Iterable[str]) -> dict[str, Any]:
    return {
        "name": name,
        "scans": len(rows),
        "usable": int(rows["usable"].sum()),
        "medians": [rows[measure].median() for measure in measures],
    }


def _chart(name: str, table: pd.DataFrame, bounds: Bounds | None) -> dict[str, Any]:
    """Return a strip of dots for each site, positions in percent of the width; names of sites
    take the first ``NAMES_END`` percent."""
    values = table[name].dropna()
    ends = {} if bounds is None else {"at least": bounds.min, "at most": bounds.max}
    declared = {words: float(end) for words, end in ends.items() if end is not None}
    limits = declared.values()
    # A single wild scan, or a bound far away, must not squeeze all others into a point.
    low, high = float(values.quantile(0.01)), float(values.quantile(0.99))
    margin = max(high - low, 1e-6) / 2
    near = [bound for bound in limits if low - margin < bound < high + margin]
    low, high = min([low, *near]), max([high, *near])
    width = max(high - low, 1e-6)

    def place(value: float) -> float:
        inside = (value - low) / width
        return round(NAMES_END + (98 - NAMES_END) * min(max(inside, -0.02), 1.02), 2)

    return {
        "name": name,
        "lacking": unmeasured(table, name) if name in MEASURES else 0,
        "ticks": [(f"{tick:.4g}", place(tick)) for tick in _ticks(low, high)],
        "limits": [place(bound) for bound in near],
        "bounds": [f"{words} {end:g}" for words, end in declared.items()],
        "far": len(near) < len(declared),
        "sites": [
            {
                "name": site,
                "dots": [
                    (place(scan[name]), scan["usable"])
                    for scan in _thinned(rows.dropna(subset=[name]), name).to_dict("records")
                ],
            }
            for site, rows in table.groupby("site", sort=True)
        ],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Return two to six round numbers from low to high."""
    rough = max(high - low, 1e-9) / 4
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda nice: abs(nice - rough / power))
    first = np.ceil(low / step - 1e-9)
    return [float(step * number) for number in np.arange(first, high / step + 1e-9)]


def _thinned(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Keep unusable scans, and enough of the usable ones to show their range and density."""
    usable = rows[rows["usable"]].sort_values([name, "scan_id"])
    if len(usable) > MOST_DOTS:
        usable = usable.iloc[np.linspace(0, len(usable) - 1, MOST_DOTS).round().astype(int)]
    return pd.concat([usable, rows[~rows["usable"]]])


def _card(
    scan: Mapping[Any, Any],
    folder: Path,
    overrides: Overrides,
    measures: Iterable[str],
    contrasts: Sequence[str],
    *,
    embed: bool,
) -> dict[str, Any]:
    decision, why = overrides.get(scan["scan_id"], ("", ""))
    return {
        "scan": scan["scan_id"],
        "site": scan["site"],
        "usable": bool(scan["usable"]),
        "reason": scan["reason"] if pd.notna(scan["reason"]) else "",
        "decision": decision,
        "why": why,
        "pictures": [_picture(scan, folder, contrast, embed=embed) for contrast in contrasts],
        "values": [round(scan[m], 4) if pd.notna(scan[m]) else None for m in measures],
    }


def _picture(
    scan: Mapping[Any, Any], folder: Path, contrast: str, *, embed: bool
) -> dict[str, str]:
    """Return the picture of a contrast, also of one that is left out, and why that is."""
    name = beside(picture_of(scan["volume"]), contrast) if pd.notna(scan["volume"]) else ""
    drawn = bool(name) and (folder / name).exists()
    reason = scan[further("reason", contrast)] if contrast != T1W else None
    return {
        "contrast": contrast,
        "src": "" if not drawn else _embed(folder / name) if embed else name,
        "reason": reason if pd.notna(reason) else "",
    }


def _embed(picture: Path) -> str:
    small = io.BytesIO()
    with Pillow.open(picture) as image:
        image.convert("RGB").save(small, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
