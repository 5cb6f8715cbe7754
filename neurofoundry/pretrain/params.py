"""The section `pretrain` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.errors import UsageError
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.params import MANY, Section
from neurofoundry.pretrain import objectives

LabelKind = Literal["classification", "regression"]


class ProbeParams(Section):
    """Linear models of the features of labelled train subjects, scored on val subjects.

    They tell while the encoder trains whether it learns something useful. The weights do not depend
    on them, nor do they depend on the tasks; the splits test and ood are not opened.
    """

    every: int = Field(default=10, ge=1, le=MANY)
    """Epochs between evaluations; the first is before training, the last at its end."""
    columns: dict[str, LabelKind] = Field(
        default={"age": "regression", "sex": "classification"}, min_length=1
    )
    """Columns of scans.tsv that hold labels."""
    subjects: int = Field(default=300, ge=10, le=MANY)
    """At most so many of each split, drawn at random, so that an evaluation costs little."""


def read_section(named: tuple[str, Any]) -> Section:
    """Validate a section of an objective, (name, values), by its own parameters."""
    name, values = named
    if name not in objectives.MODULES:
        raise PydanticKnownError("extra_forbidden")
    return objectives.find(name).Params.model_validate(values)


class PretrainParams(Section):
    """Self-supervised learning on the usable scans of some splits.

    Each objective has a section of its own name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[SerializeAsAny[Section], PlainValidator(read_section)]]

    methods: tuple[str, ...] = ("simclr",)
    """Objectives, such as `simclr` and `mae`. Each makes an encoder of its own, of its name, by the
    section of its name and all that follows. []: none, as all encoders come from elsewhere."""
    splits: tuple[Literal["pretrain", "train"], ...] = Field(default=("pretrain",), min_length=1)
    """Where scans come from. Nothing is learned from val, on which the probe is scored; the splits
    test and ood are never seen here."""
    encoder: EncoderParams = EncoderParams()
    augment: AugmentParams = AugmentParams()
    epochs: int = Field(default=100, ge=1, le=100_000)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on: falling to 0 as half a cosine, or as it is."""
    batch_size: int = Field(default=32, ge=2, le=65_536)
    """Scans of a step, over all GPUs; contrastive learning sees each in two views."""
    chunk: int | None = Field(default=None, ge=1, le=65_536)
    """Views that a GPU encodes at once; null: all. Small chunks fit a large batch into memory, at a
    third more time. Batch norm in the encoder then has the statistics of a chunk."""
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    weight_decay: float = Field(default=1e-4, ge=0, le=10)
    """Of AdamW, on all weights but biases and norms."""
    clip: float = Field(default=1.0, gt=0, le=MANY)
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the memory on a GPU; a CPU is faster with it only where it is native."""
    checkpoint_minutes: float = Field(default=5.0, ge=0, le=1440)
    """At most so much is lost with a killed run; 0 writes a checkpoint every step."""
    checkpoint_epochs: int | None = Field(default=None, ge=1, le=MANY)
    """A checkpoint after every so many epochs too; null: by time alone. The newest two are kept."""
    probe: ProbeParams | None = ProbeParams()
    """null: none."""
    licence: str = "not stated"
    """Of the weights: what the licences of the data allow. It travels with them."""

    @model_validator(mode="before")
    @classmethod
    def _name_sections(cls, values: Any) -> Any:
        """Tell `read_section` which objective a section is of."""
        if not isinstance(values, dict):
            return values
        known = cls.model_fields
        return {key: value if key in known else (key, value) for key, value in values.items()}

    @field_validator("splits", "methods")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("duplicate names; expected each once")
        return names

    @field_validator("methods")
    @classmethod
    def _objectives(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(methods) - objectives.MODULES.keys()):
            known = ", ".join(sorted(objectives.MODULES))
            raise ValueError(f"no objective {', '.join(unknown)}; expected some of {known}")
        return methods

    @field_validator("encoder")
    @classmethod
    def _a_resnet(cls, encoder: EncoderParams) -> EncoderParams:
        if encoder.architecture == "sfcn":
            raise ValueError(
                "sfcn is a baseline that is trained from scratch. Pretrain a ResNet, and name sfcn "
                "as the encoder of one of finetune.initializations"
            )
        return encoder

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PretrainParams:
        for name, section in (self.__pydantic_extra__ or {}).items():
            if name not in self.methods and section != type(section)():
                raise ValueError(
                    f"{name}: has no effect, as methods ({', '.join(self.methods)}) do not name "
                    "it. Remove the section, or add the method"
                )
        return self

    @classmethod
    def types(cls) -> dict[str, Any]:
        return super().types() | {name: objectives.find(name).Params for name in objectives.MODULES}

    def section(self, method: str) -> Section:
        """Return the parameters of an objective. Raises UsageError unless `methods` name it."""
        if method not in self.methods:
            raise UsageError(
                f"--method {method}: not one of pretrain.methods ({', '.join(self.methods)})."
            )
        return (self.__pydantic_extra__ or {}).get(method) or objectives.find(method).Params()

    def read_by(self, method: str) -> dict[str, Any]:
        """Return what the result of ``method`` depends on: nothing that belongs to other methods,
        nor when checkpoints are written. Raises UsageError."""
        own = self.section(method).model_dump(mode="json")
        others = {"methods", "checkpoint_minutes", "checkpoint_epochs", *objectives.MODULES}
        return {**self.model_dump(mode="json", exclude=others), method: own}
