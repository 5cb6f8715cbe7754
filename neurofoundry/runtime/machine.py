"""What this process may use of its machine: cores and memory, of a container often fewer than all.

An affinity mask, a quota of a control group (`docker run --cpus`, a CPU limit of Kubernetes) and
the CPU that a pod asks for are three different things, and os.cpu_count() knows none of them.
"""

from __future__ import annotations

import getpass
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CORES = "NEUROFOUNDRY_CORES"
"""Environment variable: the cores that this process should use, such as those that its pod asks
for. Without a CPU limit a pod may use all of its node, and its neighbours pay."""

SAFE_PATH = ("PYTHONSAFEPATH", "neurofoundry")
"""Environment variable, and a value by which it is known as ours: Python imports nothing from the
working folder."""

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")

STDERR = 2
"""The last of the descriptors that every process begins with."""

RESERVED = 2**30
"""Bytes that are not for workers: their parent, and what else runs."""


def cores() -> int:
    """Count the cores that this process may use, at least 1."""
    limits: list[float] = [len(os.sched_getaffinity(0)), *_quotas()]
    with suppress(KeyError, ValueError):
        limits.append(float(os.environ[CORES]))
    return math.ceil(max(1, min(limits)))


def memory() -> int:
    """Return the bytes that this process may use: what is free here, or what its container gets."""
    fields = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return min([free, *_memory_limits()])


def workers(each: int) -> int:
    """Return how many workers that need ``each`` bytes fit: one per core, or fewer; at least 1."""
    return max(1, min(cores(), (memory() - RESERVED) // each))


def name_user() -> None:
    """Give a name to a user whom this system does not know, as in a container with a user of its
    own: libraries ask for one while they are imported, and would end the process."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"


def open_streams() -> None:
    """Open to nothing what a service or a scheduler has closed of the three standard streams.

    Else the next file would get the number of one, and what is printed would end in that file.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)
    os.close(opened)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for as long as we run


def _quotas() -> Iterator[float]:
    """Yield the cores that each control group of this process may use."""
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max": no quota
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        with suppress(OSError, ValueError):
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            period = int((folder / "cpu.cfs_period_us").read_text())
            if quota > 0:
                yield quota / period


def _memory_limits() -> Iterator[int]:
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text())


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, of versions 1 and 2.

    In a container they may be named as on its host; what is there then is the top, its own.
    """
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUPS / controllers if controllers else CGROUPS
        group = top / path.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(top)))
