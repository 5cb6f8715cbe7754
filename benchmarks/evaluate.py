"""CPU seconds and memory that the numbers of a large cohort take.

    python benchmarks/evaluate.py [SCANS] [MODELS]

One two-class task and one regression, 2,000 resamples of persons with one to three scans each:
all metrics of every model, their differences and gaps, calibration, subgroups and bands of curves.
docs/measurements.md has what it found.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pandas as pd
from scipy import special

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure import calibration, curves, performance, subgroups
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
            "person": [f"p{number}" for number in persons],
            "split": split,
            "site": np.array(["a", "b", "c"])[persons % 3],
            "scanner": "X",
            "sex": np.where(persons % 2, "F", "M"),
            "age": 60 + 10 * trait,
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
    params = EvaluateParams(reference="scratch")
    for name in TASKS:
        drawn = evidence(name, scans, models)
        for title, step in {
            "metrics, differences, gaps": lambda e: performance.measure([e], params=params, seed=0),
            "calibration": lambda e: calibration.measure([e], params=params, seed=0),
            "subgroups": lambda e: subgroups.measure([e], params=params),
            "bands of curves": lambda e: curves.roc_bands([e], min_subjects=5, seed=0),
        }.items():
            start = time.process_time()
            step(drawn)
            print(f"{name}: {title}: {time.process_time() - start:.1f} CPU s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{scans} scans, {models} models, {params.bootstraps} resamples: peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
