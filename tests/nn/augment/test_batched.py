"""Both ways of making views give the same, on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurofoundry.nn import augment
from neurofoundry.nn.augment import batched, cpu
from neurofoundry.nn.augment.params import AugmentParams
from tests.nn.augment.conftest import PAPER, SHAPE, draw, heads

SHAPES = [SHAPE, (25, 32, 32), (33, 40, 37)]
SCANS = [str(number) for number in range(16)]


@pytest.mark.parametrize("params", [AugmentParams(), PAPER], ids=["robust", "paper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_views_are_the_same_but_for_their_noise(
    params: AugmentParams, shape: tuple[int, int, int]
) -> None:
    volumes = heads(len(SCANS), shape)
    same, silent = 0, torch.zeros(len(SCANS))
    for seed in range(3):
        draws = replace(draw(params, *SCANS, view=1, seed=seed, shape=shape), noise=silent)
        for one, other in zip(
            cpu.apply(volumes, draws), batched.apply(volumes, draws), strict=True
        ):
            if torch.equal(one != 0, other != 0):
                same += 1
                torch.testing.assert_close(one, other, atol=5e-4, rtol=0)
            else:  # a voxel of which half is brain, but for rounding
                assert ((one != 0) != (other != 0)).sum() <= 2
                assert (one - other).abs().quantile(0.999) < 5e-4
    assert same > 0.8 * 3 * len(SCANS)


def test_noise_is_as_strong_after_all_other_steps() -> None:
    """By the correlation of a noisy view with the same view without noise."""
    volumes, draws = heads(32), draw(AugmentParams(), *map(str, range(32)))
    correlations = []
    for way in (cpu, batched):
        silent, noisy = (
            way.apply(volumes, replace(draws, noise=torch.full((32,), noise)))
            for noise in (0.0, 0.5)
        )
        brains = zip(silent.numpy(), noisy.numpy(), silent.numpy() != 0, strict=True)
        correlations.append(np.mean([np.corrcoef(a[m], b[m])[0, 1] for a, b, m in brains]))
    assert 0.85 < correlations[0] < 0.92
    assert abs(correlations[0] - correlations[1]) < 2e-3


def test_a_batch_may_be_larger_than_what_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, draws = heads(5), draw(AugmentParams(), *"abcde")
    whole = batched.apply(volumes, draws)
    monkeypatch.setattr(batched, "AT_ONCE", 2)
    torch.testing.assert_close(batched.apply(volumes, draws), whole, atol=1e-4, rtol=0)


def test_volumes_on_a_cpu_are_done_by_cpu_and_others_in_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volumes, draws = heads(2), draw(AugmentParams(), "a", "b")
    assert torch.equal(augment.apply(volumes, draws), cpu.apply(volumes, draws))
    monkeypatch.setattr(batched, "apply", lambda *given: given)
    elsewhere = volumes.to("meta")
    assert augment.apply(elsewhere, draws) == (elsewhere, draws)
