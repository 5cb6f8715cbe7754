"""What it costs to check that an input is still what was written, beside the stage that reads it.

    python benchmarks/verify.py [--params FILE] [--scans N] [--json FILE]

It writes the output of preprocess for N scans on the grid of the parameters (a few volumes under
many names), checks it as every stage does before it begins (`neurofoundry/runtime/verify.py`),
measures some steps of pretraining with the encoder and the batch of the parameters, and gives the
share of the check in `pretrain.epochs` epochs over these scans. All in CPU seconds, which other
work on the machine hardly changes. The default is the sample cohort; `--scans 5000` is a study.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from pretrain import head, train_ours

from neurofoundry.contracts.volumes import Grid, write_volume
from neurofoundry.params import load
from neurofoundry.project import Params
from neurofoundry.runtime import verify
from neurofoundry.runtime.files import hash_file, write_json

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds that something takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def write_output(folder: Path, grid: Grid, scans: int, files: int) -> None:
    """Write volumes, the table that lists them, and the record, as preprocess leaves them."""
    hashes = []
    for number in range(scans):
        path = folder / f"scan-{number}.nii"
        if number < files:
            write_volume(path, *head(grid.shape, number), grid)
        else:
            os.link(folder / f"scan-{number % files}.nii", path)
        hashes.append(hash_file(path) if number < files else hashes[number % files])
    rows = "".join(f"scan-{n}.nii\t{value}\n" for n, value in enumerate(hashes))
    (folder / "scans.tsv").write_text(f"volume\tvolume_sha256\n{rows}")
    contents = {"scans.tsv": hash_file(folder / "scans.tsv")}
    write_json(folder / "stage.json", {"stage": "preprocess", "contents": contents})


def measure(params: Params, scans: int, files: int, steps: int) -> dict[str, float]:
    """Return CPU seconds of the check and of pretraining, and the share of the one in the other."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_output(place, params.preprocess.grid, scans, min(files, scans))
        checks = [cpu(lambda: verify.check("preprocess", place, items=True)) for _ in range(ROUNDS)]
        pretrain = params.pretrain
        step, batches = train_ours(place, pretrain, params.preprocess.grid)
        step(next(batches))
        costs = [cpu(partial(step, batch)) for batch in islice(batches, steps)]
    stage = np.mean(costs) / pretrain.batch_size * scans * pretrain.epochs
    return {
        "scans": scans,
        "check_s": median(checks),
        "check_per_volume_ms": 1000 * median(checks) / scans,
        "pretraining_h": stage / 3600,
        "share_percent": 100 * median(checks) / stage,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--scans", type=int, default=134)
    parser.add_argument("--files", type=int, default=100, help="volumes that are written")
    parser.add_argument("--steps", type=int, default=3, help="steps of pretraining to measure")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(load(given.params, Params), given.scans, given.files, given.steps)
    for name, value in found.items():
        print(f"{name:>20} {value:.4g}")
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
