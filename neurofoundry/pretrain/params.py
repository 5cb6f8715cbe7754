"""The section `pretrain` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from neurofoundry.augment import AugmentParams
from neurofoundry.encoders import EncoderParams
from neurofoundry.params import Section


class PretrainParams(Section):
    """Self-supervised learning on the usable scans of some splits."""

    methods: tuple[Literal["simclr"], ...] = Field(default=("simclr",), min_length=1)
    """Each makes an encoder of its own, of that name."""
    splits: tuple[Literal["pretrain", "train"], ...] = Field(default=("pretrain",), min_length=1)
    """Where scans come from. The splits val, test and ood are never seen here."""
    encoder: EncoderParams = EncoderParams()
    augment: AugmentParams = AugmentParams()
    epochs: int = Field(default=100, ge=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0; it then falls as a cosine."""
    batch_size: int = Field(default=32, ge=2)
    """Scans of a step, each in two views."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW; biases and norms are spared."""
    clip: float = Field(default=1.0, gt=0)
    """Greatest norm of the gradient."""
    temperature: float = Field(default=0.2, gt=0)
    """Of NT-Xent: the lower, the more the hardest negatives count."""
    projection: int = Field(default=64, ge=2)
    """Dimensions of the space in which views are compared."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the memory on a GPU; on a CPU it is faster only where it is native."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """A killed run loses at most so much; 0 writes a checkpoint every step."""
    licence: str = "not stated"
    """Of the weights: what the licences of the data allow. It travels with them."""

    @field_validator("splits", "methods")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a name stands twice")
        return names
