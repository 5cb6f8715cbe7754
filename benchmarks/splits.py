"""How often a small study can be split: 1,000 cohorts of 60 persons with three classes.

    python benchmarks/splits.py

Each cohort has two sites, both sexes, ages, and classes of 55, 25 and 20 %. It is feasible where
every class has the two persons in train, val and test that a task needs by default (in a cross-
validation: in train of every fold, and in the test persons of all), and judged where test has the
five that evaluate gives numbers for by default. ``drawn`` cohorts have as many
persons of a class as chance gives, ``exact`` ones 33, 15 and 12. ``spread`` is the standard
deviation, over cohorts, of the share of the smallest class that test has; ``moved`` how many of the
60 have another split when a 61st comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from neurofoundry.contracts import folds
from neurofoundry.contracts.splits import Splits
from neurofoundry.ingest import splits
from neurofoundry.params import load
from neurofoundry.project import Params
from neurofoundry.tasks import parse_task

ROOT = Path(__file__).resolve().parents[1]
PERSONS = 60
CLASSES = {"CN": 0.55, "MCI": 0.25, "AD": 0.20}
TASKS = {
    "diagnosis": parse_task(
        {"kind": "classification", "column": "diagnosis", "classes": [*CLASSES]}
    )
}


def cohort(seed: int, *, exact: bool, persons: int = PERSONS) -> pd.DataFrame:
    """Return the rows that ingest splits; one person more leaves the others as they are."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([*CLASSES], size=persons + 1, p=[*CLASSES.values()])[:persons]
    if exact:
        counts = [round(share * PERSONS) for share in CLASSES.values()]
        labels = np.append(np.repeat([*CLASSES], counts), "CN")[:persons]
    site = rng.choice(["north", "south"], size=PERSONS + 1)[:persons]
    names = [f"study/sub-{number:03d}" for number in range(persons)]
    return pd.DataFrame(
        {
            "scan_id": names,
            "dataset": np.where(site == "north", "a", "b"),
            "person": names,
            "split": None,
            "site": site,
            "age": rng.normal(70, 8, PERSONS + 1)[:persons],
            "sex": rng.choice(["F", "M"], size=PERSONS + 1)[:persons],
            "diagnosis": labels,
        }
    )


def modes(file: str) -> Iterator[tuple[str, Splits]]:
    """Yield the ways to split a cohort with the shares of a file of parameters."""
    found = load(ROOT / file, Params).ingest.splits.shares
    given = {name: share for name, share in found.items() if share}
    yield "hash", Splits(**given)
    yield "stratified", Splits(mode="stratified", **given)
    yield "5 folds", Splits(mode="folds", folds=5, pretrain=given.get("pretrain"))


def measure(params: Splits, *, cohorts: int, exact: bool) -> dict[str, float]:
    """Return the share of cohorts that are feasible, and what the docstring above says."""
    feasible, judged, share, moved = [], [], [], []
    for seed in range(cohorts):
        rows = cohort(seed, exact=exact)
        dealt = splits.assign(rows, params, TASKS, seed=seed)
        feasible.append(folds.gap(TASKS["diagnosis"], dealt) is None)
        judged.append(feasible[-1] and folds.unjudged(TASKS["diagnosis"], dealt) is None)
        first = folds.in_fold(dealt, 1 if folds.count(dealt) else 0)
        rare = first[first["diagnosis"] == "AD"]
        share.append((rare["split"] == "test").mean() if len(rare) else 0.0)
        if seed < cohorts // 10:
            more = cohort(seed, exact=exact, persons=PERSONS + 1)
            again = splits.assign(more, params, TASKS, seed=seed)[:PERSONS]
            columns = ["split", "fold"] if "fold" in dealt else ["split"]
            moved.append(
                (again[columns].astype(str) != dealt[columns].astype(str)).any(axis=1).sum()
            )
    return {
        "feasible": float(np.mean(feasible)),
        "judged": float(np.mean(judged)),
        "spread": float(np.std(share)),
        "moved": float(np.mean(moved)) if moved else float("nan"),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=1000)
    arguments = parser.parse_args()
    print("shares of                  classes  mode        feasible judged  spread  moved of 60")
    for file in ("neurofoundry/presets/first-look.yaml", "params.yaml"):
        for exact in (True, False):
            for name, params in modes(file):
                found = measure(params, cohorts=arguments.cohorts, exact=exact)
                print(
                    f"{file:26} {'exact' if exact else 'drawn':8} {name:11} "
                    f"{found['feasible']:8.1%} {found['judged']:6.1%} {found['spread']:7.3f} "
                    f"{found['moved']:8.1f}"
                )


if __name__ == "__main__":
    main()
