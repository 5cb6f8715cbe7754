"""A map of the held-out scans by what each frozen encoder says of them, to look at in a browser.

The page shows single scans, so it names nobody: scans have numbers that mean nothing elsewhere,
ages and other measures stand in bands, and groups of few persons are not told from what is unknown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from neurofoundry.contracts.volumes import SLOPE, Grid, Volumes
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.measure.embeddings import standardized
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import build
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

PAGE = "embeddings.html"

MOST = 4000
"""Scans on the page, 2 kB each; of more, so many are drawn by lot."""

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
"""z-scores from black to the middle grey, and from there to white."""

CHUNK = 512
"""Scans whose distances to all others are held at once."""


def write(
    folder: Path,
    features: Mapping[str, tuple[np.ndarray, Values]],
    *,
    inputs: Inputs,
    tasks: Mapping[str, Task],
    volumes: Volumes,
    params: EvaluateParams,
) -> bool:
    """Write PAGE, the same bytes for the same inputs; False where there is too little to show."""
    scans = _scans(features, inputs)
    if scans["person"].nunique() <= max(NEAREST, params.min_subjects):
        return False
    variables = _variables(scans, tasks, params.min_subjects)
    data = {
        "variables": [
            {"name": name, "ordered": ordered, "values": names}
            for name, (names, _, ordered) in variables.items()
        ],
        "scans": [
            {
                "person": int(person),
                "new": bool(split == "ood"),
                "groups": [int(codes[row]) for _, codes, _ in variables.values()],
                "slice": _slice(volumes.open(scan_id), volumes.grid),
            }
            for row, (person, split, scan_id) in enumerate(
                zip(pd.factorize(scans["person"])[0], scans["split"], scans["scan_id"], strict=True)
            )
        ],
        "encoders": [
            _encoder(name, scans, scan_ids, values, variables)
            for name, (scan_ids, values) in sorted(
                features.items(), key=lambda item: item[0] == "random"
            )
        ],
    }
    context = {
        "data": data,
        "held_out": min(len(scan_ids) for scan_ids, _ in features.values()),
        "few": params.min_subjects,
        "nearest": NEAREST,
        "synthetic": bool(inputs.scans["dataset"].str.startswith("phantom").all()),
    }
    build.render(folder, PAGE, context)
    return True


def _scans(features: Mapping[str, tuple[np.ndarray, Values]], inputs: Inputs) -> pd.DataFrame:
    """The scans that every encoder has seen, in an order that says nothing of their names."""
    known = inputs.scans[inputs.scans["usable"]]
    for scan_ids, _ in features.values():
        known = known[known["scan_id"].isin(scan_ids)]
    lot = [hashlib.sha256(name.encode()).hexdigest() for name in known["scan_id"]]
    return known.iloc[np.argsort(lot, kind="stable")[:MOST] if features else []]


def _variables(
    scans: pd.DataFrame, tasks: Mapping[str, Task], fewest: int
) -> dict[str, tuple[list[str], NDArray[np.int_], bool]]:
    """What dots are coloured by: names of groups, the group of each scan (-1: none), and whether
    the groups are bands of a measure."""
    namesakes = scans.groupby("site")["dataset"].nunique().gt(1).any()
    place = scans["dataset"] + " / " + scans["site"] if namesakes else scans["site"]
    columns: dict[str, tuple[pd.Series, Sequence[str] | None]] = {
        "site": (place, sorted(set(place.dropna()))),
        "age": (scans["age"], None),
        "sex": (scans["sex"], ("F", "M")),
    }
    for task in tasks.values():
        if task.column in scans and task.column not in columns:
            columns[task.column] = (scans[task.column], task.classes or None)
    found = {}
    for name, (values, classes) in columns.items():
        if classes is None:
            numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
            names, codes = bands(numbers, scans["person"].to_numpy(), fewest)
        else:
            names, codes = groups(values, classes, scans["person"], fewest)
        if len(names) > 1:
            found[name] = (names, codes, classes is None)
    return found


def groups(
    values: pd.Series, classes: Sequence[str], person: pd.Series, fewest: int
) -> tuple[list[str], NDArray[np.int_]]:
    """Classes with ``fewest`` persons or more, and the class of each scan (-1: none of them)."""
    persons = person.groupby(values).nunique()
    names = [name for name in classes if persons.get(name, 0) >= fewest]
    codes = values.map({name: code for code, name in enumerate(names)})
    return names, np.array(codes.fillna(-1), np.int_)


def bands(values: Values, person: np.ndarray, fewest: int) -> tuple[list[str], NDArray[np.int_]]:
    """Bands of a measure, of ``fewest`` persons or more each, and the band of each scan (-1: none).

    The lowest and the highest have no end: an outlier is not told from others.
    """
    known = np.isfinite(values)
    if not known.any():
        return [], np.full(len(values), -1)
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
    return [f"under {texts[0]}", *names, f"from {texts[-1]}"] if edges else [], codes


def _encoder(
    name: str,
    scans: pd.DataFrame,
    scan_ids: np.ndarray,
    values: Values,
    variables: Mapping[str, tuple[list[str], NDArray[np.int_], bool]],
) -> dict[str, Any]:
    """Where an encoder puts each scan, and whom it puts next to whom."""
    order = pd.Series(np.arange(len(scan_ids)), scan_ids).reindex(scans["scan_id"])
    x = standardized(values[order.to_numpy(int)])
    if not x.shape[1]:
        return {"name": name, "shares": []}
    fitted = PCA(min(COMPONENTS, *x.shape), svd_solver="full").fit(x)
    person = pd.factorize(scans["person"])[0]
    near, distance = nearest(x, person, NEAREST)
    return {
        "name": name,
        "shares": fitted.explained_variance_ratio_.round(4).tolist(),
        "points": fitted.transform(x).round(3).tolist(),
        "near": near.tolist(),
        "distance": distance.round(2).tolist(),
        "alike": [alike(near, codes, person) for _, codes, _ in variables.values()],
    }


def nearest(x: Values, person: np.ndarray, count: int) -> tuple[NDArray[np.int_], Values]:
    """Of each scan the ``count`` nearest scans of other persons, the nearest first: their
    positions and distances, (scans, count)."""
    positions, distances = [], []
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        away = cdist(x[rows], x)
        away[person[rows, None] == person] = np.inf
        found = np.argsort(away, axis=1, kind="stable")[:, :count]
        positions.append(found)
        distances.append(np.take_along_axis(away, found, axis=1))
    return np.concatenate(positions), np.concatenate(distances)


def alike(
    near: NDArray[np.int_], group: NDArray[np.int_], person: np.ndarray
) -> tuple[float, float] | None:
    """The share of neighbours in the group of the scan itself, and the share by chance: that among
    all scans of other persons. Scans without a group (-1) do not count."""
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
    """An axial slice (the front up, the left of the person on the left) as the base64 of a JPEG."""
    height = round((SLICE_MM - grid.affine[2, 3]) / grid.spacing)
    zscores = np.asarray(volume[height, ::-1], np.float32) * SLOPE
    grey = np.where(zscores == 0, 0, 128 + 127 * np.clip(zscores / WINDOW, -1, 1))
    picture = Image.fromarray(grey.astype(np.uint8))
    picture.thumbnail((SLICE_PIXELS, SLICE_PIXELS))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=75)
    return base64.b64encode(small.getvalue()).decode()
