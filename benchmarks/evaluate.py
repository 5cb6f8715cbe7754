"""CPU seconds and memory that the numbers of a large cohort take.

    python benchmarks/evaluate.py [SCANS] [MODELS]

One two-class task and one regression, 2,000 resamples of persons with one to three scans each:
all metrics of every model, their differences and gaps, calibration, decisions, net benefit, sets,
subgroups and the gaps between them, brain-age gaps, bands of curves; and of the features of one
encoder what a handful of labels and neighbours tell, and what harmonization changes.
docs/measurements.md has what it found.
"""

from __future__ import annotations

import argparse
import resource
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import special

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.inputs import Features
from neurofoundry.evaluate.measure import (
    benefit,
    brain_age,
    calibration,
    curves,
    decisions,
    fairness,
    harmonization,
    performance,
    sets,
    shots,
    subgroups,
)
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.tasks import Classification, Regression

TASKS = {
    "diagnosis": Classification(column="diagnosis", classes=("CN", "AD")),
    "age": Regression(column="age"),
}


def evidence(name: str, scans: int, models: int) -> Evidence:
    """Draw outputs of models that know a little, for scans in val, test and ood."""
    random = np.random.default_rng(0)
    persons = np.arange(scans).repeat(random.integers(1, 4, scans))[:scans]
    trait = random.normal(size=scans)[persons]
    split = np.array(["val", "test", "test", "ood"])[persons % 4]
    table = pd.DataFrame(
        {
            "scan_id": [f"s{number}" for number in range(scans)],
            "dataset": "d",
            "person": [f"p{number}" for number in persons],
            "split": split,
            "site": np.array(["a", "b", "c"])[persons % 3],
            "scanner": "X",
            "sex": np.where(persons % 2, "F", "M"),
            "age": 60 + 10 * trait,
            "diagnosis": np.where(trait > 0.5, "AD", "CN"),
        }
    )
    task = TASKS[name]
    targets = (trait > 0.5).astype(float) if task.classes else table["age"].to_numpy()
    drawn = []
    for number in range(models):
        noise = random.normal(size=(scans, 2))
        output = targets + 0.2 * noise[:, 0] * (5 + number)
        if task.classes:
            p = special.expit(output - 0.5)
            output = np.stack([1 - p, p], axis=1)
        drawn.append(Model("scratch" if number == 0 else f"m{number}", 1.0, (0,), output[None]))
    return Evidence(name, task, table, targets, tuple(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scans", type=int, nargs="?", default=5000)
    parser.add_argument("models", type=int, nargs="?", default=10)
    options = parser.parse_args()
    scans, models = options.scans, options.models
    params = EvaluateParams(reference="scratch", combat=("age", "sex"))
    drawn = {name: evidence(name, scans, models) for name in TASKS}
    learned = evidence("age", scans, 1).scans.assign(usable=True)
    learned = learned.assign(scan_id="t" + learned["scan_id"], person="t" + learned["person"])
    everybody = pd.concat([drawn["age"].scans.assign(usable=True), learned.assign(split="train")])
    inputs = SimpleNamespace(
        scans=everybody, train=lambda fold=0: everybody[everybody["split"] == "train"]
    )
    values = np.random.default_rng(1).normal(size=(len(everybody), 512))
    features = {"simclr": Features(everybody["scan_id"].to_numpy(str), values)}
    total = time.process_time()
    for name, each in drawn.items():
        for title, step in {
            "metrics, differences, gaps, decisions": lambda e: decisions.measure(
                [e], performance.measure([e], params=params, seed=0), params=params
            ),
            "calibration": lambda e: calibration.measure([e], params=params, seed=0),
            "net benefit": lambda e: benefit.measure([e], params=params),
            "sets": lambda e: sets.measure([e], params=params),
            "subgroups and their gaps": lambda e: fairness.measure(
                [e], subgroups.measure([e], params=params)
            ),
            "bands of curves": lambda e: curves.roc_bands([e], min_subjects=5, seed=0),
        }.items():
            start = time.process_time()
            step(each)
            print(f"{name}: {title}: {time.process_time() - start:.1f} CPU s")
    start = time.process_time()
    brain_age.measure(list(drawn.values()), inputs, params=params)
    print(f"both: brain-age gaps: {time.process_time() - start:.1f} CPU s")
    start = time.process_time()
    shots.measure(list(drawn.values()), features, inputs, params=params, seed=0)
    print(f"both: a handful of labels, neighbours: {time.process_time() - start:.1f} CPU s")
    start = time.process_time()
    harmonization.measure(features, list(drawn.values()), inputs, params=params, seed=0)
    print(f"both: harmonization of 512 features: {time.process_time() - start:.1f} CPU s")
    print(f"all: {time.process_time() - total:.1f} CPU s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{scans} scans, {models} models, {params.bootstraps} resamples: peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
