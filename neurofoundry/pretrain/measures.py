"""How embeddings are spread over the sphere, which a falling loss does not show."""

from __future__ import annotations

import torch


def alignment(views: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of the two views of a scan: 0 to 4 (Wang and Isola 2020).

    ``views`` are unit vectors (2, batch, dimensions), here and below.
    """
    return (views[0] - views[1]).square().sum(1).mean()


def uniformity(views: torch.Tensor) -> torch.Tensor:
    """Return the log mean Gaussian potential of different scans (Wang and Isola 2020).

    It is 0 when all embeddings are the same.
    """
    potentials = [torch.pdist(view).square().mul(-2).exp() for view in views]
    return torch.cat(potentials).mean().log()


def effective_rank(views: torch.Tensor) -> torch.Tensor:
    """Return the exponential of the entropy of the singular values (RankMe, Garrido et al. 2023).

    It is 1 when collapsed, and NaN where an embedding is not finite.
    """
    if not views.isfinite().all():
        return views.new_tensor(torch.nan)
    values = torch.linalg.svdvals(views.flatten(0, 1))
    shares = values / values.sum()
    entropy: torch.Tensor = torch.special.entr(shares).sum()
    return entropy.exp()
