"""What W&B costs a training step: offline, without a server, and when it is lost on the way.

    python benchmarks/tracking.py [--steps N] [--json FILE]

A step of the sample cohort's encoder (3 mm, a quarter of the width; 4 scans, a quarter of the
sample's, so that what is recorded of it weighs the more), and what is recorded of a step, 300
times: `offline`; `unreachable`, online with nobody listening, which ends offline; and `lost`,
online with a server that falls silent after a third (tests/wandb_server.py). Each in a process of
its own.
A step waits for the call alone; W&B's threads and its own process (wandb-core) take CPU beside it,
some of it for every call and some for every second. All of it is counted as CPU seconds, as the
difference of two step times of a busy machine says nothing.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.support import wandb_server  # noqa: E402

WAYS = ("offline", "unreachable", "lost")
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
SAID = dict.fromkeys(
    ("epoch", "scans_per_second", "data_wait_share", "hours_left", "learning_rate", "positive",
     "uniformity", "effective_rank", "gradient_norm"), 0.5,
)  # fmt: skip
"""As many numbers as pretraining records of a step."""
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(stat: Path) -> float:
    """Of a process or a thread, by its /proc/…/stat."""
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICK


def of_tracking(known: set[int]) -> float:
    """CPU seconds so far of W&B's own process and of the threads that came with it."""
    threads = [each.native_id for each in threading.enumerate() if each.native_id not in known]
    tasks = [Path(f"/proc/self/task/{number}") for number in threads]
    children = " ".join(
        (task / "children").read_text() for task in Path("/proc/self/task").glob("*")
    ).split()
    cores = [Path(f"/proc/{child}") for child in children]
    cores = [core for core in cores if "wandb-core" in (core / "cmdline").read_text()]
    return sum(cpu_seconds(each / "stat") for each in (*tasks, *cores))


def measure_step(volumes: Path, steps: int) -> float:
    """CPU seconds of a step, one thread, after three to warm up."""
    torch.set_num_threads(1)
    train, batches = train_ours(volumes, PARAMS, GRID)
    for batch in islice(batches, 3):
        train(batch)
    began = time.thread_time()
    for batch in islice(batches, steps):
        train(batch)
    return (time.thread_time() - began) / steps


def measure(way: str, folder: Path) -> dict[str, float]:
    """CPU milliseconds of a call and beside it, and share of a core between calls."""
    known = {each.native_id for each in threading.enumerate() if each.native_id}
    with ExitStack() as stack:
        os.environ.update(WANDB_API_KEY="a" * 40, WANDB_DIR=str(folder))
        if way == "lost":
            server = stack.enter_context(wandb_server.serve())
            os.environ["WANDB_BASE_URL"] = server.url
            known |= {each.native_id for each in threading.enumerate() if each.native_id}
        else:
            taken = stack.enter_context(socket.socket())  # bound, and never listening
            taken.bind(("127.0.0.1", 0))
            os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.perf_counter()
        params = tracking.TrackingParams(mode="offline" if way == "offline" else "online")
        with tracking.run(params, stage="pretrain", key="0123456789abcdef", config={}) as tracker:
            opened = time.perf_counter() - began
            calls, waits = [], []
            before = of_tracking(known)
            for step in range(CALLS):
                if way == "lost" and step == CALLS // 3:
                    server.lose("silent")
                wall, cpu = time.perf_counter(), time.thread_time()
                tracker.log({**SAID, "loss": 1 / (1 + step)}, step=step)
                calls.append(time.thread_time() - cpu)
                waits.append(time.perf_counter() - wall)
                time.sleep(0.02)
            time.sleep(1)  # what is still on its way
            beside = of_tracking(known) - before
            before = of_tracking(known)
            time.sleep(IDLE)
            idle = of_tracking(known) - before
            ending = time.perf_counter()
        closed = time.perf_counter() - ending
    return {
        "call, ms (median)": 1e3 * median(waits),
        "call, CPU ms": 1e3 * sum(calls) / CALLS,
        "beside it, CPU ms": 1e3 * beside / CALLS,
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
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.way:
            print(json.dumps(measure(options.way, folder)))
            return
        results = {
            way: json.loads(
                subprocess.check_output([sys.executable, __file__, "--way", way]).splitlines()[-1]
            )
            for way in WAYS
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
