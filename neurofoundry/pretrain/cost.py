"""What pretraining will cost on this machine: a few steps are measured, the rest is arithmetic."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.morphometry import sizes_of
from neurofoundry.nn import encoders, seeds
from neurofoundry.pretrain import memory, objectives
from neurofoundry.pretrain.optimizer import make_optimizer, train_step
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.runtime.progress import announced


@dataclass(frozen=True)
class Cost:
    """What a step with some number of scans costs."""

    scans: int
    seconds: float
    memory: int
    """Peak in bytes, of the GPU; without one, of the process."""
    cores: float
    """How many cores this process really had, of a CPU that others may use too."""


@memory.kept()
def measure_step(
    method: str, params: PretrainParams, grid: Grid, *, scans: int, steps: int
) -> Cost:
    """Train ``steps`` on ellipsoids of noise; the seconds are the fewest of a step, with views."""
    ranks = Ranks()
    encoder = encoders.build(params.encoder, seed=0)
    objective = objectives.build(
        method, encoder, params.section(method), spacing_mm=grid.spacing, seed=0
    )
    names = [str(number) for number in range(scans)]
    stored = _noise(grid, scans)
    sizes = np.array([sizes_of(volume, grid) for volume in stored[:, 0].numpy()])
    objective.prepare(names, lambda _: sizes, params.augment, seed=0)
    objective.to(ranks.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = make_optimizer(objective.train(), params)
    batch = pd.DataFrame({"scan_id": names, "person": names})
    gpu = ranks.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, cores = [], []
    for step in range(steps):
        started, worked = time.perf_counter(), time.process_time()
        zscores = stored.to(ranks.device) * SLOPE
        with memory.enough(params, own=scans, views=objective.views, shape=zscores.shape[2:]):
            inputs = objective.inputs(zscores, names, params.augment, 0, step)
            objective.expect(names, params.augment, 0, step)
            train_step(
                objective,
                optimizer,
                inputs,
                batch,
                params,
                step=step,
                steps=steps,
                rate=1e-6,
                ranks=ranks,
            )
        seconds.append(time.perf_counter() - started)  # the loss was read: the GPU is done
        cores.append((time.process_time() - worked) / seconds[-1])
    peak = torch.cuda.max_memory_allocated() if gpu else _peak_of_process()
    return Cost(scans, min(seconds), peak, max(cores))


def _noise(grid: Grid, scans: int) -> torch.Tensor:
    """Stored volumes that fill a brain's share of the box, as the background costs less."""
    shape = grid.shape[::-1]
    noise = seeds.generator("plan").integers(-3000, 3000, (scans, 1, *shape), "int16")
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    return torch.from_numpy(noise * (z**2 + y**2 + x**2 < 0.8**2))


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Estimate:
    """Time and memory for any batch, by a straight line through two measured steps."""

    small: Cost
    large: Cost
    total: int
    """Memory in bytes, of the GPU or the process."""
    spare: float
    """Share of the memory that is to stay free."""

    @property
    def seconds(self) -> float:
        """Seconds a scan."""
        return self.large.seconds / self.large.scans

    @property
    def growth(self) -> float:
        """Bytes a scan."""
        return (self.large.memory - self.small.memory) / (self.large.scans - self.small.scans)

    def memory(self, scans: int) -> float:
        """Return the bytes of a step with so many scans."""
        return self.small.memory + self.growth * (scans - self.small.scans)

    @property
    def most(self) -> int:
        """Scans of the largest batch that fits."""
        return max(0, int(((1 - self.spare) * self.total - self.memory(0)) / self.growth))


def describe_cost(method: str, params: PretrainParams, grid: Grid, *, scans: int) -> str:
    """Measure, and say what a cohort of ``scans`` takes: hours, memory and the largest batch.

    Raises UsageError unless ``method`` is one of pretrain.methods.
    """
    params.section(method)
    gpu = torch.cuda.is_available()
    views = objectives.find(method).views
    # Of a batch that is encoded in chunks, whole chunks.
    few = max(1, params.chunk // views) if params.chunk else 2 if gpu else 1
    with announced(f"Measuring steps of {method} with {few} and {2 * few} scans"):
        small, large = (
            measure_step(method, params, grid, scans=number, steps=5 if gpu else 2)
            for number in (few, 2 * few)
        )
    total = torch.cuda.get_device_properties().total_memory if gpu else memory.of_process()
    # What a process keeps grows over more steps than are measured here (`memory.kept`).
    estimate = Estimate(small, large, total, spare=0.1 if gpu else 0.25)
    lines = [
        *_describe_run(method, params, grid, scans, estimate),
        *_describe_limits(params, scans, views, estimate),
        *_describe_assumptions(grid, estimate),
    ]
    return "\n".join(lines)


def _describe_run(
    method: str, params: PretrainParams, grid: Grid, scans: int, estimate: Estimate
) -> Iterator[str]:
    steps = params.epochs * (scans // params.batch_size)
    hours = steps * params.batch_size * estimate.seconds / 3600
    x, y, z = grid.shape
    network = params.encoder
    yield (
        f"{method} on {_device()}: {scans} scans, {params.epochs} epochs, batches of "
        f"{params.batch_size}, {x} x {y} x {z} voxels, {params.precision}, {network.architecture} "
        f"of width {network.width:g} and stem stride {network.stem_stride}"
    )
    rate = 1 / estimate.seconds
    yield f"  {hours:,.1f} hours ({hours / 24:,.1f} days): {steps:,} steps, {rate:.2g} scans/s"
    gib = estimate.memory(params.batch_size) / 2**30
    yield f"  {gib:.1f} GiB for a batch, of {estimate.total / 2**30:.0f} GiB"
    yield f"  {2 * x * y * z * scans / 2**30:,.0f} GiB of volumes on disk"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} cores of a CPU"


def _describe_limits(
    params: PretrainParams, scans: int, views: int, estimate: Estimate
) -> Iterator[str]:
    if estimate.growth > 0:
        yield (
            f"  the largest batch that fits: {estimate.most} scans; pretrain.chunk "
            f"{max(1, estimate.most * views)} lets any batch fit for a third more time"
        )
    threads, cores = torch.get_num_threads(), estimate.large.cores
    if not torch.cuda.is_available() and cores < 0.7 * threads:
        yield (
            f"  CAUTION: others use this machine. The steps had {cores:.1f} of its {threads} "
            "cores; alone they are faster in proportion"
        )
    if scans < params.batch_size:
        yield f"  {scans} scans are fewer than a batch: lower pretrain.batch_size"


def _describe_assumptions(grid: Grid, estimate: Estimate) -> Iterator[str]:
    x, y, z = grid.shape
    mib = 2 * x * y * z / estimate.seconds / 2**20
    full = "; a GPU that is not fully used at that is faster" if torch.cuda.is_available() else ""
    yield "Assumptions:"
    yield (
        "  - time and memory grow with the batch as they did from "
        f"{estimate.small.scans} to {estimate.large.scans} scans, measured now{full}"
    )
    yield f"  - volumes are read at {mib:.2g} MiB/s while a step runs"
    yield "  - one process, alone here; n GPUs together take about 1/n of the hours"
    yield "  - evaluations of the probe and checkpoints are not included"
    if estimate.growth > 0:
        yield f"  - {estimate.spare:.0%} of the memory stays free"
    else:
        yield "  - memory is the process's peak"
