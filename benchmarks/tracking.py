"""What W&B costs a training step: offline, without a server, and when the server is lost.

    python benchmarks/tracking.py [--steps N] [--json FILE]

It measures a step of the sample cohort's encoder (3 mm, a quarter of the width; 4 scans, a quarter
of the sample's, so that tracking weighs the more), and 300 records of a step, each mode in its own
process: `offline`; `unreachable`, online without a server, which ends offline; and `lost`, online
with a server that falls silent after a third (tests/support/wandb_server.py).
A step waits for the call alone; W&B's threads and its own process (wandb-core) take CPU beside it,
some of it per call and some per second. All of it is counted as CPU seconds, as the difference of
two step times means nothing on a busy machine. The results are in docs/measurements.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from pretrain import table, train_ours, write_volumes

from neurofoundry.contracts.volumes import Grid
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.runtime import tracking
from neurofoundry.runtime.experiment import TrackingParams

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.support import wandb_server  # noqa: E402

MODES = ("offline", "unreachable", "lost")
GRID = Grid(spacing=3.0)
BATCH = 4
CALLS, IDLE = 300, 20
PARAMS = PretrainParams.model_validate(
    {
        "encoder": {"stem_stride": 2, "width": 0.25},
        "batch_size": BATCH,
        "epochs": 1000,
    }
)
RECORD = dict.fromkeys(
    ("epoch", "scans_per_second", "data_wait_share", "hours_left", "learning_rate", "positive",
     "uniformity", "effective_rank", "gradient_norm"), 0.5,
)  # fmt: skip
"""As many numbers as pretraining records of a step."""
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(stat: Path) -> float:
    """Return the CPU seconds of a process or a thread, by its /proc/…/stat."""
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICK


def tracking_seconds(known: set[int]) -> float:
    """Return the CPU seconds so far of W&B's own process and of threads that are not ``known``."""
    numbers = {thread.native_id for thread in threading.enumerate()} - known
    threads = [number for number in numbers if number]
    tasks = [Path(f"/proc/self/task/{number}") for number in threads]
    children = " ".join(
        (task / "children").read_text() for task in Path("/proc/self/task").glob("*")
    ).split()
    cores = [Path(f"/proc/{child}") for child in children]
    cores = [core for core in cores if "wandb-core" in (core / "cmdline").read_text()]
    return sum(cpu_seconds(process / "stat") for process in (*tasks, *cores))


def measure_step(volumes: Path, steps: int) -> float:
    """Return the CPU seconds of a step, in one thread, after three to warm up."""
    torch.set_num_threads(1)
    train, batches = train_ours(volumes, PARAMS, GRID)
    for batch in islice(batches, 3):
        train(batch)
    began = time.thread_time()
    for batch in islice(batches, steps):
        train(batch)
    return (time.thread_time() - began) / steps


def measure(mode: str, folder: Path) -> dict[str, float]:
    """Return CPU milliseconds of a call and beside it, and the share of a core between calls."""
    known = {thread.native_id for thread in threading.enumerate() if thread.native_id}
    with ExitStack() as stack:
        os.environ.update(WANDB_API_KEY="a" * 40, WANDB_DIR=str(folder))
        if mode == "lost":
            server = stack.enter_context(wandb_server.serve())
            os.environ["WANDB_BASE_URL"] = server.url
            known |= {thread.native_id for thread in threading.enumerate() if thread.native_id}
        else:
            taken = stack.enter_context(socket.socket())  # bound, and never listening
            taken.bind(("127.0.0.1", 0))
            os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.perf_counter()
        params = TrackingParams(mode="offline" if mode == "offline" else "online")
        key = "0123456789abcdef"
        with tracking.run(params, stage="pretrain", key=key, group="g", config={}) as tracker:
            opened = time.perf_counter() - began
            calls, waits = [], []
            before = tracking_seconds(known)
            for step in range(CALLS):
                if mode == "lost" and step == CALLS // 3:
                    server.lose("silent")
                wall, cpu = time.perf_counter(), time.thread_time()
                tracker.log({**RECORD, "loss": 1 / (1 + step)}, step=step)
                calls.append(time.thread_time() - cpu)
                waits.append(time.perf_counter() - wall)
                time.sleep(0.02)
            time.sleep(1)  # what is still on its way
            aside = tracking_seconds(known) - before
            before = tracking_seconds(known)
            time.sleep(IDLE)
            idle = tracking_seconds(known) - before
            ending = time.perf_counter()
        closed = time.perf_counter() - ending
    return {
        "call, ms (median)": 1e3 * median(waits),
        "call, CPU ms": 1e3 * sum(calls) / CALLS,
        "beside it, CPU ms": 1e3 * aside / CALLS,
        "share of a core between calls (%)": 100 * idle / IDLE,
        "to begin, s": opened,
        "to end, s": closed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.mode:
            print(json.dumps(measure(options.mode, folder)))
            return
        results = {
            mode: json.loads(
                subprocess.check_output([sys.executable, __file__, "--mode", mode]).splitlines()[-1]
            )
            for mode in MODES
        }
        write_volumes(folder, GRID, 2 * BATCH)
        step = 1e3 * measure_step(folder, options.steps)
    for values in results.values():
        spent = values["call, CPU ms"] + values["beside it, CPU ms"]
        between = values["share of a core between calls (%)"]
        values["share of the step, CPU (%)"] = 100 * spent / step + between
    print(f"A step with {BATCH} scans: {step:.0f} ms of CPU\n")
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps({"step_ms": step, **results}, indent=2))


if __name__ == "__main__":
    main()
