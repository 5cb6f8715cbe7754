"""qc.html: what was made of every scan, the worst first."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image as Pillow

from neurofoundry.preprocess.params import Bounds, PreprocessParams
from neurofoundry.preprocess.quality import MEASURES
from neurofoundry.preprocess.scan import OUTPUTS

MOST_PICTURES = 300
"""More would make a page that no browser opens; the others lie beside it as files."""


def render(table: pd.DataFrame, folder: Path, params: PreprocessParams) -> str:
    """The page, self-contained: ``table`` is volumes/scans.tsv, ``folder`` holds the pictures."""
    # Unusable scans first, and those that nothing could be made of before those with a picture.
    order = table.sort_values(
        ["usable", "template_correlation", "scan_id"], na_position="first", kind="stable"
    )
    shown = order.head(MOST_PICTURES)
    faults = Counter(reason.partition(":")[0] for reason in table["reason"].dropna())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("qc.html").render(
        scans=len(table),
        usable=int(table["usable"].sum()),
        faults=sorted(faults.items(), key=lambda item: (-item[1], item[0])),
        sites=[_site(name, rows) for name, rows in table.groupby("site", sort=True)],
        measures=MEASURES,
        charts=[
            _chart(name, table, getattr(params.quality, name, None))
            for name in MEASURES
            if table[name].notna().any()
        ],
        cards=[_card(scan, folder) for scan in shown.to_dict("records")],
        spacing=params.grid.spacing,
        registration=params.registration,
    )


def _site(name: Any, rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "name": name,
        "scans": len(rows),
        "usable": int(rows["usable"].sum()),
        "medians": [rows[measure].median() for measure in MEASURES],
    }


def _chart(name: str, table: pd.DataFrame, bounds: Bounds | None) -> dict[str, Any]:
    """A strip of dots for each site, positions in percent of the width."""
    values = table[name].dropna()
    limits = [] if bounds is None else [end for end in (bounds.min, bounds.max) if end is not None]
    # A single wild scan, or a bound far away, must not squeeze all others into a point.
    low, high = float(values.quantile(0.01)), float(values.quantile(0.99))
    margin = max(high - low, 1e-6) / 2
    near = [bound for bound in limits if low - margin < bound < high + margin]
    low, high = min([low, *near]), max([high, *near])
    width = max(high - low, 1e-6)

    def place(value: float) -> float:
        return round(min(max(4 + 92 * (value - low) / width, 1), 99), 2)

    return {
        "name": name,
        "low": low,
        "high": high,
        "limits": [place(bound) for bound in near],
        "sites": [
            {
                "name": site,
                "dots": [
                    (place(scan[name]), scan["usable"])
                    for scan in rows.dropna(subset=[name]).to_dict("records")
                ],
            }
            for site, rows in table.groupby("site", sort=True)
        ],
    }


def _card(scan: Mapping[Any, Any], folder: Path) -> dict[str, Any]:
    picture = folder / OUTPUTS[2].format(scan["scan_id"])
    known = pd.notna(scan["mask_ml"])
    return {
        "scan_id": scan["scan_id"],
        "site": scan["site"],
        "usable": scan["usable"],
        "reason": scan["reason"],
        "picture": _embed(picture) if known and picture.exists() else None,
        "measures": {name: scan[name] for name in MEASURES} if known else {},
    }


def _embed(picture: Path) -> str:
    small = io.BytesIO()
    with Pillow.open(picture) as image:
        image.convert("RGB").save(small, "JPEG", quality=80)
    return base64.b64encode(small.getvalue()).decode()
