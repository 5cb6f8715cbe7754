from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from neurofoundry.errors import UsageError
from neurofoundry.pretrain import memory
from neurofoundry.pretrain.params import PretrainParams


def test_running_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card)
    params = PretrainParams(batch_size=16)
    with (
        pytest.raises(UsageError) as caught,
        memory.enough(params, own=16, views=2, shape=torch.Size((150, 192, 192))),
    ):
        raise torch.OutOfMemoryError
    message = str(caught.value)
    assert "The 80 GiB of the GPU do not hold a step with 16 scans of 150 x 192 x 192" in message
    assert "pretrain.chunk to 16 (now 32 views at once)" in message
    assert "pretrain.precision to bf16" in message
    assert "pretrain.batch_size to 8" in message


def test_an_allocation_that_fails_on_a_cpu_says_so_too() -> None:
    with (
        pytest.raises(UsageError, match=r"The \d+ GiB of this process do not hold .*chunk to 1 "),
        memory.enough(
            PretrainParams(batch_size=2), own=2, views=1, shape=torch.Size((150, 192, 192))
        ),
    ):
        torch.empty(2**50)  # more than a process can address
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        memory.enough(PretrainParams(), own=2, views=1, shape=torch.Size((150, 192, 192))),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)


STEPS = """
import resource, sys
from contextlib import nullcontext
from pathlib import Path
import torch
from torch import nn
from neurofoundry.pretrain import memory

torch.set_num_threads(1)
network = nn.Sequential(  # its larger maps are 50 MB
    nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.MaxPool3d(2), nn.ReLU(),
    nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16),
)
volumes = torch.zeros(3, 1, 64, 64, 64)

def usage():
    return resource.getrusage(resource.RUSAGE_SELF)

def step():
    network(volumes).sum().backward()

with memory.kept() if sys.argv[1] == "kept" else nullcontext():
    for _ in range(20):
        step()
    before = usage().ru_minflt
    for _ in range(5):
        step()
    print((usage().ru_minflt - before) / 5, usage().ru_maxrss * 1024)
print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_uses_what_the_one_before_freed_and_all_goes_back_at_the_end() -> None:
    def measure(how: str) -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True
        )
        return [float(number) for number in done.stdout.split()]

    pages, peak, at_end = measure("as usual")
    pages_of_kept, peak_of_kept, at_end_of_kept = measure("kept")
    assert pages_of_kept < 0.1 * pages
    assert peak_of_kept < 2 * peak
    assert at_end_of_kept < 1.2 * at_end
