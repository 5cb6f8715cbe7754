"""How fast ingest inspects many files, compared with a loop over nibabel that checks nothing.

    python benchmarks/ingest.py [FILES] [EDGE]

FILES T1w of EDGE³ voxels, one per subject, one in fifty cut short. The loop reads every voxel and
hashes every file, on one core; ingest as a user runs it has all cores. The results are in
docs/measurements.md.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import yaml

EXTENT_MM = 180.0
BROKEN = 50
"""One file in this many is cut short."""


def write_dataset(root: Path, files: int, edge: int) -> None:
    """Write a BIDS dataset of noisy balls, compressed as converters of scans do."""
    axes = np.mgrid[-1 : 1 : edge * 1j, -1 : 1 : edge * 1j, -1 : 1 : edge * 1j]
    ball = np.linalg.norm(axes, axis=0) < 0.8
    spacing = EXTENT_MM / edge
    rows = ["participant_id\tage\tsex"]
    for number in range(files):
        name = f"sub-{number:05d}"
        noise = np.random.default_rng(number).normal(800, 90, ball.shape)
        image = nib.Nifti1Image(
            (noise * ball).astype(np.int16), np.diag([spacing, spacing, spacing, 1])
        )
        image.header.set_xyzt_units("mm")
        packed = gzip.compress(image.to_bytes(), compresslevel=6)
        path = root / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(packed[: len(packed) // 2] if number % BROKEN == 0 else packed)
        rows.append(f"{name}\t{20 + number % 60}\t{'FM'[number % 2]}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


def loop(root: Path) -> None:
    """Do the least that a script would do."""
    for path in sorted(root.rglob("*.nii.gz")):
        hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            voxels = np.asarray(nib.load(path).dataobj)
        except (OSError, EOFError):
            continue
        float(voxels.min()), float(voxels.max())


def run_ingest(folder: Path) -> tuple[float, float, float]:
    """Return wall and CPU seconds, and peak memory in GiB, of the command."""
    params = folder / "params.yaml"
    sections = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    splits = {"pretrain": 1, "train": 0, "val": 0, "test": 0}
    sections |= {"tasks": {}, "ingest": {"splits": splits}, "tracking": {"mode": "disabled"}}
    sections["evaluate"].pop("promotion")
    params.write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "neurofoundry", "ingest", "--params", params]
    command += ["--data", folder / "data", "--out", folder / "cohort"]
    start = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("ingest failed; to see why, run: " + " ".join(map(str, command)))
    wall = time.monotonic() - start
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", type=int, nargs="?", default=2000)
    parser.add_argument("edge", type=int, nargs="?", default=40)
    options = parser.parse_args()
    files, edge = options.files, options.edge
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder / "data", files, edge)
        size = sum(path.stat().st_size for path in folder.rglob("*.nii.gz")) / 2**20
        start, cpu = time.monotonic(), time.process_time()
        loop(folder / "data")
        plain, plain_cpu = time.monotonic() - start, time.process_time() - cpu
        wall, used, memory = run_ingest(folder)
        excluded = pd.read_csv(folder / "cohort/excluded.tsv", sep="\t")
        assert len(excluded) == -(-files // BROKEN), excluded
        cores = len(os.sched_getaffinity(0))
        print(f"{files} files of {edge}³ voxels, {size:.0f} MiB, {len(excluded)} of them broken")
        print(f"loop over nibabel   {plain:6.1f} s, {plain_cpu:5.1f} CPU s, one core")
        print(
            f"neurofoundry ingest {wall:6.1f} s, {used:5.1f} CPU s, {cores} cores, with its start"
        )
        print(f"{files / wall:.0f} files/s; {plain / wall:.2f} x the loop; peak {memory:.2f} GiB")


if __name__ == "__main__":
    main()
