"""encoder/: the adaptation plan of an encoder, and whom and what it was pretrained on."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandera.pandas as pa
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from neurofoundry.contracts.cohort import SHA256, T1W, check_contrasts
from neurofoundry.contracts.documents import read_document
from neurofoundry.contracts.recipe import Recipe
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import Grid, Volumes, check_described
from neurofoundry.errors import DataError, UsageError
from neurofoundry.params import Line, Name, Section
from neurofoundry.runtime.links import check_link, check_links

UNTRAINED = ("random", "sfcn")
"""Encoders of finetune.initializations that no stage has made: untrained networks."""

SHIPPED = Path(__file__).resolve().parents[1] / "nn" / "shipped"

NAMES_SHIPPED = ("small",)
"""Encoders of finetune.initializations that come with the package (docs/weights.md); no other can
have such a name."""


class EncoderParams(Section):
    """A 3D ResNet of MONAI; the defaults are the network of the published 3D-Neuro-SimCLR."""

    architecture: Literal["resnet18", "resnet50", "sfcn"] = "resnet18"
    """sfcn: the network of Peng et al. 2021 instead, a baseline that is trained from scratch."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution (7³); a max-pool of stride 2 follows. 2 needs an eighth of
    the memory and of the time."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Share of the published channels (64, 128, 256, 512): a multiple of 1/8."""
    norm: Literal["batch", "group"] = "batch"
    """Batch norm needs large batches; group norm (8 groups) is independent of the batch."""
    shortcut: Literal["biased", "unbiased", "padded"] = "biased"
    """How a block that changes channels or stride forwards its input: by a 1³ convolution with
    bias, by one without, or padded with channels of zeros (MedicalNet's ResNet-18)."""
    dilated: bool = False
    """Whether the last two levels keep the resolution of the second, with convolutions dilated by
    2 and 4, as in MedicalNet."""

    @property
    def features(self) -> int:
        """Channels of the last level."""
        if self.architecture == "sfcn":
            return int(64 * self.width)
        return int(512 * self.width) * (4 if self.architecture == "resnet50" else 1)

    @field_validator("width")
    @classmethod
    def _whole_channels(cls, width: float) -> float:
        if width * 8 != int(width * 8):
            raise ValueError("must be a multiple of 0.125, such as 0.25, 0.5 or 1")
        return width

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> EncoderParams:
        of_resnets = ("stem_stride", "norm", "shortcut", "dilated")
        fields = type(self).model_fields
        changed = [name for name in of_resnets if getattr(self, name) != fields[name].default]
        if self.architecture == "sfcn" and changed:
            raise ValueError(f"{', '.join(changed)}: no effect on sfcn. Remove them")
        return self


class Pretraining(Section):
    """What the weights have seen."""

    data_version: Line
    persons: int
    scans: int
    epochs: int
    seed: int
    sizes: bool = False
    """Whether the sizes of simple morphometry were targets: it is then no independent baseline."""


