"""What averaging the predictions of several seeds gains, from the models of benchmarks/learning.py.

    python benchmarks/ensembles.py FOLDER

FOLDER is that of a learning study with two seeds or more; nothing is trained. Seeds of a study
differ in all random draws; in the pretraining, where there is one; and, unless all labels are used,
in the labelled persons that they learn from, of whom two have seen more than one.
A row has the metric of one model (mean over seeds), that of the average of all, and the paired
difference over the tested persons; positive: averaging is better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from learning import ARMS, FIRST, FROM_SCRATCH, TASKS
from learning_study.claims import SPLITS, Study, markdown, numbers

from neurofoundry.stats import comparisons, intervals
from neurofoundry.stats.metrics import METRICS, Values
from neurofoundry.tasks import Task

HEAD = ["Task", "Start, labels", "Sites", "Seeds", "One model", "Averaged", "Gained"]


def rows(study: Study) -> Iterator[list[str]]:
    """Yield a row for each task, start, number of labels and kind of sites that has seeds."""
    starts = product(TASKS.items(), (*FROM_SCRATCH, *ARMS), study.fractions[1:], SPLITS.items())
    for (name, task), start, fraction, (split, words) in starts:
        tables = study.outputs(name, start, fraction, split)
        if len(tables) > 1:
            columns = list(task.output_columns)
            values = np.stack([table[columns].to_numpy(float) for table in tables])
            labels = task.typed(task.numbers(tables[0]["label"]).to_numpy(float))
            persons = tables[0]["person"].to_numpy(str)
            cells = _cells(task, labels, persons, values if task.classes else values[..., 0])
            learned = f"{start}, {study.labels(fraction)}"
            yield [name, learned, words, str(len(tables)), *cells]


def _cells(task: Task, labels: Values, persons: Values, outputs: Values) -> list[str]:
    strata = labels if task.classes else None
    one, averaged = (
        intervals.jackknife(
            lambda weights, made=made: np.stack(
                [task.measure(labels, each, weights)[task.primary] for each in made]
            ),
            persons,
            strata,
        ).mean()
        for made in (outputs, task.average(outputs)[None])
    )
    both = (averaged, one) if METRICS[task.primary].higher_is_better else (one, averaged)
    counts = np.bincount(labels).tolist() if task.classes else [len(labels)]
    change = comparisons.difference(*both, task.primary, counts)
    digits = 3 if task.classes else 2
    value, low, high = (float(end or 0) for end in (change.value, change.low, change.high))
    gained = numbers(value, low, high, digits=digits)
    return [
        f"{one.value:.{digits}f}",
        f"{averaged.value:.{digits}f}",
        f"**{gained}**" if low > 0 or high < 0 else gained,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    study = Study(given.folder, FIRST.counts, FIRST.fractions, TASKS)
    print("\n".join(markdown(HEAD, rows(study))))


if __name__ == "__main__":
    main()
