from __future__ import annotations

import numpy as np
import pytest

from neurofoundry.stats import combat


def cohort(seed: int, sites: int = 3, scans: int = 60, features: int = 40):
    """Features that sites shift and stretch, and that follow age."""
    random = np.random.default_rng(seed)
    site = np.arange(scans) % sites
    age = random.normal(60, 10, scans)
    clean = random.normal(size=(scans, features)) + 0.05 * (age - 60)[:, None]
    shift = random.normal(1, 1, size=(sites, features))
    stretch = random.uniform(0.5, 2, size=(sites, features))
    return clean, clean * stretch[site] + shift[site], site, (age - 60)[:, None]


def test_features_become_those_of_neurocombat():
    """Fortin's neuroCombat 0.2.12, of the same input."""
    number = np.arange(18 * 4).reshape(18, 4)
    site = np.array(list("abc"))[np.arange(18) % 3]
    age = (50 + np.arange(18) * 7 % 31).astype(float)[:, None]
    features = np.sin(1.7 * number) + 0.1 * age * np.cos(np.arange(4))
    features += 2.0 * (site == "b")[:, None]
    features[site == "c"] *= 1.5
    harmonized = combat.fit(features, site, age).apply(features, site, age)
    expected = [
        [6.65438, 4.89273, -2.10211, -6.13502],
        [8.01695, 5.09458, -2.9155, -6.59341],
        [9.10736, 5.26234, -3.52851, -7.05203],
        [9.79956, 4.83913, -3.74078, -6.80865],
    ]
    assert harmonized[:4] == pytest.approx(np.array(expected), abs=1e-5)


def test_means_and_spreads_of_sites_become_alike_and_what_age_adds_stays():
    _, features, site, age = cohort(0, scans=300)
    harmonized = combat.fit(features, site, age).apply(features, site, age)
    differ = {}
    for name, values in {"before": features, "after": harmonized}.items():
        of_sites = [values[site == place] for place in range(3)]
        for what, statistic in {"mean": np.mean, "spread": np.std}.items():
            differ[name, what] = np.ptp([statistic(each, 0) for each in of_sites], 0).mean()
    assert differ["after", "mean"] < 0.1 * differ["before", "mean"]
    assert differ["after", "spread"] < 0.4 * differ["before", "spread"]
    slopes = np.polyfit(age[:, 0], harmonized, 1)[0]
    assert slopes == pytest.approx(np.polyfit(age[:, 0], features, 1)[0], abs=0.02)


def test_a_site_that_is_unknown_is_left_as_it_is():
    _, features, site, age = cohort(1)
    fitted = combat.fit(features, site, age)
    other = np.array([0, 7, -1])
    moved = fitted.apply(features[:3], other, age[:3])
    assert (moved[1:] == features[1:3]).all()
    assert not np.isclose(moved[0], features[0]).any()


def test_what_is_learned_of_some_scans_serves_others_of_the_site():
    _, features, site, age = cohort(2, scans=400)
    fitted = combat.fit(features[:200], site[:200], age[:200])
    moved = fitted.apply(features[200:], site[200:], age[200:])
    means = np.stack([moved[site[200:] == k].mean(axis=0) for k in range(3)])
    before = np.stack([features[200:][site[200:] == k].mean(axis=0) for k in range(3)])
    assert np.ptp(means, axis=0).mean() < 0.35 * np.ptp(before, axis=0).mean()


def test_features_that_never_vary_and_single_features_are_no_error():
    _, features, site, _ = cohort(3)
    features[:, 0] = 4.0
    none = np.empty((60, 0))
    harmonized = combat.fit(features, site, none).apply(features, site, none)
    assert np.isfinite(harmonized).all()
    assert harmonized[:, 0] == pytest.approx(4.0)
    alone = combat.fit(features[:, 1:2], site, none).apply(features[:, 1:2], site, none)
    assert np.isfinite(alone).all()
