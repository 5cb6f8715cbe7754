"""What `neurofoundry import` is told."""

from __future__ import annotations

from typing import Literal

from neurofoundry.params import Name, Section

Kind = Literal["3d-neuro-simclr", "medicalnet", "monai", "neurofoundry"]


class ImportParams(Section):
    """What a checkpoint does not say of itself."""

    name: Name
    """What finetune.initializations call the weights."""
    kind: Kind | None = None
    """Whose form the checkpoint has; None: guess."""
    licence: str = ""
    """Of the weights; needed where the kind does not tell."""
    spacing: float | None = None
    """mm of the standard grid that the weights are to be bound to; None: any grid."""
    stem_stride: Literal[1, 2] | None = None
    """Of the first convolution, which tensors do not tell; None: what the kind has, else 1."""
