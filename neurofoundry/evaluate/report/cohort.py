"""What the report says of the cohort: how many, from where, in which split, and what fell out."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import SPLITS
from neurofoundry.contracts.volumes import picture_of
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.report import separation
from neurofoundry.evaluate.results import Results

PICTURES = 6
"""Scans shown, of which at most two that failed quality control."""

FEWEST = 3
"""Persons that a mean age must be of: that of one would be that person's age."""

REASONS = 8
"""Lines of a list of reasons, the last of them for all others."""

SPLIT_TITLES = {
    "pretrain": "Pretraining only",
    "train": "Training",
    "val": "Validation",
    "test": "Test, familiar sites",
    "ood": "Test, new sites",
}

CROSSED = "Cross-validated, familiar sites"
"""In the place of the title of test."""


def describe(results: Results) -> dict[str, Any]:
    """Return what the templates name of the cohort."""
    inputs = results.inputs
    return {
        "synthetic": inputs.synthetic,
        "counts": _counts(inputs),
        "crossed": _cross_validation(inputs),
        "flow": _flow(inputs),
        "splits": _splits(inputs, results.tasks),
        "sites": _sites(inputs),
        "pictures": _pictures(inputs.scans, results.volumes.folder),
        "separation": separation.describe(inputs, results.volumes.folder),
        "acquisition": _acquisition(inputs.scans),
        "by_hand": int((inputs.scans["qc_decision"] == "keep").sum())
        if "qc_decision" in inputs.scans
        else 0,
        "lacking": lacking(inputs.scans[inputs.scans["usable"]]),
        "new_sites": bool((inputs.scans["split"] == "ood").any()),
    }


def _cross_validation(inputs: Inputs) -> dict[str, int] | None:
    """Return the numbers of folds, of repeats, and of persons in them; None without any."""
    place, count = folds.places(inputs.scans)
    if not count:
        return None
    persons = inputs.scans[inputs.scans["usable"] & (inputs.scans["split"] == "test")]["person"]
    return {"folds": count, "repeats": place.shape[1], "persons": persons.nunique()}


def lacking(scans: pd.DataFrame) -> int:
    """Return how many scans lack an age or a sex."""
    return int(scans[["age", "sex"]].isna().any(axis=1).sum())


def _counts(inputs: Inputs) -> dict[str, Any]:
    scans = inputs.scans
    return {
        "scans": len(scans),
        "persons": scans["person"].nunique(),
        "sites": scans.groupby(["dataset", "site"]).ngroups,
        "datasets": scans["dataset"].nunique(),
        "usable": int(scans["usable"].sum()),
    }


def _flow(inputs: Inputs) -> dict[str, Any]:
    """Return the way from files found to scans used, with everything that fell out and why."""
    scans = inputs.scans
    names = {
        str(name) for column in ("person", "subject", "scan_id", "path") for name in scans[column]
    }
    failed = scans[~scans["usable"]]
    return {
        "files": len(scans) + len(inputs.excluded),
        "excluded": _by_reason(inputs.excluded["reason"], names),
        "excluded_total": len(inputs.excluded),
        "scans": len(scans),
        "persons": scans["person"].nunique(),
        "failed": _by_reason(failed["reason"], names),
        "failed_total": len(failed),
        "usable": int(scans["usable"].sum()),
        "usable_persons": scans[scans["usable"]]["person"].nunique(),
    }


def _by_reason(reasons: pd.Series, names: set[str]) -> list[tuple[str, int]]:
    """Count each kind of reason, the most frequent first; ``names`` are left out of the kinds."""
    kinds = Counter(_kind(str(reason), names) for reason in reasons.fillna("no reason given"))
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > REASONS:
        rest = sum(count for _, count in ordered[REASONS - 1 :])
        ordered = [*ordered[: REASONS - 1], ("other reasons", rest)]
    return ordered


def _kind(reason: str, names: set[str]) -> str:
    """Return what a reason says before its numbers, without names."""
    kind = reason.split(":")[0].split(";")[0].split("(")[0].strip()
    tokens = [
        "…" if token in names or "/" in token or re.match(r"(sub|ses)-", token) else token
        for token in kind.split()
    ]
    return " ".join(tokens) or "no reason given"


