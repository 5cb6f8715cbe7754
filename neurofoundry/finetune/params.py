"""Parameters of the finetune stage."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from neurofoundry.contracts.encoder import UNTRAINED
from neurofoundry.contracts.models import ENSEMBLE
from neurofoundry.params import MANY, Name, Section, Seed
from neurofoundry.tasks.base import BASELINE


def _distinct(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) != len(values):
        raise ValueError("duplicate value")
    return values


Fraction = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(_distinct)]
Rates = Annotated[tuple[Rate, ...], AfterValidator(_distinct), Field(min_length=1)]


class Initialization(Section):
    """Where a model starts from, and how it is trained.

    What is left out is that of finetune. It may differ, as no one learning rate suits all
    weights; the comparison stays fair with the same number of tries for each.
    """

    encoder: Name
    """Name of an encoder, such as a method of pretraining; random: the same network, untrained;
    sfcn: the untrained network of Peng et al. 2021, of the same width; small: an encoder for 3 mm
    that comes with the package."""
    mode: Literal["finetune", "probe"]
    """finetune: all weights are trained. probe: the encoder is frozen, a linear model is fitted."""
    learning_rate: Rate | Rates | None = None
    """Peak learning rate; of several, the one with the least loss on 'val' is kept."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on the learning rate from each level of the network to the one below it."""
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    """Epochs of fine-tuning."""
    freeze: int = Field(default=0, ge=0, le=6)
    """Levels of the encoder, from the input up, that stay as they are; of a ResNet, the first is
    the stem and the fifth the last."""
    head: Literal["zeros", "probe"] = "zeros"
    """What the head starts from: zeros, or the linear model that is fitted to the frozen encoder
    (LP-FT, Kumar et al. 2022, arXiv 2202.10054). That model stays as it is if no epoch has less
    loss on 'val'."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Initialization:
        unset = {"encoder", "mode"}
        changed = self.model_dump(exclude=unset, exclude_defaults=True)
        if self.mode == "probe" and changed:
            raise ValueError(
                f"{', '.join(changed)}: no effect with mode 'probe', which trains no encoder. "
                "Remove them"
            )
        return self


@dataclass(frozen=True)
class Tuning:
    """How an initialization is fine-tuned, once for each of the learning rates."""

    learning_rates: tuple[float, ...]
    layer_decay: float
    epochs: int
    freeze: int
    head: Literal["zeros", "probe"]


class Frozen(NamedTuple):
    """An encoder whose weights stay as they are."""

    encoder: str
    seed: int | None
    """The seed of its weights if it is untrained."""


def _not_reserved(name: str) -> str:
    if name.startswith(BASELINE):
        raise ValueError(
            f"names that begin with '{BASELINE}' are reserved for the baselines of evaluate"
        )
    if name.endswith(ENSEMBLE):
        raise ValueError(f"names that end with '{ENSEMBLE}' are reserved for ensembles")
    return name


class ExplainParams(Section):
    """Which models are explained by maps of the brain, and from how many scans and gradients."""

    initializations: tuple[Name, ...] = Field(min_length=1)
    """The initializations whose models are explained: every task and seed, with the largest
    fraction of the labels."""
    scans: int = Field(default=20, ge=2, le=MANY)
    """Scans of split 'test' to explain, each of another person, from the classes in turn."""
    steps: int = Field(default=32, ge=4, le=256)
    """Gradients per map. With too few, a map explains only part of an output:
    tables/explanations.tsv says how much is left over."""


class FinetuneParams(Section):
    """One model is trained for every task, initialization, fraction of the labels and seed."""

    initializations: dict[Annotated[Name, AfterValidator(_not_reserved)], Initialization] = Field(
        min_length=1
    )
    """Where models start from, by name (of a folder, and of a row in every table)."""
    fractions: Annotated[tuple[Fraction, ...], AfterValidator(_distinct)] = Field(
        default=(1.0,), min_length=1
    )
    """Fractions of the persons of split 'train' whose labels are used. Subsets are nested and the
    same for every initialization; 'val' is always used whole."""
    seeds: Seeds = Field(default=(0,), min_length=1)
    """Seeds; each draws its own subsets, random weights, order of scans and augmentation."""
    epochs: int = Field(default=30, ge=1, le=100_000)
    """Epochs of fine-tuning. An epoch has as many steps for a small fraction of the labels as for
    all of them, so that every model has the same budget; the best epoch on 'val' is kept."""
    batch_size: int = Field(default=16, ge=2, le=65_536)
    """Scans per step of fine-tuning."""
    learning_rate: Rate | Rates = 1e-3
    """Peak learning rate of AdamW, for the head and, if ``layer_decay`` is 1, for the encoder. Of
    several, such as [3e-4, 3e-3], every model tries each and keeps the one with the least loss on
    'val'."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each level of the network to the one below it."""
    augmentation: Literal["light", "none"] = "light"
    """light: random views as in pretraining, but milder. On a CPU it doubles the time."""
    test_time_augmentation: Literal["none", "mirror"] = "none"
    """mirror: predictions are those for a scan and for its mirror image, averaged; twice the time
    of a prediction, and no more randomness. A probe learns from such features, too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of fine-tuning. bf16 halves the memory on a GPU; not every CPU supports it."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """Weight decay of AdamW, on weights but not on biases and norms."""
    patch: int | None = Field(default=None, ge=24, le=512)
    """Segmentation: the edge, in voxels, of the cubes that a model learns from, every other around
    a voxel that is outlined, and by which it outlines a scan. An epoch has as many of each scan as
    hold the voxels of a volume, each in another step. For GPUs that are too small for whole
    volumes, which models learn from by default."""

    explain: ExplainParams | None = None
    """Which models to explain; none by default. It changes no model."""

    @model_validator(mode="after")
    def _explained_are_declared(self) -> FinetuneParams:
        explained = self.explain.initializations if self.explain else ()
        if unknown := [name for name in explained if name not in self.initializations]:
            raise ValueError(
                f"explain.initializations: '{unknown[0]}' is not one of initializations "
                f"({', '.join(self.initializations)})"
            )
        return self

    @model_validator(mode="after")
    def _equal_tries(self) -> FinetuneParams:
        counts = {
            name: len(self.tuning(name).learning_rates)
            for name, start in self.initializations.items()
            if start.mode == "finetune"
        }
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(
                f"learning_rate: each initialization must try as many as the others for a fair "
                f"comparison; found {found}. Give as many for each"
            )
        return self

    def tuning(self, init: str) -> Tuning:
        """Return how an initialization is fine-tuned."""
        start = self.initializations[init]
        rate = self.learning_rate if start.learning_rate is None else start.learning_rate
        return Tuning(
            learning_rates=rate if isinstance(rate, tuple) else (rate,),
            layer_decay=self.layer_decay if start.layer_decay is None else start.layer_decay,
            epochs=start.epochs or self.epochs,
            freeze=start.freeze,
            head=start.head,
        )

    @property
    def mirror(self) -> bool:
        """Whether predictions are averaged over a scan and its mirror image."""
        return self.test_time_augmentation == "mirror"

    def frozen(self, init: str, seed: int) -> Frozen | None:
        """Return the encoder that a probe leaves frozen; None if the whole network is trained."""
        start = self.initializations[init]
        if start.mode == "finetune":
            return None
        return Frozen(start.encoder, seed if start.encoder in UNTRAINED else None)

    def most_shards(self, tasks: int, *, folds: int = 1) -> int:
        """Return into how many shards the models can be divided.

        Each fine-tuned model of each fold can be one; the probes of an encoder share one, and its
        features.
        """
        starts = list(itertools.product(self.initializations, self.seeds))
        frozen = [self.frozen(*start) for start in starts]
        tuned = tasks * len(self.fractions) * folds * frozen.count(None)
        return len(set(frozen) - {None}) + tuned

    def training(self, init: str) -> dict[str, object]:
        """Return what a fine-tuned model of ``init`` depends on beside its data and encoder."""
        common = self.model_dump(
            mode="json", include={"batch_size", "augmentation", "precision", "weight_decay"}
        )
        return common | asdict(self.tuning(init))
