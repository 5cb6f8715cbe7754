"""What pretraining will cost on this machine: a few steps are measured, the rest is arithmetic."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
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
from neurofoundry.stats.metrics import Values


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

    def measure(_: Sequence[str]) -> Values:
        return np.array([sizes_of(volume, grid) for volume in stored[:, 0].numpy()])

    objective.prepare(names, measure, params.augment, seed=0)
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


@dataclass(frozen=True)
class Plan:
    """What pretraining by a method on a cohort of ``scans`` takes."""

    method: str
    params: PretrainParams
    grid: Grid
    scans: int
    estimate: Estimate

    @property
    def steps(self) -> int:
        """Steps of the optimizer in all epochs."""
        return self.params.epochs * (self.scans // self.params.batch_size)

    @property
    def hours(self) -> float:
        """Hours of one process that is alone here."""
        return self.steps * self.params.batch_size * self.estimate.seconds / 3600

    @property
    def batch_gib(self) -> float:
        """Memory of a batch."""
        return self.estimate.memory(self.params.batch_size) / 2**30

    @property
    def disk_gib(self) -> float:
        """Volumes on disk."""
        x, y, z = self.grid.shape
        return 2 * x * y * z * self.scans / 2**30

    @property
    def chunk(self) -> int | None:
        """The largest pretrain.chunk that fits; None where memory did not grow with the batch."""
        if self.estimate.growth <= 0:
            return None
        return max(1, self.estimate.most * objectives.find(self.method).views)

    def numbers(self) -> dict[str, float | int | str | None]:
        """Return the numbers of `describe`, for programs."""
        return {
            "method": self.method,
            "device": _device(),
            "scans": self.scans,
            "steps": self.steps,
            "hours": self.hours,
            "scans_per_second": 1 / self.estimate.seconds,
            "batch_gib": self.batch_gib,
            "memory_gib": self.estimate.total / 2**30,
            "disk_gib": self.disk_gib,
            "largest_batch": self.estimate.most if self.chunk else None,
            "largest_chunk": self.chunk,
            "cores": self.estimate.large.cores,
        }

    def describe(self) -> str:
        """Return it in words."""
        return "\n".join([*self._run(), *self._limits(), *self._assumptions()])

    def _run(self) -> Iterator[str]:
        params, network = self.params, self.params.encoder
        x, y, z = self.grid.shape
        yield (
            f"{self.method} on {_device()}: {self.scans} scans, {params.epochs} epochs, batches of "
            f"{params.batch_size}, {x} x {y} x {z} voxels, {params.precision}, "
            f"{network.architecture} of width {network.width:g} and stem stride "
            f"{network.stem_stride}"
        )
        yield (
            f"  {self.hours:,.1f} hours ({self.hours / 24:,.1f} days): {self.steps:,} steps, "
            f"{1 / self.estimate.seconds:.2g} scans/s"
        )
        yield f"  {self.batch_gib:.1f} GiB for a batch, of {self.estimate.total / 2**30:.0f} GiB"
        yield f"  {self.disk_gib:,.0f} GiB of volumes on disk"

    def _limits(self) -> Iterator[str]:
        if self.chunk:
            yield (
                f"  the largest batch that fits: {self.estimate.most} scans; pretrain.chunk "
                f"{self.chunk} lets any batch fit for a third more time"
            )
        threads, cores = torch.get_num_threads(), self.estimate.large.cores
        if not torch.cuda.is_available() and cores < 0.7 * threads:
            yield (
                f"  CAUTION: others use this machine. The steps had {cores:.1f} of its {threads} "
                "cores; alone they are faster in proportion"
            )
        if self.scans < self.params.batch_size:
            yield f"  {self.scans} scans are fewer than a batch: lower pretrain.batch_size"

    def _assumptions(self) -> Iterator[str]:
        estimate = self.estimate
        x, y, z = self.grid.shape
        mib = 2 * x * y * z / estimate.seconds / 2**20
        full = "; a GPU that is not fully used at that is faster" * torch.cuda.is_available()
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


def plan(method: str, params: PretrainParams, grid: Grid, *, scans: int) -> Plan:
    """Measure a few steps, and return what a cohort of ``scans`` takes.

    Raises UsageError unless ``method`` is one of pretrain.methods.
    """
    params.section(method)
    gpu = torch.cuda.is_available()
    # Of a batch that is encoded in chunks, whole chunks.
    chunk = params.chunk // objectives.find(method).views if params.chunk else 2 if gpu else 1
    few = max(1, chunk)
    with announced(f"Measuring steps of {method} with {few} and {2 * few} scans"):
        small, large = (
            measure_step(method, params, grid, scans=number, steps=5 if gpu else 2)
            for number in (few, 2 * few)
        )
    total = torch.cuda.get_device_properties().total_memory if gpu else memory.of_process()
    # What a process keeps grows over more steps than are measured here (`memory.kept`).
    estimate = Estimate(small, large, total, spare=0.1 if gpu else 0.25)
    return Plan(method, params, grid, scans, estimate)


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} cores of a CPU"
