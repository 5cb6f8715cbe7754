"""The page on outlines, for those who read scans: pictures, volumes, lesions, and words for both.

A picture shows a brain on the standard grid, as the map of scans does, and names nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.contracts.cohort import TESTED
from neurofoundry.contracts.models import ENSEMBLE, counterpart
from neurofoundry.evaluate.measure.outlines import ATLAS, OTSU, SCANS, Example, Outlines
from neurofoundry.evaluate.report import plots
from neurofoundry.evaluate.rows import find_row
from neurofoundry.runtime.files import write_text
from neurofoundry.runtime.templates import render
from neurofoundry.stats.outlines import OUTLINE_METRICS, SIZES

PAGE = "outlines.html"

WHERE = {"test": "familiar sites", "ood": "new sites"}

COLUMNS = {
    "dice": "Dice",
    "hd95_mm": "Distance of surfaces<small>95th percentile, mm</small>",
    "volume_error_ml": "Error of the volume<small>absolute, ml</small>",
}
LESIONS = {
    **{f"sensitivity_{size}": f"{size.capitalize()}" for size in SIZES},
    "lesion_f1": "F1",
    "nothing_found": "Empty scans left empty",
}

FLOORS = {
    ATLAS: "the same outline for everybody (from the training scans)",
    OTSU: "one side of a threshold of brightness (Otsu)",
}

Cell = Mapping[str, Any]


def write(folder: Path, outlines: Outlines, *, synthetic: bool) -> None:
    """Write PAGE: the same bytes for the same measures."""
    context = {
        "synthetic": synthetic,
        "studies": describe(outlines),
        "columns": COLUMNS,
        "lesions": LESIONS,
        "sizes": {size: _range(*ends) for size, ends in SIZES.items()},
        "where": WHERE,
        "number": number,
        "colours": {
            "familiar": plots.FAMILIAR,
            "new": plots.NEW,
            "truth": plots.TRUTH,
            "found": plots.FOUND,
        },
    }
    write_text(folder / PAGE, render(Path(__file__).with_name(PAGE), context) + "\n")


def describe(outlines: Outlines) -> list[dict[str, Any]]:
    """Return what is to be said of each class of each task."""
    return [
        _describe(outlines, task, name)
        for task, each in outlines.tasks.items()
        for name in each.classes
    ]


def _describe(outlines: Outlines, task: str, name: str) -> dict[str, Any]:
    init = outlines.chosen.get(task)
    measures = _of(outlines.measures, task, name)
    fraction = measures["fraction"].max()
    whole = measures[measures["fraction"] == fraction]
    names = list(dict.fromkeys(whole["init"]))
    splits = [split for split in TESTED if (whole["split"] == split).any()]
    versus = _of(outlines.differences, task, name)
    versus = versus[versus["fraction"] == fraction]
    agreement = _of(outlines.volumes, task, name)
    agreement = agreement[agreement["fraction"] == fraction]
    return {
        "task": task,
        "name": name,
        "init": init,
        "reference": outlines.reference,
        "splits": splits,
        "persons": {split: _persons(whole, split) for split in splits},
        "rows": [_row(whole, versus, each, init, outlines.reference, splits) for each in names],
        "shares": _shares(measures, names),
        "groups": _groups(_of(outlines.subgroups, task, name), init, outlines.reference),
        "headline": _headline(whole, versus, init, outlines.reference, name),
        "sentences": list(_sentences(whole, versus, agreement, init, outlines.reference)),
        "pictures": [
            {"caption": _caption(each), "svg": plots.outlines(each, _caption(each))}
            for each in outlines.examples
            if (each.task, each.name) == (task, name)
        ],
        "volumes": _volumes(_of(outlines.scans, task, name), agreement, init, fraction, name),
    }


def _of(table: pd.DataFrame, task: str, name: str) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["class"] == name)]


def _persons(measures: pd.DataFrame, split: str) -> int:
    """Return of how many persons anything is known."""
    return int(measures[measures["split"] == split]["persons"].max())


def _row(
    measures: pd.DataFrame,
    differences: pd.DataFrame,
    init: str,
    chosen: str | None,
    reference: str,
    splits: Sequence[str],
) -> dict[str, Any]:
    """Return the rows of the tables of one initialization or floor."""
    of_init = measures[measures["init"] == init]
    versus = differences[(differences["init"] == init) & (differences["metric"] == "dice")]
    return {
        "init": init,
        "words": _words(init, chosen, reference),
        "floor": init in FLOORS,
        "cells": {
            split: {metric: _cell(of_init, split, metric) for metric in OUTLINE_METRICS}
            for split in splits
        },
        "versus": {split: find_row(versus, split=split) for split in splits},
    }


def _words(init: str, chosen: str | None, reference: str) -> str:
    """Return what is to be known of a row."""
    if init.endswith(ENSEMBLE):
        words = "the mean of its models"
        versus = counterpart(init, reference)
        return words if init == versus else f"{words}, against {versus}"
    return FLOORS.get(init, "chosen on validation" if init == chosen else "")


def _shares(measures: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Return the Dice of every share of the labels at familiar sites, where there are several."""
    shares = sorted(measures[~measures["init"].isin(FLOORS)]["fraction"].unique())
    rows = [
        {
            "init": name,
            "cells": [
                _cell(measures[measures["init"] == name], "test", "dice", share) for share in shares
            ],
        }
        for name in names
        if name not in FLOORS
    ]
    return {"shares": shares, "rows": rows if len(shares) > 1 else []}


