from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.errors import UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder
from neurofoundry.nn.selfcheck import check_compiler, check_convolutions, convolutions

CPU = torch.device("cpu")


def encoder_of(**values: object) -> Encoder:
    params = EncoderParams.model_validate({"stem_stride": 2, "width": 0.125, **values})
    return encoders.build(params, seed=1)


LARGE, SMALL = (150, 192, 192), (25, 32, 32)
"""Volumes whose deepest maps are as the published weights', and of 1 voxel."""


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_convolutions_of_this_machine_are_right(bf16: bool) -> None:
    check_convolutions(encoder_of(), LARGE, CPU, bf16=bf16, stage="pretrain")


def test_every_kind_of_convolution_is_tried_on_maps_as_small_as_they_are() -> None:
    kinds = convolutions(encoder_of(), SMALL)
    assert len(kinds) == len(set(kinds)) == 11
    stem = ((1, 8), (11, 11, 11), (7, 7, 7), (2, 2, 2), (3, 3, 3), (1, 1, 1))
    assert kinds[0] == stem
    three = [kind for kind in kinds if kind.kernel == (3, 3, 3)]
    assert {kind.maps[2] for kind in three if kind.stride == (1, 1, 1)} == {7, 4, 2, 1}
    dilated = convolutions(encoder_of(dilated=True), SMALL)
    assert {kind.dilation[0] for kind in dilated} == {1, 2, 4}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_convolution_that_forgets_a_voxel_is_found(
    monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    right = F.conv3d

    def forgetful(x: torch.Tensor, w: torch.Tensor, *how: Any) -> torch.Tensor:
        maps = right(x, w, *how)
        if x.dtype == torch.float64:
            return maps
        hole = torch.ones_like(maps)
        hole[..., -1, -1, -1] = 0
        return maps * hole

    monkeypatch.setattr(F, "conv3d", forgetful)
    message = r"\(kernel 7, stride 2, .*\) on cpu .* wrong by .*another release of torch"
    with pytest.raises(UsageError, match=message):
        check_convolutions(encoder_of(), LARGE, CPU, bf16=bf16, stage="pretrain")


def test_an_error_on_small_maps_alone_is_found_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of oneDNN in bf16, which not every CPU has."""
    right = F.conv3d

    def wrong_when_small(x: torch.Tensor, w: torch.Tensor, *how: Any) -> torch.Tensor:
        small = x.shape[-1] == 2 and x.dtype != torch.float64
        return right(x, w, *how) * (2 if small else 1)

    monkeypatch.setattr(F, "conv3d", wrong_when_small)
    with pytest.raises(UsageError, match=r"maps of 2 x 2 x 2\) on cpu"):
        check_convolutions(encoder_of(), SMALL, CPU, bf16=False, stage="pretrain")
    check_convolutions(encoder_of(), LARGE, CPU, bf16=False, stage="pretrain")


def test_a_machine_without_a_compiler_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch.compiler.reset()
    with pytest.raises(
        UsageError, match=r"simclr\.compile.*/nowhere/g\+\+.*needs a C\+\+ compiler"
    ):
        check_compiler(CPU, setting="pretrain.simclr.compile")