class Plan(Section):
    """plan.json, the adaptation plan: all that a user must know about the weights beside it."""

    schema_version: Literal[1] = 1
    name: Name
    """The name of these weights in finetune.initializations."""
    encoder: EncoderParams
    features: int
    """Channels of the last level of ``encoder``."""
    grid: dict[str, Any]
    """``Grid.describe()`` of the volumes: space, orientation, spacing, shape. Empty for weights
    from elsewhere that are bound to no grid."""
    normalization: Line = "zscore"
    """How intensities were normalized in those volumes, as in their grid.json; background is 0."""
    contrasts: tuple[str, ...] = (T1W,)
    """The input channels in their order, by BIDS suffix; left out where that is T1w alone. A
    contrast that a scan lacks is a channel of zeros."""
    preprocess: Recipe = Field(default_factory=dict)
    """How a scan's volume is made and checked (`Volumes.recipe`); empty if unknown."""
    method: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """How the weights were learned: an objective of pretraining, random, supervised or unknown."""
    licence: Line
    """Licence of the weights: what the licences of the data allow."""
    pretraining: Pretraining | None = None
    origin: Line = ""
    """The checkpoint from which weights from elsewhere were read."""

    @field_validator("grid")
    @classmethod
    def _a_grid(cls, described: dict[str, Any]) -> dict[str, Any]:
        return check_described(described) if described else {}

    @field_validator("contrasts")
    @classmethod
    def _t1w_first(cls, contrasts: tuple[str, ...]) -> tuple[str, ...]:
        return check_contrasts(contrasts)

    @model_serializer(mode="wrap")
    def _without_one_contrast(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.contrasts == (T1W,):
            values.pop("contrasts", None)
        return values

    @model_validator(mode="after")
    def _features_of_the_encoder(self) -> Plan:
        if self.features != self.encoder.features:
            raise ValueError(
                f"features is {self.features}; {self.encoder.architecture} of width "
                f"{self.encoder.width:g} has {self.encoder.features}"
            )
        return self


def check_volumes(plan: Plan, volumes: Volumes) -> None:
    """Raise UsageError unless the weights were trained on volumes like these, whatever the
    contrasts: one that the volumes lack is a channel of zeros."""
    check_grid(plan, volumes.grid)
    check_normalization(plan, volumes.normalization)


def check_grid(plan: Plan, grid: Grid) -> None:
    """Raise UsageError unless ``grid`` is the one the weights were trained on."""
    volumes = grid.describe() if plan.grid else {}
    differing = [
        f"{key} {plan.grid.get(key)} (volumes: {value})"
        for key, value in volumes.items()
        # The slope is how volumes are stored; the network sees z-scores.
        if key not in ("slope", "affine") and plan.grid.get(key) != value
    ]
    if differing:
        raise UsageError(
            f"The encoder was trained on volumes of another grid: {', '.join(differing)}. "
            f"Set preprocess.grid.spacing to {plan.grid.get('spacing_mm')} and preprocess again, "
            "or pretrain an encoder on these volumes."
        )


def check_normalization(plan: Plan, normalization: str) -> None:
    """Raise UsageError unless the weights were trained on volumes of this ``normalization``."""
    if plan.normalization == normalization:
        return
    kind, fitted, _ = plan.normalization.partition(" at ")
    fix = f"Set preprocess.normalization to {kind} and preprocess again"
    if fitted and normalization.startswith(kind):
        fix = "Preprocess both cohorts in one run, which fits one scale"
    raise UsageError(
        f"The encoder {plan.name} was trained on volumes normalized by {plan.normalization}; "
        f"these are normalized by {normalization}. {fix}, or pretrain an encoder on these volumes."
    )


def shipped(name: str) -> Path | None:
    """Return the folder of an encoder that comes with the package; None if there is none."""
    return SHIPPED / name if name in NAMES_SHIPPED else None


def find_encoders(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the folders of encoders by the name in their plan.

    Each of ``folders`` is an encoder, or a folder of encoders. Raises UsageError and DataError.
    """
    encoders: dict[str, Path] = {}
    for folder in folders:
        candidates = [folder] if (folder / "plan.json").exists() else sorted(folder.glob("[!.]*/"))
        with_plan = [path for path in candidates if (path / "plan.json").exists()]
        if not with_plan:
            raise UsageError(
                f"{folder}: no encoder (no plan.json here or in a folder below). "
                "Make one first; `neurofoundry pretrain --help` says from what."
            )
        for path in with_plan:
            if path != folder:
                check_link(path, folder.resolve(), path)
            name = read_plan(path).name
            if name in encoders:
                raise DataError(
                    f"{path}: there is another encoder of the name '{name}' ({encoders[name]}). "
                    "Give only one of them."
                )
            encoders[name] = path
    return encoders


def read_plan(folder: Path) -> Plan:
    """Read the plan beside an encoder's weights.

    Raises DataError, also where something in the folder is a link out of it.
    """
    if (folder / "plan.json").exists():
        check_links(folder)
    return read_document(
        folder / "plan.json", Plan, what="an adaptation plan", remedy="Pretrain again"
    )


SUBJECTS = pa.DataFrameSchema({"person": pa.Column(str)}, coerce=True)
"""subjects.tsv of an encoder: everyone it was pretrained on. It may be missing for an encoder from
elsewhere: whom that has seen is unknown."""

HASHED_SUBJECTS = pa.DataFrameSchema(
    {"person_hash": pa.Column(str, SHA256), "salt": pa.Column(str)}, coerce=True
)
"""subjects.tsv of an exported encoder: `hash_person` of everyone."""

IMAGES = pa.DataFrameSchema(
    {
        "sha256": pa.Column(str, SHA256),
        "sketch": pa.Column(str, nullable=True, required=False),
    },
    coerce=True,
)
"""images.tsv of an encoder: every image it was pretrained on, and the sketch by which copies of it
are known. It may be missing for an encoder from elsewhere: leakage then shows by name only."""


@dataclass(frozen=True)
class PretrainedOn:
    """Whom and what an encoder has seen."""

    persons: frozenset[str] | None = frozenset()
    """Names, or hashes if there is a ``salt``; None if the encoder does not say."""
    images: frozenset[str] | None = None
    """SHA-256 of the image files; None if the encoder does not say."""
    salt: str = ""
    sketches: tuple[str, ...] = ()
    """Of the images, as far as the encoder has them (`sketches.sketch`)."""

    def among(self, persons: Iterable[str]) -> list[str]:
        """Return those of ``persons`` whom the encoder is known to have seen."""
        seen = self.persons or ()
        names = {hash_person(name, self.salt) if self.salt else name: name for name in persons}
        return sorted(name for hashed, name in names.items() if hashed in seen)


def hash_person(person: str, salt: str) -> str:
    """Return the HMAC-SHA256 of a person's name, under a salt that is published with it.

    Whoever holds the same names can tell whether they are in the list; others can only guess.
    """
    return hmac.new(salt.encode(), person.encode(), "sha256").hexdigest()


def _read_images(path: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    table = read_table(path, IMAGES)
    sketches = tuple(table["sketch"].dropna()) if "sketch" in table else ()
    return frozenset(table["sha256"]), sketches


def read_pretrained(encoder: Path) -> PretrainedOn:
    """Read subjects.tsv and images.tsv of an encoder, as far as it has them. Raises DataError."""
    path = encoder / "images.tsv"
    images, sketches = _read_images(path) if path.exists() else (None, ())
    path = encoder / "subjects.tsv"
    if not path.exists():
        return PretrainedOn(None, images, sketches=sketches)
    with path.open(encoding="utf-8", errors="replace") as file:
        columns = file.readline(1000).rstrip("\n").split("\t")
    if "person_hash" in columns:
        table = read_table(path, HASHED_SUBJECTS)
        salts = set(table["salt"])
        if len(salts) > 1:
            raise DataError(f"{path}: {len(salts)} salts, expected one for all. Export it again.")
        salt = next(iter(salts), "")
        return PretrainedOn(frozenset(table["person_hash"]), images, salt, sketches)
    persons = frozenset(read_table(path, SUBJECTS)["person"])
    return PretrainedOn(persons, images, sketches=sketches)


HISTORY = pa.DataFrameSchema(
    {"epoch": pa.Column(float), "loss": pa.Column(float, nullable=True)}, coerce=True, strict=False
)
"""history.tsv of an encoder: one row per epoch."""
