"""The options of `neurofoundry import`."""

from __future__ import annotations

from typing import Literal

from neurofoundry.params import Line, Name, Section

CheckpointKind = Literal["3d-neuro-simclr", "medicalnet", "monai", "neurofoundry"]


class ImportParams(Section):
    """What a checkpoint does not say of itself."""

    name: Name
    """What finetune.initializations call the weights."""
    kind: CheckpointKind | None = None
    """Whose format the checkpoint has; None: guess."""
    licence: Line = ""
    """Licence of the weights; needed where the kind does not imply it."""
    spacing: float | None = None
    """mm of the standard grid to bind the weights to; None: any grid."""
    stem_stride: Literal[1, 2] | None = None
    """Stride of the first convolution, which tensors do not tell; None: the kind's, else 1."""
