"""What a process asks of OpenMP and of its memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SECOND_BLOCK = """
import os, resource, sys
from neurofoundry import process
if sys.argv[1] == "prepared":
    process.prepare()
import torch

def fill(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fill(100)
print(fill(100) * resource.getpagesize() / 2**20, os.environ.get("GOMP_SPINCOUNT"))
"""


def new_pages(how: str, **environment: str) -> tuple[float, str]:
    """MiB that a second tensor of 100 MiB, made after a first is gone, asks of the system."""
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", SECOND_BLOCK, how],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes, spins = done.stdout.split()
    return float(megabytes), spins


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_used_again() -> None:
    assert new_pages("as it is")[0] > 90
    assert new_pages("prepared")[0] < 10


def test_threads_that_wait_sleep_unless_the_user_says_otherwise() -> None:
    assert new_pages("prepared")[1] == "1000"
    assert new_pages("prepared", GOMP_SPINCOUNT="7")[1] == "7"
