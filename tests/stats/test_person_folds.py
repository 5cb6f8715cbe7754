"""Folds by person against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from neurofoundry.stats.person_folds import PersonFolds


@pytest.mark.parametrize(("persons", "classes", "folds"), [(9, 2, 3), (60, 3, 5), (150, 4, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_the_folds_are_those_of_scikit_learn(
    persons: int, classes: int, folds: int, seed: int
) -> None:
    """With one to four scans a person, some of whom change class: few persons are alike."""
    random = np.random.default_rng(seed)
    person = np.arange(persons).repeat(random.integers(1, 5, persons))
    of_person = np.r_[np.arange(classes).repeat(3), random.integers(classes, size=persons)]
    label = of_person[person]
    label[random.random(len(label)) < 0.1] = 0
    theirs = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(label, label, person)
    for ours, expected in zip(PersonFolds(folds).split(label, label, person), theirs, strict=True):
        np.testing.assert_array_equal(ours[1], expected[1])


def test_the_faster_way_is_the_one_that_is_taken() -> None:
    """scikit-learn calls what is overridden; should it call something else, nothing is wrong, but
    nothing is gained either."""
    assert "_find_best_fold" in vars(StratifiedGroupKFold)
