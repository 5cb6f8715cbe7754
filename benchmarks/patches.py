"""What patches save and cost: the memory of a step, and Dice against whole volumes.

    python benchmarks/patches.py FOLDER [--spacing 1] [--patch 96]
                                        [--seed 2026] [--persons 128] [--epochs 12] [--seeds 2]

**Memory**: a process each trains on one scan, and outlines one, whole and by a cube of ``--patch``
voxels, with the encoder of presets/paper.yaml at stem stride 2. Printed is the most memory that the
step needed beyond what the process had before it, on a CPU in fp32. About 4 minutes.

**Dice**: `benchmarks/flair.py` paints persons with a stroke in T1w at 3 mm, and two networks of the
same first weights outline the infarct: one learns from whole volumes, one from cubes of 32 voxels.
Such a cube is to a volume of 3 mm what one of 96 is to a volume of 1 mm. Printed are both, and the
paired difference with a 95 % interval from persons drawn again. Half of the persons are for
training. What is done is kept in FOLDER. About 12 minutes of CPU.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from flair import measure, paint, report, train, write_start

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.contracts.volumes import Grid
from neurofoundry.nn import encoders
from neurofoundry.nn.segmenter import Segmenter, patch_of, shares_of
from neurofoundry.tasks import Segmentation

GRID, PATCH = Grid(spacing=3.0), 32
TASK = Segmentation.model_validate(
    {
        **{"kind": "segmentation", "column": "lesions", "classes": ["infarct"]},
        "label": {"suffix": "mask"},
    }
)
NETWORK = EncoderParams(stem_stride=2)
STEPS = ("train", "outline")


def main() -> None:
    """Print the memory of each step and their ratio, then the Dice of both ways to learn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--persons", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        _measure_step(arguments.step, arguments.spacing, arguments.patch)
        return
    for step in STEPS:
        _compare_memory(step, arguments)
    _compare_dice(arguments)


def _compare_memory(step: str, arguments: argparse.Namespace) -> None:
    """Print what a step needs whole and by patches, each in a process of its own."""
    needed = []
    for patch in (0, arguments.patch):
        options = ["--step", step, "--spacing", str(arguments.spacing), "--patch", str(patch)]
        command = [sys.executable, __file__, str(arguments.folder), *options]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout, end="", flush=True)
        needed.append(float(done.stdout.split()[-2]))
    print(f"{step}: {needed[0] / needed[1]:.1f} times less memory by patches", flush=True)


def _measure_step(step: str, spacing: float, edge: int) -> None:
    """Do a step on noise of a scan's size, and print what it needed."""
    patch = edge or None
    shape = Grid(spacing=spacing).shape[::-1]
    network = Segmenter(encoders.build(NETWORK, seed=0), 1, patch=patch)
    size = patch_of(shape, patch) if patch and step == "train" else shape
    volume = torch.randn(1, 1, *size)
    before, began = _peak(), time.process_time()
    if step == "train":
        classes = (volume[:, 0] > 2).to(torch.uint8)
        TASK.loss(TASK.overlap(network(volume), classes)).backward()
    else:
        with torch.no_grad():
            shares_of(network.eval(), volume, mirror=False)
    gib, seconds = _peak() - before, time.process_time() - began
    how = f"by cubes of {edge}" if patch else "whole"
    print(
        f"{step:8} {' x '.join(map(str, shape))} {how:16} {seconds:6.1f} s of CPU, {gib:6.2f} GiB"
    )


def _peak() -> float:
    """Return the most memory that this process has had, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _compare_dice(arguments: argparse.Namespace) -> None:
    root: Path = arguments.folder
    torch.use_deterministic_algorithms(False)
    given = (arguments.persons, arguments.seed, TASK)
    volumes = paint(root / "volumes", *given, grid=GRID, contrasts=("T1w",))
    start = write_start(root / "start", GRID)
    dice = {}
    for name, patch in (("whole", None), ("patches", PATCH)):
        began = time.process_time()
        models = root / f"models-{name}"
        train(volumes, start, models, TASK, arguments.epochs, arguments.seeds, patch)
        print(f"{name}: {(time.process_time() - began) / 60:.1f} CPU minutes", flush=True)
        dice[name] = measure(models, volumes, 1, arguments.seeds)[:, 0]
    report("infarct", dice)


if __name__ == "__main__":
    main()
