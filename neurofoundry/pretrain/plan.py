"""What pretraining will cost here: a few steps are measured, the rest is arithmetic."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.nn import encoders, seeds
from neurofoundry.pretrain import memory
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.pretrain.run import make_objective
from neurofoundry.pretrain.train import make_optimizer, train_step


@dataclass(frozen=True)
class Cost:
    """Of a step with some number of scans."""

    scans: int
    seconds: float
    memory: int
    """Greatest, in bytes, of the GPU; without one, of the process."""
    cores: float
    """That this process really had, of a CPU that others may use too."""


@memory.kept()
def measure_step(
    method: str, params: PretrainParams, grid: Grid, *, scans: int, steps: int
) -> Cost:
    """Train on noise in heads: the least seconds of a step, views and update included."""
    ranks = Ranks()
    encoder = encoders.build(params.encoder, seed=0)
    objective = make_objective(method, encoder, params, grid, seed=0)
    objective.to(ranks.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = make_optimizer(objective.train(), params)
    names = [str(number) for number in range(scans)]
    batch = pd.DataFrame({"scan_id": names, "person": names})
    shape = grid.shape[::-1]
    noise = seeds.generator("plan").integers(-3000, 3000, (scans, 1, *shape), "int16")
    # An ellipsoid of a brain's share of the box, as the background costs less.
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    stored = torch.from_numpy(noise * (z**2 + y**2 + x**2 < 0.8**2))
    gpu = ranks.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, cores = [], []
    for step in range(steps):
        started, worked = time.perf_counter(), time.process_time()
        zscores = stored.to(ranks.device) * SLOPE
        with memory.enough(params, own=scans, shape=zscores.shape[2:]):
            inputs = objective.inputs(zscores, names, params.augment, 0, step)
            train_step(
                objective, optimizer, inputs, batch, params, step=step, rate=1e-6, ranks=ranks
            )
        seconds.append(time.perf_counter() - started)  # the loss was read: the GPU is done
        cores.append((time.process_time() - worked) / seconds[-1])
    peak = torch.cuda.max_memory_allocated() if gpu else _peak_of_process()
    return Cost(scans, min(seconds), peak, max(cores))


def describe_cost(method: str, params: PretrainParams, grid: Grid, *, scans: int) -> str:
    """Hours, memory and the largest batch for a cohort of ``scans``, and what that assumes."""
    gpu = torch.cuda.is_available()
    views = 1 if method == "mae" else 2
    # Of a batch that is encoded in chunks, whole chunks.
    few = max(1, params.chunk // views) if params.chunk else 2 if gpu else 1
    small, large = (
        measure_step(method, params, grid, scans=number, steps=5 if gpu else 2)
        for number in (few, 2 * few)
    )
    seconds = large.seconds / large.scans
    steps = params.epochs * (scans // params.batch_size)
    hours = steps * params.batch_size * seconds / 3600
    grown = (large.memory - small.memory) / (large.scans - small.scans)
    constant = small.memory - grown * small.scans
    total = torch.cuda.get_device_properties().total_memory if gpu else memory.of_process()
    # What a process keeps grows over more steps than are measured here (`memory.kept`).
    spare = 0.1 if gpu else 0.25
    batch_memory = constant + grown * params.batch_size
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} cores of a CPU"
    x, y, z = grid.shape
    network = params.encoder
    lines = [
        f"{method} on {where}: {scans} scans, {params.epochs} epochs, batches of "
        f"{params.batch_size}, {x} x {y} x {z} voxels, {params.precision}, {network.architecture} "
        f"of width {network.width:g} and stem stride {network.stem_stride}",
        f"  {hours:,.1f} hours ({hours / 24:,.1f} days): {steps:,} steps, "
        f"{1 / seconds:.2g} scans/s",
        f"  {batch_memory / 2**30:.1f} GiB for a batch, of {total / 2**30:.0f} GiB",
        f"  {2 * x * y * z * scans / 2**30:,.0f} GiB of volumes on disk",
    ]
    if grown > 0:
        most = max(0, int(((1 - spare) * total - constant) / grown))
        lines.append(
            f"  the largest batch that fits: {most} scans; pretrain.chunk "
            f"{max(1, most * views)} lets any batch fit for a third more time"
        )
    if not gpu and large.cores < 0.7 * torch.get_num_threads():
        lines.append(
            f"  CAUTION: others use this machine. The steps had {large.cores:.1f} of its "
            f"{torch.get_num_threads()} cores; alone they are so much faster"
        )
    if scans < params.batch_size:
        lines.append(f"  {scans} scans are fewer than a batch: lower pretrain.batch_size")
    lines += [
        "Assumed:",
        f"  - time and memory grow with the batch as from {small.scans} to {large.scans} scans, "
        "measured now" + ("; a GPU that is not full at that is faster" if gpu else ""),
        f"  - volumes are read at {2 * x * y * z / seconds / 2**20:.2g} MiB/s while a step runs",
        "  - one process, alone here; n GPUs together take about a nth of the hours",
        "  - looks of the probe and checkpoints come on top",
        f"  - {spare:.0%} of the memory stays free"
        if grown > 0
        else "  - memory is the process's peak",
    ]
    return "\n".join(lines)


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
