"""What this process asks of OpenMP and of its memory, before torch is loaded."""

from __future__ import annotations

import ctypes
import os

SPINS = 1000
"""How often a thread of torch looks for new work before it sleeps. libgomp's own 300,000 keep a
core busy for nothing: beside one busy process, or where a container has less CPU than the machine
has cores, training took 1.6 times as long as with these. With a quiet machine to itself it now
takes 2 % longer."""

KEPT = 2**28
"""Bytes of the largest block that is kept for the next tensors. Keeping larger ones doubled the
memory of a step at 96 x 96 x 96 voxels."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def prepare() -> None:
    """Let threads that wait sleep, and freed memory be used again.

    glibc gives freed blocks of 32 MB and more back at once, and each step of training asks for the
    same again, page by page: a tenth of its time.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, -1)
