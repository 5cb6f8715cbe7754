"""The memory of a process that trains: kept between steps, and what to lower where it is short."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from neurofoundry.errors import UsageError
from neurofoundry.pretrain.params import PretrainParams

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


@contextmanager
def kept() -> Iterator[None]:
    """Keep what a step frees for the next one, and return it to the system afterwards.

    glibc returns large blocks to the system at once, and each step then requests them anew, page
    by page: nearly 4 GB and a quarter of its time, with 8 scans of 96 x 96 x 96 voxels on two
    cores. The price is fragmentation: 5.0 GiB instead of 3.1 there, stable after twenty steps.
    Other C libraries are left alone.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, 2**16)  # glibc's own
        library.mallopt(M_TRIM_THRESHOLD, 2**26)  # where glibc's own ends up after large blocks
        library.malloc_trim(0)


@contextmanager
def enough(params: PretrainParams, *, own: int, views: int, shape: torch.Size) -> Iterator[None]:
    """Turn running out of memory into a UsageError that says what to lower.

    A step has ``views`` of ``own`` scans, whose volumes are of ``shape``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            total, whose = torch.cuda.get_device_properties().total_memory, "the GPU"
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            total, whose = of_process(), "this process"
        else:
            raise
        chunk = min(params.chunk or views * own, views * own)
        advice = [f"pretrain.chunk to {chunk // 2} (now {chunk} views at once)"] * (chunk > 1)
        advice += ["pretrain.precision to bf16"] * (params.precision == "fp32")
        advice += ["pretrain.encoder.stem_stride to 2"] * (params.encoder.stem_stride == 1)
        advice += [f"pretrain.batch_size to {params.batch_size // 2}"]
        raise UsageError(
            f"The {total / 2**30:.0f} GiB of {whose} do not hold a step with {own} scans of "
            f"{' x '.join(map(str, shape))} voxels. Set {', or '.join(advice)}. Training then "
            "starts anew, as these change what is learned."
        ) from error


def of_process() -> int:
    """Return the bytes that this process may have: the machine's, or its limit where it has one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total if limit == resource.RLIM_INFINITY else min(total, limit)