def _groups(subgroups: pd.DataFrame, init: str | None, reference: str) -> dict[str, Any]:
    """Return the Dice of the chosen initialization and of the reference in groups of people."""
    names = [name for name in dict.fromkeys([init, reference]) if name in set(subgroups["init"])]
    own = subgroups[subgroups["init"] == init]
    shown = own[own["value"].notna()]
    rows = [
        {
            "split": split,
            "group": f"{variable} {group}",
            "persons": int(persons),
            "cells": [
                find_row(subgroups, init=name, split=split, variable=variable, group=group)
                for name in names
            ],
        }
        for split, variable, group, persons in shown[
            ["split", "variable", "group", "persons"]
        ].itertuples(index=False)
    ]
    return {"names": names, "rows": rows, "hidden": len(own) - len(shown)}


def _cell(
    table: pd.DataFrame, split: str, metric: str, fraction: float | None = None
) -> Cell | None:
    where = {"split": split, "metric": metric}
    return find_row(table, **where, **({} if fraction is None else {"fraction": fraction}))


def number(cell: Mapping[str, Any] | None, metric: str, *, signed: bool = False) -> str:
    """Return a value with its interval; '–' where there is none."""
    if cell is None or cell["value"] is None:
        return "–"
    digits = 1 if metric.endswith(("_mm", "_ml")) else 2
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    text = form.format(cell["value"])
    if cell["low"] is not None:
        text += f" ({form.format(cell['low'])} to {form.format(cell['high'])})"
    return text.replace("-", "−")


def _headline(
    measures: pd.DataFrame, versus: pd.DataFrame, init: str | None, reference: str, name: str
) -> str:
    if init is None:
        return "Not estimable: no model was trained"
    if init == reference:
        return f"On validation, no start outlines {name} better than {reference}"
    row = find_row(versus[versus["init"] == init], split="test", metric="dice")
    if row is None or row["low"] is None:
        return f"{init} cannot be compared with {reference}"
    if row["low"] > 0:
        return f"{init} outlines {name} better than {reference}"
    if row["high"] < 0:
        return f"{init} outlines {name} worse than {reference}"
    return f"{init} is not shown to outline {name} better than {reference}"


def _sentences(
    measures: pd.DataFrame,
    versus: pd.DataFrame,
    agreement: pd.DataFrame,
    init: str | None,
    reference: str,
) -> Iterator[str]:
    """Yield what a reader must know of the chosen initialization; each sentence has its number."""
    own = measures[measures["init"] == init]
    for split, where in WHERE.items():
        if (dice := _cell(own, split, "dice")) and dice["value"] is not None:
            text = f"At {where} Dice is {number(dice, 'dice')} in {dice['persons']} persons"
            row = find_row(versus[versus["init"] == init], split=split, metric="dice")
            if row and row["value"] is not None:
                text += f"; {number(row, 'dice', signed=True)} against {reference}"
            yield text + "."
    yield from _against_floors(measures, own)
    if (row := find_row(agreement, init=init, split="test")) and row["bias"] is not None:
        yield _of_volumes(row)
    found = {size: _cell(own, "test", f"sensitivity_{size}") for size in SIZES}
    shares = [
        f"{_percent(cell['value'])} of the {size}"
        for size, cell in found.items()
        if cell and cell["value"] is not None
    ]
    if shares:
        yield f"Of lesions at familiar sites it finds {', '.join(shares)} ones."
    if (empty := _cell(own, "test", "nothing_found")) and empty["value"] is not None:
        share = _percent(empty["value"])
        yield f"Of {empty['scans']} scans with nothing to outline {share} stay empty."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _against_floors(measures: pd.DataFrame, own: pd.DataFrame) -> Iterator[str]:
    """Yield what is reached without a network."""
    dice = _cell(own, "test", "dice")
    for floor, words in FLOORS.items():
        cell = _cell(measures[measures["init"] == floor], "test", "dice")
        if not (dice and cell) or dice["value"] is None or cell["value"] is None:
            continue
        behind = cell["low"] is None or dice["low"] is None or dice["low"] <= cell["high"]
        note = ": the model is not clearly above it" if behind else ""
        yield f"{words[0].upper()}{words[1:]} reaches {number(cell, 'dice')}{note}."


def _of_volumes(row: Mapping[str, Any]) -> str:
    """Return what Bland and Altman would say."""
    sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    way = "too much" if row["bias"] > 0 else "too little"
    mean = {"value": row["bias"], "low": row["low"], "high": row["high"]}
    text = f"Outlined less true volume is {number(mean, '_ml', signed=True)} ml on average, "
    text += f"{way if sure else 'which may be chance'}; for single scans anything from "
    text += f"{row['limit_low']:+.1f} to {row['limit_high']:+.1f} ml must be expected"
    if row["correlation"] is not None:
        low, high = row["correlation_low"], row["correlation_high"]
        text += f" (correlation {row['correlation']:.2f}, {low:.2f} to {high:.2f})"
    return text.replace("-", "−") + "."


def _caption(each: Example) -> str:
    volumes = f"true {each.true_ml:.1f} ml, outlined {each.found_ml:.1f} ml"
    return f"{each.place.capitalize()} of the test scans: Dice {each.dice:.2f}, {volumes}"


def _volumes(
    scans: pd.DataFrame, agreement: pd.DataFrame, init: str | None, fraction: float, name: str
) -> list[dict[str, str]]:
    """Return the plots of volumes of the chosen initialization."""
    points = scans[(scans["init"] == init) & (scans["fraction"] == fraction)][[*SCANS]]
    if points.empty:
        return []
    row = find_row(agreement, init=init, split="test")
    plain, apart = f"Outlined against true volume of {name}", f"Bland and Altman's plot of {name}"
    return [
        {"caption": plain, "svg": plots.volumes(points, plain)},
        {"caption": apart, "svg": plots.bland_altman(points, row, apart)},
    ]


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g} ml"
    return f"{low:g} to {high:g} ml" if high < float("inf") else f"{low:g} ml and more"
