from __future__ import annotations

import torch

from neurofoundry.nn.augment import cpu
from neurofoundry.nn.augment.params import AugmentParams
from tests.nn.augment.conftest import draw, heads


def test_the_number_of_threads_changes_no_bit() -> None:
    volumes, draws = heads(3), draw(AugmentParams(), *"abc", view=1)
    before = torch.get_num_threads()
    views = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        views.append(cpu.apply(volumes, draws))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])
