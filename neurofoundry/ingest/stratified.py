"""Deals persons to splits or folds so that each gets its share of every class, site, sex and age.

It is minimization (Pocock & Simon, Biometrics 31, 1975), rarest class first as in the iterative
stratification of Sechidis et al. (ECML PKDD 2011), and deterministic: the order of persons within a
class is that of a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.tasks import Labelled

TRIES = 20
"""Orders of the persons to try where several rare classes leave a split short of one of them."""

WEIGHTS = {"everybody": 2.0, "class": 2.0, "other": 1.0}
"""Of the size of a split, of the classes of tasks, and of each of site, sex and age."""

AGE_GROUPS = 4
"""Quarters of the ages."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Persons who have something in common, who should be spread over all splits."""

    name: str
    persons: frozenset[str]
    kind: str
    """A key of WEIGHTS."""
    needs: Mapping[str, int] = field(default_factory=dict)
    """Of a class: how many persons splits must have."""


def groups(scans: pd.DataFrame, tasks: Mapping[str, Labelled]) -> list[Group]:
    """Return the classes of the tasks (of a regression, quarters of the values), the sites, sexes
    and ages of the persons of ``scans``."""
    found: list[Group] = []
    if scans.empty:  # its columns would be numbers
        return found
    for name, task in tasks.items():
        chosen = task.select(scans)
        if len(chosen):
            targets = pd.Series(task.targets(chosen), chosen["person"])
            strata = _by_value(task.strata(targets), f"task {name}", "class")
            found += [
                replace(each, needs=task.needs(len(each.persons)) if task.classes else {})
                for each in strata
            ]
    site = (scans["dataset"] + "\0" + scans["site"]).set_axis(scans["person"])
    age = scans.set_index("person")["age"].groupby(level=0).mean().dropna()
    quarter = (age.rank(method="first", pct=True) * AGE_GROUPS).apply(np.ceil)
    found += _by_value(site[~site.index.duplicated()], "site", "other")
    found += _by_value(scans.set_index("person")["sex"].dropna(), "sex", "other")
    return found + _by_value(quarter, "age", "other")


def _by_value(values: pd.Series, name: str, kind: str) -> list[Group]:
    """Return a group for each value of a series that is indexed by person."""
    return [
        Group(f"{name} {value}", frozenset(members), kind)
        for value, members in values.groupby(values).groups.items()
    ]


def deal(
    persons: Iterable[str],
    shares: Mapping[str, float],
    among: Sequence[Group],
    *,
    key: str,
    wished: Sequence[Sequence[Group]] = (),
) -> dict[str, str]:
    """Return the split of each of ``persons``.

    Each split gets its share of everybody and of each group, as well as whole persons allow, and
    what it ``needs`` of a class before others get more, even above its share. ``wished`` are the
    same groups with higher demands: the first of them that can be met holds. A function of the
    persons, the groups and ``key``.
    """
    shares = {name: share for name, share in shares.items() if share > 0}
    everybody = Group("everybody", frozenset(persons), "everybody")
    for demands in (*wished, among):
        dealt, shortfall = _best([everybody, *demands], shares, key)
        if not shortfall:
            break
    names = list(shares)
    return {person: names[place] for person, place in dealt.items()}


def _best(
    groups: Sequence[Group], shares: Mapping[str, float], key: str
) -> tuple[dict[str, int], float]:
    """Return what `_deal` returns, of the order of persons that leaves least to be desired."""
    tables = _tables(groups, shares)
    best: tuple[dict[str, int], float] = {}, np.inf
    for attempt in range(TRIES):
        tried = _deal(groups[0].persons, groups, tables, f"{key} {attempt}")
        best = min(best, tried, key=lambda each: each[1])
        if not best[1]:
            break
    return best


def _tables(groups: Sequence[Group], shares: Mapping[str, float]) -> tuple[Values, Values]:
    """Return how many persons of each group each split should get, and how many it needs: both
    (groups, splits)."""
    share = np.array([*shares.values()])
    share /= share.sum()
    floors = np.array([[group.needs.get(name, 0) for name in shares] for group in groups], float)
    quotas = [
        _quota(len(group.persons), share, floor)
        for group, floor in zip(groups, floors, strict=True)
    ]
    return np.array(quotas), floors


def _quota(size: int, share: Values, floor: Values) -> Values:
    """Return how many of ``size`` persons each split should get: its share, but not below its
    ``floor`` as long as the others have more than theirs."""
    quota = np.maximum(size * share, floor)
    surplus = quota - floor
    excess = quota.sum() - size
    if excess > 0 and surplus.sum() > 0:
        quota = quota - surplus * min(1.0, excess / surplus.sum())
    return quota


def _deal(
    persons: Iterable[str], groups: Sequence[Group], tables: tuple[Values, Values], key: str
) -> tuple[dict[str, int], float]:
    """Return the number of each person's split, and how many persons splits lack of their needs."""
    quota, floor = tables
    order = sorted(persons, key=lambda p: hashlib.sha256(f"{key}\0{p}".encode()).digest())
    member = _membership(order, groups)
    weight = np.array([WEIGHTS[group.kind] for group in groups])
    have, left = np.zeros_like(quota), member.sum(axis=0)
    dealt: dict[str, int] = {}
    for row in _rarest_first(member, groups):
        of = member[row]
        # First where a class is needed, of several the one with fewest persons to spare.
        lacks = np.maximum(floor[of] - have[of], 0)
        urgent = (np.sign(lacks).T * lacks.sum(axis=1) / left[of]).max(axis=1)
        left[of] -= 1
        # Of a single group this is the method of Sainte-Laguë for seats in a parliament.
        filled = (have[of] + 0.5) / np.maximum(quota[of], 1e-9)
        place = int(np.lexsort((weight[of] @ filled, -urgent))[0])
        have[of, place] += 1
        dealt[order[row]] = place
    return dealt, float(np.maximum(floor - have, 0).sum())


def _membership(persons: Sequence[str], groups: Sequence[Group]) -> NDArray[np.bool_]:
    """Return which persons are in which groups, (persons, groups)."""
    place = {person: number for number, person in enumerate(persons)}
    member = np.zeros((len(persons), len(groups)), bool)
    for column, group in enumerate(groups):
        member[[place[person] for person in group.persons if person in place], column] = True
    return member


def _rarest_first(member: NDArray[np.bool_], groups: Sequence[Group]) -> NDArray[np.int64]:
    """Return the rows of persons by the size of their rarest class, those without one last."""
    classes = np.array([group.kind == "class" for group in groups])
    size = np.where(classes, member.sum(axis=0).astype(float), np.inf)
    rarest = np.where(member, size, np.inf).min(axis=1)
    return np.argsort(rarest, kind="stable")