def _splits(inputs: Inputs, tasks: Sequence[Evidence]) -> dict[str, Any]:
    """Return a row a split: usable scans; age and sex of persons at their first scan."""
    usable = inputs.scans[inputs.scans["usable"]]
    shown = [each for each in tasks if each.task.column not in ("age", "sex")]
    titles = SPLIT_TITLES | ({"test": CROSSED} if folds.count(inputs.scans) else {})
    rows = [_split(name, titles[name], usable[usable["split"] == name], shown) for name in SPLITS]
    rows.append(_split("all", "All", usable, shown))
    return {"rows": [row for row in rows if row["scans"]], "tasks": [each.name for each in shown]}


def _split(name: str, title: str, scans: pd.DataFrame, tasks: Sequence[Evidence]) -> dict[str, Any]:
    persons = scans.sort_values(["person", "age", "session"]).drop_duplicates("person")
    ages, sexes = persons["age"].dropna(), persons["sex"].dropna()
    return {
        "title": title,
        "total": name == "all",
        "persons": len(persons),
        "scans": len(scans),
        "sites": scans.groupby(["dataset", "site"]).ngroups,
        "age": f"{ages.mean():.1f} ± {ages.std(ddof=0):.1f}" if len(ages) >= FEWEST else "–",
        "age_missing": len(persons) - len(ages),
        "female": f"{100 * (sexes == 'F').mean():.0f} %" if len(sexes) >= FEWEST else "–",
        "labels": [each.task.describe_labels(each.task.select(scans)) for each in tasks],
    }


def _sites(inputs: Inputs) -> list[dict[str, Any]]:
    """Return persons and scans of each site, and how many failed quality control."""
    rows = []
    for (dataset, site), scans in inputs.scans.groupby(["dataset", "site"]):
        strengths = sorted(set(scans["field_strength"].dropna()))
        rows.append(
            {
                "dataset": dataset,
                "site": site,
                "persons": scans["person"].nunique(),
                "scans": len(scans),
                "failed": int((~scans["usable"]).sum()),
                "field": " and ".join(f"{tesla:g} T" for tesla in strengths) or "–",
                "new": bool((scans["split"] == "ood").all()),
            }
        )
    return rows


def _acquisition(scans: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the scanners and field strengths of each site, as far as they are recorded."""
    rows = []
    for (dataset, site), of_site in scans.groupby(["dataset", "site"]):
        strengths = [f"{tesla:g} T" for tesla in sorted(set(of_site["field_strength"].dropna()))]
        scanners = sorted(set(of_site["scanner"].dropna().astype(str)))
        rows.append(
            {
                "dataset": dataset,
                "site": site,
                "words": ", ".join([*scanners, *strengths]) or "not recorded",
                "lacking": int(of_site[["scanner", "field_strength"]].isna().any(axis=1).sum()),
            }
        )
    return rows


def _pictures(scans: pd.DataFrame, volumes: Path) -> list[dict[str, Any]]:
    """Return a few scans as preprocess drew them, spread over the table; numbered, never named."""
    drawn = scans.assign(number=range(1, len(scans) + 1))
    drawn = drawn[drawn["volume"].notna()]
    drawn = drawn[[(volumes / picture_of(volume)).exists() for volume in drawn["volume"]]]
    failed = drawn[~drawn["usable"]].iloc[:2]
    good = drawn[drawn["usable"]]
    wanted = PICTURES - len(failed)
    shown = min(wanted, len(good))
    good = good.iloc[[len(good) * index // shown for index in range(shown)]]
    return [
        {
            "number": scan.number,
            "of": len(scans),
            "reason": None if scan.usable else _kind(str(scan.reason), set()),
            "data": embed(volumes / picture_of(str(scan.volume)), width=600),
        }
        for scan in pd.concat([good, failed]).itertuples()
    ]


def embed(path: Path, *, width: int) -> str:
    """Return a PNG as a data URI, redrawn so that nothing but its pixels is carried over."""
    with Image.open(path) as picture:
        pixels = picture.convert("L" if picture.mode in ("L", "1", "I;16") else "RGB")
    if pixels.width > width:
        pixels = pixels.resize((width, round(pixels.height * width / pixels.width)))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
