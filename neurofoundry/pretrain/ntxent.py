"""The contrastive loss."""

from __future__ import annotations

from typing import Literal

import torch


def nt_xent(
    views: torch.Tensor,
    persons: torch.Tensor,
    *,
    temperature: float,
    same_person: Literal["positive", "excluded"] = "excluded",
) -> torch.Tensor:
    """Return NT-Xent, the normalized temperature-scaled cross entropy (Chen et al. 2020, eq. 1).

    ``views`` are embeddings (2, batch, dimensions) of unit length: two views of each scan.
    ``persons`` (batch,) numbers who was scanned. The positive of a view is the other view of its
    scan; its negatives are all views of other persons. Other scans of the same person are
    'excluded' from both, as repelling them would teach the encoder what differs between sessions;
    or they are 'positive' too, and the loss is the mean over the positives of a view (supervised
    contrastive loss, Khosla et al. 2020, eq. 2, with persons as classes).
    The result is the mean over all 2 · batch views.
    """
    embeddings = views.flatten(0, 1)
    similarity = embeddings @ embeddings.T / temperature  # (2 · batch, 2 · batch)
    person = persons.repeat(2)
    itself = torch.eye(len(person), dtype=torch.bool, device=views.device)
    alike = person[:, None] == person
    positive = alike & ~itself
    left_out = itself
    if same_person == "excluded":
        positive = itself.roll(len(persons), 1)  # the other view
        left_out = alike & ~positive
    similarity = similarity.masked_fill(left_out, -torch.inf)
    likelihood = similarity.log_softmax(1).masked_fill(~positive, 0)
    return -(likelihood.sum(1) / positive.sum(1)).mean()
