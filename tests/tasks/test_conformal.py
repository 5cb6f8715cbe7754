from __future__ import annotations

import numpy as np
import pytest

from neurofoundry.tasks import conformal


def test_with_one_scan_a_person_the_limit_is_the_published_rank():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # 19 persons
    assert conformal.limit(scores, np.arange(19)) == np.ceil(20 * 0.9)
    assert conformal.limit(np.arange(1.0, 10), np.arange(9)) == 9


def test_too_few_persons_give_no_limit():
    assert conformal.fewest() == 9
    assert conformal.limit(np.arange(8.0), np.arange(8)) == np.inf
    assert conformal.limit(np.arange(30.0), np.arange(30) % 8) == np.inf
    assert conformal.limit(np.array([]), np.array([])) == np.inf
    assert conformal.spread(8) == (1, 1)


def test_a_person_counts_once_however_often_scanned():
    scores = np.r_[np.full(500, 0.99), np.linspace(0, 0.5, 30)]
    persons = np.r_[np.zeros(500, int), np.arange(1, 31)]
    assert conformal.limit(scores, persons) <= 0.5
    # Doubling everybody's scans changes nothing.
    twice = conformal.limit(np.tile(scores, 2), np.tile(persons, 2))
    assert twice == conformal.limit(scores, persons)


@pytest.mark.parametrize("count", [9, 14, 40])
def test_a_new_person_is_inside_as_often_as_promised(count):
    random, inside, shares = np.random.default_rng(count), [], []
    for _ in range(1500):
        persons = np.arange(count + 1).repeat(random.integers(1, 4, count + 1))
        trait = random.normal(size=count + 1)[persons]
        scores = np.abs(trait + 0.5 * random.normal(size=len(persons)))
        new = persons == count
        limit = conformal.limit(scores[~new], persons[~new])
        inside.append((scores[new] <= limit).mean())
        others = np.abs(random.normal(size=400) * np.sqrt(1.25))
        shares.append((others <= limit).mean())
    assert np.mean(inside) >= 0.9 - 0.015
    assert np.mean(inside) <= 0.9 + 1 / (count + 1) + 0.015
    low, high = conformal.spread(count)
    # Several scans of a person make limits steadier than the beta distribution of one says.
    assert np.mean([low - 0.01 <= share <= high + 0.01 for share in shares]) > 0.93


def test_a_set_is_never_empty_and_holds_what_cannot_be_ruled_out():
    p = np.array([[0.9, 0.1], [0.55, 0.45], [0.05, 0.95]])
    inside = conformal.sets(p, np.array([0.5, 0.6]))
    assert inside.tolist() == [[True, False], [True, True], [False, True]]
    assert conformal.sets(p, np.array([0.01, 0.01])).sum(axis=1).tolist() == [1, 1, 1]
    assert conformal.sets(p, np.array([np.inf, 0.1])).tolist() == [
        [True, False],
        [True, False],
        [True, True],
    ]
