"""Whether the features of two scans of a person, under a frozen encoder, are about the person."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from neurofoundry.contracts.cohort import TESTED
from neurofoundry.errors import counted
from neurofoundry.evaluate.inputs import Features, Inputs
from neurofoundry.evaluate.measure.robustness import Positions, pairs_by_sites
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals, metrics
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values

EMBEDDINGS = [
    *("encoder", "sites", "metric", "value", "low", "high", "chance", "subjects", "reason")
]

NAMES = ("icc_consistency", "identification", "distance_ratio")


def measure(
    features: Mapping[str, Features],
    inputs: Inputs,
    *,
    params: EvaluateParams,
) -> pd.DataFrame:
    """EMBEDDINGS: a row an encoder, whether a person's first two scans in test and ood are from
    one site or from two, and a metric.

    ``icc_consistency`` is the median over features of their ICC(3,1); the two others rest on
    Euclidean distances of standardized features, see ``identified`` and ``distance_ratio``.
    Intervals come from leaving out each person who was scanned twice; those whom a scan could be
    taken for stay as they are.
    """
    rows: list[dict[str, object]] = []
    usable = inputs.scans["usable"] & inputs.scans["split"].isin(TESTED)
    for name, of_encoder in features.items():
        scans = inputs.scans[usable & inputs.scans["scan_id"].isin(of_encoder.scan_ids)]
        x = standardized(of_encoder.of(scans["scan_id"]))
        person = scans["person"].to_numpy()
        for sites, pairs in pairs_by_sites(scans).items():
            head = {"encoder": name, "sites": sites, "subjects": len(pairs[0])}
            for metric, (estimate, chance) in _estimates(x, person, *pairs, params).items():
                rows.append({**head, "metric": metric, **cells(estimate), "chance": chance})
    return table_of(rows, EMBEDDINGS)


def standardized(values: Values) -> Values:
    """Return features (scans, features) with mean 0 and variance 1, without those that never
    vary."""
    spread = values.std(axis=0)
    varies = spread > 1e-9 * np.abs(values).max(axis=0, initial=0)
    standardized: Values = (values[:, varies] - values[:, varies].mean(axis=0)) / spread[varies]
    return standardized


def _estimates(
    x: Values,
    person: NDArray[Any],
    first: Positions,
    second: Positions,
    params: EvaluateParams,
) -> dict[str, tuple[Estimate, float | None]]:
    """Return each metric with what chance would give, where that is known."""
    count = len(first)
    reason = ""
    if count < params.min_subjects:
        reason = f"{counted(count, 'subject')} scanned twice so, {params.min_subjects} are needed"
    elif not x.shape[1]:
        reason = "the features are the same for all scans"
    if reason:
        return dict.fromkeys(NAMES, (Estimate(None, None, None, reason), None))
    right, chance = identified(x, person, first, second)
    within, between = distances(x[first], x[second])
    found = intervals.jackknife(
        lambda weights: np.stack(
            [
                median_icc(np.stack([x[first], x[second]], axis=1), weights),
                weights @ right / weights.sum(axis=1),
                distance_ratio(within, between, weights),
            ]
        ),
        np.arange(count),
    )
    estimates = [
        intervals.estimate(found[place], name, [count]) for place, name in enumerate(NAMES)
    ]
    return dict(zip(NAMES, zip(estimates, (0.0, chance, 1.0), strict=True), strict=True))


def median_icc(pairs: Values, weights: Values) -> Values:
    """Return the median over features of ICC(3,1) of pairs (persons, 2, features): (resamples,)."""
    with warnings.catch_warnings():
        # A resample of one person many times has no variance between persons: it gives NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        median: Values = np.nanmedian(metrics.icc(pairs, weights)[1], axis=-1)
    return median


def identified(
    x: Values, person: NDArray[Any], first: Positions, second: Positions
) -> tuple[Values, float]:
    """Return for each pair the share of its scans (persons,) that lie nearer to the other scan of
    the person than to any scan of anybody else; and the share that chance would give.

    ``x`` are features (scans, features), ``person`` (scans,) whose they are, ``first`` and
    ``second`` (persons,) the positions of the pairs. Further scans of a person do not take part;
    ties are not hits. Chance is 1 / (1 + scans of others), averaged.
    """
    apart = np.linalg.norm(x[first] - x[second], axis=1)
    hits = np.zeros(len(first))
    chance = 0.0
    for scans in (first, second):
        others = person[scans][:, None] != person
        nearest = np.where(others, cdist(x[scans], x), np.inf).min(axis=1)
        hits += (apart < nearest) / 2
        chance += float(np.mean(1 / (1 + others.sum(axis=1)))) / 2
    return hits, chance


def distances(first: Values, second: Values) -> tuple[Values, Values]:
    """Return the distance between the two scans of each person (persons,), and the mean distance
    between the scans of two persons (persons, persons), 0 on the diagonal."""
    within = np.linalg.norm(first - second, axis=1)
    between = (
        cdist(first, first) + cdist(second, second) + cdist(first, second) + cdist(second, first)
    ) / 4
    np.fill_diagonal(between, 0)
    return within, between


def distance_ratio(within: Values, between: Values, weights: Values) -> Values:
    """Return the mean distance within persons over that between persons (resamples,); 0 is perfect.

    A person drawn twice is not compared with himself.
    """
    total = weights.sum(axis=1)
    pairs = total**2 - (weights**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = ((weights @ between) * weights).sum(axis=1) / pairs
        ratio: Values = (weights @ within / total) / apart
    return ratio
