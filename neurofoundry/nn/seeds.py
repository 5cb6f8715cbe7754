"""Random numbers that depend on a key alone, whatever was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(*key: object) -> np.random.Generator:
    """Return random numbers that depend on ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make the weights of modules that are built inside depend on ``seed`` alone.

    The global random state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
