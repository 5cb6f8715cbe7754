"""ComBat: features without the mean and the spread that a site adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofoundry.stats.metrics import Values

CONVERGED = 1e-4
"""Relative change of the estimates of a site, at which their iteration ends."""


@dataclass(frozen=True, eq=False)
class Combat:
    """What is known of the features (…, features) of sites: fitted to some scans, used on others.

    A site that it does not know is left as it is: nothing can be said of it without scans of it.
    """

    sites: NDArray[Any]
    mean: Values
    """(features,): of an average site."""
    slopes: Values
    """(covariates, features): what a covariate adds, which is kept."""
    spread: Values
    """(features,): standard deviation within sites; 1 where a feature never varies."""
    shift: Values
    """(sites, features): what a site adds to the mean, in ``spread``."""
    scale: Values
    """(sites, features): the variance of a site, in ``spread`` squared."""

    def apply(self, features: Values, site: NDArray[Any], covariates: Values) -> Values:
        """Return features (scans, features) as of an average site."""
        moved = np.array(features, np.float64)
        offset, spread = self.shift * self.spread, np.sqrt(self.scale)
        for place, name in enumerate(self.sites):
            rows = site == name
            kept = self.mean + covariates[rows] @ self.slopes
            moved[rows] = (moved[rows] - kept - offset[place]) / spread[place] + kept
        return moved


def fit(features: Values, site: NDArray[Any], covariates: Values) -> Combat:
    """Fit to features (scans, features) of sites (scans,), each with two scans or more, and
    covariates (scans, columns), which may be none.

    Location and scale of every site are shrunk towards those of the other features by parametric
    empirical Bayes (Johnson, Li & Rabinovic, Biostatistics 8, 2007; Fortin et al., NeuroImage 167,
    2018). A covariate must be known of every scan that the fit is used on: never the label that is
    to be predicted.
    """
    names, index, counts = np.unique(site, return_inverse=True, return_counts=True)
    design = np.hstack([np.eye(len(names))[index], covariates])
    weights = np.linalg.lstsq(design, features, rcond=None)[0]
    mean = np.asarray(counts @ weights[: len(names)] / len(site), np.float64)
    slopes = np.asarray(weights[len(names) :], np.float64)
    spread = np.sqrt(np.asarray((features - design @ weights) ** 2, np.float64).mean(axis=0))
    varies = spread > 1e-9 * np.abs(features).max(axis=0, initial=0)
    spread[~varies] = 1.0
    standard = (features - mean - covariates @ slopes) / spread
    shift, scale = np.zeros((len(names), len(mean))), np.ones((len(names), len(mean)))
    for place in range(len(names) if varies.any() else 0):
        of_site = _of_site(standard[index == place][:, varies])
        shift[place, varies], scale[place, varies] = of_site
    return Combat(names, mean, slopes, spread, shift, scale)


def _of_site(standard: Values) -> tuple[Values, Values]:
    """Return shift and variance of the standardized features (scans, features) of a site: means of
    their posterior, each given the other, in turn until they stay (Johnson et al., section 3.2)."""
    count, mean, variance = len(standard), standard.mean(axis=0), standard.var(axis=0, ddof=1)
    if len(mean) < 2 or min(mean.var(), variance.var()) < 1e-12:  # nothing to shrink towards
        return mean, np.maximum(variance, 1e-12)
    prior_mean, prior_variance = mean.mean(), mean.var(ddof=1)
    middle, around = variance.mean(), variance.var(ddof=1)
    shape, rate = 2 + middle**2 / around, middle + middle**3 / around
    shift, scale, change = mean, variance, np.inf
    while change > CONVERGED:
        before = shift, scale
        shift = (count * prior_variance * mean + scale * prior_mean) / (
            count * prior_variance + scale
        )
        squares = ((standard - shift) ** 2).sum(axis=0)
        scale = (rate + squares / 2) / (shape + count / 2 - 1)
        change = max(_change(shift, before[0]), _change(scale, before[1]))
    return shift, scale


def _change(after: Values, before: Values) -> float:
    return float((np.abs(after - before) / np.maximum(np.abs(before), 1e-12)).max())
