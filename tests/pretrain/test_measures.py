from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch.nn import functional as F

from neurofoundry.pretrain.measures import alignment, effective_rank, uniformity


def embeddings(*shape: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(*shape, generator=source), dim=-1)


def test_alignment_is_the_squared_distance_of_the_pairs() -> None:
    views = embeddings(2, 7, 5)
    distances = np.linalg.norm(views[0].numpy() - views[1].numpy(), axis=1)
    assert alignment(views).item() == pytest.approx((distances**2).mean(), rel=1e-5)
    assert alignment(views[:1].expand(2, 7, 5)).item() == 0


def test_uniformity_is_the_gaussian_potential_of_different_scans() -> None:
    views = embeddings(2, 7, 5)
    potentials = [np.exp(-2 * pdist(view.numpy(), "sqeuclidean")) for view in views]
    expected = np.log(np.concatenate(potentials).mean())
    assert uniformity(views).item() == pytest.approx(expected, rel=1e-4)
    assert uniformity(embeddings(2, 1, 5).expand(2, 7, 5)).item() == pytest.approx(0, abs=1e-6)


def test_effective_rank_counts_the_dimensions_in_use() -> None:
    collapsed = embeddings(1, 1, 8).expand(2, 6, 8)
    assert effective_rank(collapsed).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.eye(6).expand(2, 6, 6)).item() == pytest.approx(6, rel=1e-5)
    assert effective_rank(torch.eye(6)[:3].expand(2, 3, 6)).item() == pytest.approx(3, rel=1e-5)
