from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from neurofoundry.errors import UsageError
from neurofoundry.pretrain.numerics import check_convolutions
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.train import enough_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_convolutions_of_this_machine_are_right(bf16: bool) -> None:
    check_convolutions(CPU, bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_convolution_that_forgets_a_voxel_is_found(
    monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    right = F.conv3d

    def forgetful(x: torch.Tensor, w: torch.Tensor, **how: int) -> torch.Tensor:
        maps = right(x, w, **how)
        if x.dtype == torch.float64:
            return maps
        hole = torch.ones_like(maps)
        hole[..., -1, -1, -1] = 0
        return maps * hole

    monkeypatch.setattr(F, "conv3d", forgetful)
    with pytest.raises(UsageError, match=r"\(stem\) on cpu .* wrong by .*another release of torch"):
        check_convolutions(CPU, bf16=bf16)


def test_running_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card)
    params = PretrainParams(batch_size=16)
    with (
        pytest.raises(UsageError) as caught,
        enough_memory(params, own=16, shape=torch.Size((150, 192, 192))),
    ):
        raise torch.OutOfMemoryError
    message = str(caught.value)
    assert "The 80 GiB of the GPU do not hold a step with 16 scans of 150 x 192 x 192" in message
    assert "pretrain.chunk to 16 (now 32 views at once)" in message
    assert "pretrain.precision to bf16" in message
    assert "pretrain.batch_size to 8" in message


def test_an_allocation_that_fails_on_a_cpu_says_so_too() -> None:
    with (
        pytest.raises(UsageError, match=r"The \d+ GiB of this process do not hold .*chunk to 2 "),
        enough_memory(PretrainParams(batch_size=2), own=2, shape=torch.Size((150, 192, 192))),
    ):
        torch.empty(2**50)  # more than a process can address
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        enough_memory(PretrainParams(), own=2, shape=torch.Size((150, 192, 192))),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)
