"""How embeddings lie on the sphere: what a falling loss does not show."""

from __future__ import annotations

import torch


def alignment(views: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the two views of a scan: 0 to 4 (Wang and Isola 2020).

    ``views`` are unit vectors (2, batch, dimensions), here and below.
    """
    return (views[0] - views[1]).square().sum(1).mean()


def uniformity(views: torch.Tensor) -> torch.Tensor:
    """Log mean Gaussian potential of different scans: 0 when all are one (Wang and Isola 2020)."""
    potentials = [torch.pdist(view).square().mul(-2).exp() for view in views]
    return torch.cat(potentials).mean().log()


def effective_rank(views: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the singular values: 1 when collapsed (RankMe, 2023).

    Not a number where the views hold what is no number.
    """
    if not views.isfinite().all():
        return views.new_tensor(torch.nan)
    values = torch.linalg.svdvals(views.flatten(0, 1))
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp()
