"""What the finetune stage reads from params.yaml."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from neurofoundry.params import Name, Section

Fraction = Annotated[float, Field(gt=0, le=1)]


class Initialization(Section):
    """Where a model starts from, and how much of it learns."""

    encoder: Name
    """Name of an encoder, such as a method of pretraining; random: the same network, untrained."""
    mode: Literal["finetune", "probe"]
    """finetune: all weights learn. probe: the encoder is frozen and a linear model learns."""


def _distinct(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) != len(values):
        raise ValueError("a value stands twice")
    return values


def _not_a_floor(name: str) -> str:
    if name.startswith("floor-"):
        raise ValueError("names that begin with 'floor-' are those of the floors of evaluate")
    return name


class ExplainParams(Section):
    """Which models say where in the brain their answers come from, and how closely they look."""

    initializations: tuple[Name, ...] = Field(min_length=1)
    """Of every task and seed, with the largest fraction of the labels."""
    scans: int = Field(default=20, ge=2)
    """Of split 'test', each of another person, of the classes in turn."""
    steps: int = Field(default=32, ge=4, le=256)
    """Gradients behind a map. Too few, and a map leaves part of an answer over:
    tables/explanations.tsv says how much."""


class FinetuneParams(Section):
    """Every task is learned from every initialization, fraction of labels and seed."""

    initializations: dict[Annotated[Name, AfterValidator(_not_a_floor)], Initialization] = Field(
        min_length=1
    )
    """Name (of a folder and of a row in every table) to where a model starts from."""
    fractions: Annotated[tuple[Fraction, ...], AfterValidator(_distinct)] = Field(
        default=(1.0,), min_length=1
    )
    """Shares of the persons of split 'train' whose labels are seen. Subsets are nested and the
    same for every initialization; 'val' is always whole."""
    seeds: Annotated[tuple[int, ...], AfterValidator(_distinct)] = Field(default=(0,), min_length=1)
    """Each draws its own subsets, random weights, order of scans and augmentation."""
    epochs: int = Field(default=30, ge=1)
    """Of fine-tuning. An epoch has as many steps for a small fraction of the labels as for all of
    them, so that every model gets the same budget; the best epoch on 'val' is kept."""
    batch_size: int = Field(default=16, ge=2)
    """Scans in a step of fine-tuning."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW, for the head and, unless ``layer_decay`` says less, for the encoder."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate from each level of the network to the one below it."""
    augmentation: Literal["light", "none"] = "light"
    """light: random views as in pretraining, but milder. On a CPU it doubles the time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of fine-tuning. bf16 halves the memory on a GPU; on a CPU it needs one that computes it."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, on weights; not on biases and norms."""

    explain: ExplainParams | None = None
    """Without it no model is explained. It changes no model."""

    @model_validator(mode="after")
    def _explained_are_declared(self) -> FinetuneParams:
        explained = self.explain.initializations if self.explain else ()
        if unknown := [name for name in explained if name not in self.initializations]:
            raise ValueError(
                f"explain.initializations: '{unknown[0]}' is not one of initializations "
                f"({', '.join(self.initializations)})"
            )
        return self

    def frozen(self, init: str, seed: int) -> tuple[str, int | None] | None:
        """The encoder that a model looks through without changing it, and its seed where it has
        one; None where the whole network learns."""
        start = self.initializations[init]
        if start.mode == "finetune":
            return None
        return start.encoder, seed if start.encoder == "random" else None

    def most_shards(self, tasks: int) -> int:
        """How many parts have models to make: one a model, and one for all probes of an encoder,
        which look at the same features."""
        starts = list(itertools.product(self.initializations, self.seeds))
        frozen = [self.frozen(*start) for start in starts]
        return len(set(frozen) - {None}) + tasks * len(self.fractions) * frozen.count(None)

    def training(self) -> dict[str, object]:
        """What a fine-tuned model depends on, and a probe does not."""
        return self.model_dump(
            mode="json", exclude={"initializations", "fractions", "seeds", "explain"}
        )
