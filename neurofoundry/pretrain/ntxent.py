"""The contrastive loss."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def nt_xent(views: torch.Tensor, persons: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """NT-Xent, the normalized temperature-scaled cross entropy (Chen et al. 2020, eq. 1).

    ``views`` are embeddings (2, batch, dimensions) of unit length: two views of each scan.
    ``persons`` (batch,) numbers who was scanned. The positive of a view is the other view of its
    scan; its negatives are all views of other persons. Other scans of the same person are
    neither: to push them apart would teach the encoder what differs between sessions.
    Returns the mean over all 2 · batch views.
    """
    embeddings = views.flatten(0, 1).float()
    similarity = embeddings @ embeddings.T / temperature  # (2 · batch, 2 · batch)
    person = persons.repeat(2)
    other_view = torch.arange(len(person), device=views.device).roll(len(persons))
    left_out = person[:, None] == person
    left_out.scatter_(1, other_view[:, None], False)
    return F.cross_entropy(similarity.masked_fill(left_out, -torch.inf), other_view)
