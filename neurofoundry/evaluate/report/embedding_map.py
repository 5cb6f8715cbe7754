"""A map of the held-out scans by their features under each frozen encoder, for a browser.

The page shows single scans, so it names nobody: scans have numbers that mean nothing elsewhere,
ages and other measures are in bands, and groups of few persons are not told from what is unknown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import UNTRAINED
from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.evaluate.measure.embeddings import standardized
from neurofoundry.evaluate.results import Results
from neurofoundry.runtime.files import write_text
from neurofoundry.runtime.templates import render
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

PAGE = "embeddings.html"

MOST = 4000
"""Scans on the page at most, 2 kB each; of more, a random sample."""

COMPONENTS = 6
"""Principal components to choose the axes from."""

NEAREST = 6
"""Neighbours of each scan."""

BANDS = 10
"""Groups that a measure such as age is divided into, at most."""

SLICE_MM = 10
"""Height of the axial slice shown, in MNI space: through the ventricles and the thalamus."""

SLICE_PIXELS = 64
WINDOW = 2.5
"""z-scores from black to middle grey, and from there to white."""

CHUNK = 512
"""Scans whose distances to all others are held at once."""


@dataclass(frozen=True, eq=False)
class Variable:
    """Something that dots are coloured by."""

    names: list[str]
    """Of the groups."""
    codes: NDArray[np.int_]
    """(scans,): the group of each scan, -1 for none."""
    ordered: bool
    """Whether the groups are bands of a measure."""


def write(folder: Path, results: Results) -> bool:
    """Write PAGE, the same bytes for the same results; False where there is too little to show."""
    held_out, fewest = _held_out(results), results.params.min_subjects
    scans = _some(held_out)
    if scans["person"].nunique() <= max(NEAREST, fewest):
        return False
    tasks = [each.task for each in results.tasks]
    context = {
        "data": _data(results, scans, _variables(scans, tasks, fewest)),
        "held_out": len(held_out),
        "few": fewest,
        "nearest": NEAREST,
        "synthetic": results.inputs.synthetic,
    }
    write_text(folder / PAGE, render(Path(__file__).with_name(PAGE), context) + "\n")
    return True


def _data(
    results: Results, scans: pd.DataFrame, variables: Mapping[str, Variable]
) -> dict[str, Any]:
    """Return what the script of the page reads."""
    volumes, encoders = results.volumes, results.features.items()
    return {
        "variables": [
            {"name": name, "ordered": each.ordered, "values": each.names}
            for name, each in variables.items()
        ],
        "scans": [
            {
                "person": int(person),
                "new": bool(split == "ood"),
                "groups": [int(each.codes[row]) for each in variables.values()],
                "slice": _slice(volumes.open(scan_id), volumes.grid),
            }
            for row, (person, split, scan_id) in enumerate(
                zip(pd.factorize(scans["person"])[0], scans["split"], scans["scan_id"], strict=True)
            )
        ],
        "encoders": [
            _encoder(name, features.of(scans["scan_id"]), scans["person"], variables)
            for name, features in sorted(encoders, key=lambda item: item[0] in UNTRAINED)
        ],
    }


def _held_out(results: Results) -> pd.DataFrame:
    """Return the held-out scans whose features every encoder has left; none without encoders."""
    scans = results.inputs.scans
    known = scans[scans["usable"] & scans["split"].isin(HELD_OUT)]
    for features in results.features.values():
        known = known[known["scan_id"].isin(features.scan_ids)]
    return known if results.features else known.iloc[:0]


def _some(scans: pd.DataFrame) -> pd.DataFrame:
    """Return at most ``MOST`` of the scans, in an order that tells nothing of their names."""
    lot = [hashlib.sha256(name.encode()).hexdigest() for name in scans["scan_id"]]
    return scans.iloc[np.argsort(lot, kind="stable")[:MOST]]


def _variables(scans: pd.DataFrame, tasks: Sequence[Task], fewest: int) -> dict[str, Variable]:
    """Return what dots can be coloured by, by name: columns with two groups or more."""
    site = site_names(scans)
    columns: dict[str, tuple[pd.Series, Sequence[str] | None]] = {
        "site": (site, sorted(set(site.dropna()))),
        "age": (scans["age"], None),
        "sex": (scans["sex"], ("F", "M")),
    }
    for task in tasks:
        if task.column in scans and task.column not in columns:
            columns[task.column] = (scans[task.column], task.classes or None)
    variables = {}
    for name, (values, classes) in columns.items():
        if classes is None:
            numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
            variable = bands(numbers, scans["person"].to_numpy(), fewest)
        else:
            variable = groups(values, classes, scans["person"], fewest)
        if len(variable.names) > 1:
            variables[name] = variable
    return variables


def site_names(scans: pd.DataFrame) -> pd.Series:
    """Return the site of each scan, with its dataset where sites of two have one name."""
    namesakes = scans.groupby("site")["dataset"].nunique().gt(1).any()
    return scans["dataset"] + " / " + scans["site"] if namesakes else scans["site"]


def groups(values: pd.Series, classes: Sequence[str], person: pd.Series, fewest: int) -> Variable:
    """Group scans by class; classes of fewer than ``fewest`` persons are no group."""
    persons = person.groupby(values).nunique()
    names = [name for name in classes if persons.get(name, 0) >= fewest]
    codes = values.map({name: code for code, name in enumerate(names)})
    return Variable(names, np.array(codes.fillna(-1), np.int_), ordered=False)


def bands(values: Values, person: NDArray[Any], fewest: int) -> Variable:
    """Group scans by bands of a measure, each of ``fewest`` persons or more.

    The lowest and the highest have no end: an outlier is not told from others.
    """
    known = np.isfinite(values)
    if not known.any():
        return Variable([], np.full(len(values), -1), ordered=True)
    ends = np.quantile(values[known], np.arange(1, BANDS) / BANDS)
    edges: list[float] = []
    for end in sorted({float(f"{end:.2g}") for end in ends}):
        below = known & (values < end) & (values >= (edges[-1] if edges else -np.inf))
        above = known & (values >= end)
        if min(len(set(person[below])), len(set(person[above]))) >= fewest:
            edges.append(end)
    codes = np.where(known, np.digitize(values, edges), -1)
    texts = [f"{edge:g}" for edge in edges]
    names = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
    names = [f"under {texts[0]}", *names, f"from {texts[-1]}"] if edges else []
    return Variable(names, codes, ordered=True)


def _encoder(
    name: str, values: Values, persons: pd.Series, variables: Mapping[str, Variable]
) -> dict[str, Any]:
    """Return where an encoder places each scan, given its features (scans, features), and which
    scans of others are near."""
    x = standardized(values)
    if not x.shape[1]:
        return {"name": name, "shares": []}
    fitted = PCA(min(COMPONENTS, *x.shape), svd_solver="full").fit(x)
    person = pd.factorize(persons)[0]
    near, distance = nearest(x, person, NEAREST)
    return {
        "name": name,
        "shares": fitted.explained_variance_ratio_.round(4).tolist(),
        "points": fitted.transform(x).round(3).tolist(),
        "near": near.tolist(),
        "distance": distance.round(2).tolist(),
        "alike": [alike(near, each.codes, person) for each in variables.values()],
    }


def nearest(x: Values, person: NDArray[Any], count: int) -> tuple[NDArray[np.int_], Values]:
    """Return the ``count`` scans of other persons that are nearest to each scan, the nearest first:
    their positions and distances, (scans, count)."""
    positions, distances = [], []
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        away = cdist(x[rows], x)
        away[person[rows, None] == person] = np.inf
        order = np.argsort(away, axis=1, kind="stable")[:, :count]
        positions.append(order)
        distances.append(np.take_along_axis(away, order, axis=1))
    return np.concatenate(positions), np.concatenate(distances)


def alike(
    near: NDArray[np.int_], group: NDArray[np.int_], person: NDArray[Any]
) -> tuple[float, float] | None:
    """Return the share of neighbours in the group of the scan itself, and the share by chance: that
    among all scans of other persons. Scans without a group (-1) do not count."""
    known = group >= 0
    pairs = known[:, None] & known[near]
    if not pairs.any():
        return None
    share = (group[near] == group[:, None])[pairs].mean()
    table = pd.crosstab(person[known], group[known]).to_numpy()  # scans of a person in a group
    others = table.sum(axis=0) - table
    chance = (table * others).sum(axis=1) / others.sum(axis=1)
    return round(float(share), 4), round(float(chance.sum() / known.sum()), 4)


def _slice(volume: NDArray[np.int16], grid: Grid) -> str:
    """Return an axial slice (anterior up, the left of the person on the left) as the base64 of a
    JPEG."""
    height = round((SLICE_MM - grid.affine[2, 3]) / grid.spacing)
    zscores = np.asarray(volume[height, ::-1], np.float32) * SLOPE
    grey = np.where(zscores == 0, 0, 128 + 127 * np.clip(zscores / WINDOW, -1, 1))
    picture = Image.fromarray(grey.astype(np.uint8))
    picture.thumbnail((SLICE_PIXELS, SLICE_PIXELS))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=75)
    return base64.b64encode(small.getvalue()).decode()
