"""The section `pretrain` of params.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.params import Section

Method = Literal["simclr", "mae"]
METHODS: tuple[Method, ...] = ("simclr", "mae")


class SimclrParams(Section):
    """Contrastive learning; `encoder/simclr`."""

    temperature: float = Field(default=0.2, gt=0)
    """Of NT-Xent: the lower, the more the hardest negatives count."""
    projection: int = Field(default=64, ge=2)
    """Dimensions of the space in which views are compared."""
    same_person: Literal["positive", "excluded"] = "excluded"
    """Other scans of a person: drawn near like views of one scan, or neither drawn near nor pushed
    away. Positive also unlearns what changes between the visits of a person, such as atrophy."""
    compile: bool = False
    """Compile the encoder (torch.compile): needs a C++ compiler, and Triton on a GPU, and a minute
    or more at every start. Losses differ in rounding. Worth trying on a GPU; on a CPU it gains
    nothing."""


class MaeParams(Section):
    """Masked autoencoding; `encoder/mae`."""

    mask: float = Field(default=0.6, gt=0, lt=1)
    """Share of the patches that is hidden."""
    patch_mm: float = Field(default=16.0, gt=0)
    """Edge of a patch, rounded to voxels."""


Kind = Literal["classification", "regression"]


class ProbeParams(Section):
    """Linear models of the features of labelled train subjects, scored on val subjects.

    They tell while the encoder trains whether it learns something of use. The weights do not
    depend on them, nor on the tasks; the splits test and ood are not opened.
    """

    every: int = Field(default=10, ge=1)
    """Epochs from look to look; the first is before training, the last at its end."""
    columns: dict[str, Kind] = Field(
        default={"age": "regression", "sex": "classification"}, min_length=1
    )
    """Columns of scans.tsv that hold labels."""
    subjects: int = Field(default=300, ge=10)
    """At most so many of each split, drawn at random, so that a look costs little."""


class PretrainParams(Section):
    """Self-supervised learning on the usable scans of some splits."""

    methods: tuple[Method, ...] = Field(default=("simclr",), min_length=1)
    """Each makes an encoder of its own, of that name, by its section below and all that follows."""
    simclr: SimclrParams = SimclrParams()
    mae: MaeParams = MaeParams()
    splits: tuple[Literal["pretrain", "train"], ...] = Field(default=("pretrain",), min_length=1)
    """Where scans come from. Nothing is learned from val, which the probe looks at; the splits test
    and ood are never seen here."""
    encoder: EncoderParams = EncoderParams()
    augment: AugmentParams = AugmentParams()
    epochs: int = Field(default=100, ge=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0; it then falls as a cosine."""
    batch_size: int = Field(default=32, ge=2)
    """Scans of a step, over all GPUs; contrast sees each in two views."""
    chunk: int | None = Field(default=None, ge=1)
    """Views that a GPU encodes at once; null: all. A small chunk lets a large batch fit in the
    memory for a third more time. Batch norm in the encoder then has the statistics of a chunk."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW; biases and norms are spared."""
    clip: float = Field(default=1.0, gt=0)
    """Greatest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the memory on a GPU; on a CPU it is faster only where it is native."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """A killed run loses at most so much; 0 writes a checkpoint every step."""
    checkpoint_epochs: int | None = Field(default=None, ge=1)
    """Beside them, one after every so many epochs; null: by time alone. The newest two are kept."""
    probe: ProbeParams | None = ProbeParams()
    """null: none."""
    licence: str = "not stated"
    """Of the weights: what the licences of the data allow. It travels with them."""

    @field_validator("splits", "methods")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a name stands twice")
        return names

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PretrainParams:
        for method in METHODS:
            if (
                method not in self.methods
                and getattr(self, method) != type(getattr(self, method))()
            ):
                raise ValueError(
                    f"{method}: has no effect, as methods ({', '.join(self.methods)}) do not name "
                    "it. Remove the section, or add the method"
                )
        return self

    def read_by(self, method: str) -> dict[str, Any]:
        """The values that the result of ``method`` depends on: nothing that belongs to other
        methods, nor when checkpoints are written."""
        when = {"checkpoint_minutes", "checkpoint_epochs"}
        return self.model_dump(mode="json", exclude={"methods", *METHODS, *when} - {method})
