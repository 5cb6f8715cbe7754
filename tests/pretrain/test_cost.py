from __future__ import annotations

import json
import os

import pytest
import torch

from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import UsageError
from neurofoundry.pretrain import cost
from neurofoundry.pretrain.cost import Cost, measure_step, plan
from neurofoundry.pretrain.params import PretrainParams

GRID = Grid(spacing=6.0)
SMALL = PretrainParams.model_validate(
    {
        "methods": ["simclr", "mae"],
        "encoder": {"stem_stride": 2, "width": 0.125},
        "epochs": 10,
        "batch_size": 32,
    }
)


@pytest.mark.parametrize("method", ["simclr", "mae"])
def test_a_step_is_really_measured(method: str) -> None:
    measured = measure_step(method, SMALL, GRID, scans=2, steps=1)
    assert measured.scans == 2
    assert 0 < measured.seconds < 60
    assert measured.memory > 10 * 2**20


def test_a_method_that_is_not_declared_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--method dino: not one of .* \(simclr, mae\)"):
        plan("dino", SMALL, GRID, scans=1000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="reckons with the memory of the machine")
def test_hours_and_memory_follow_from_two_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    alone = torch.get_num_threads()
    costs = {  # 1 GiB, and 1 GiB a scan
        1: Cost(1, 3.0, 2 * gib, alone),
        2: Cost(2, 4.0, 3 * gib, alone),
        4: Cost(4, 8.0, 5 * gib, alone / 10),
    }
    monkeypatch.setattr(cost, "measure_step", lambda *_, scans, steps: costs[scans])
    monkeypatch.setattr(os, "sysconf", lambda name: 40 * gib if name.endswith("PAGES") else 1)
    described = plan("simclr", SMALL, GRID, scans=1000).describe()
    # 10 epochs of 31 batches of 32 scans, 2 s a scan
    assert "5.5 hours (0.2 days): 310 steps, 0.5 scans/s" in described
    assert "resnet18 of width 0.125 and stem stride 2" in described
    assert "CAUTION" not in described
    assert "33.0 GiB for a batch, of 40 GiB" in described
    assert "the largest batch that fits: 29 scans; pretrain.chunk 58" in described
    assert "pretrain.chunk 29" in plan("mae", SMALL, GRID, scans=1000).describe()
    chunked = SMALL.model_copy(update={"chunk": 4})  # two scans of two views at once
    assert (
        "CAUTION: others use this machine" in plan("simclr", chunked, GRID, scans=1000).describe()
    )
    assert "20 scans are fewer than a batch" in plan("simclr", SMALL, GRID, scans=20).describe()
    numbers = plan("simclr", SMALL, GRID, scans=1000).numbers()
    assert (numbers["steps"], numbers["largest_chunk"]) == (310, 58)
    assert numbers["hours"] == pytest.approx(310 * 32 * 2 / 3600)
    assert numbers["batch_gib"] == pytest.approx(33)
    json.dumps(numbers)
