"""The adaptation plan: what a user of an encoder's weights must know, without loading them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from neurofoundry.errors import DataError, UsageError
from neurofoundry.params import Section
from neurofoundry.volumes import Grid, read_grid, read_normalization


class EncoderParams(Section):
    """A 3D ResNet of MONAI; the defaults are the network of the published 3D-Neuro-SimCLR."""

    architecture: Literal["resnet18", "resnet50"] = "resnet18"
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution (7³); a max-pool of stride 2 follows. 2 needs an eighth of
    the memory and an eighth of the time."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Share of the published channels (64, 128, 256, 512): a multiple of 1/8."""
    norm: Literal["batch", "group"] = "batch"
    """Batch norm needs large batches; group norm (8 groups) does not look across a batch."""
    shortcut: Literal["biased", "unbiased", "padded"] = "biased"
    """How a block that changes channels or stride passes its input on: by a convolution of 1³ with
    bias, or without, or by padding with channels of zeros (MedicalNet's ResNet-18)."""
    dilated: bool = False
    """The last two levels keep the resolution of the second, with convolutions dilated by 2 and 4,
    as in MedicalNet."""

    @field_validator("width")
    @classmethod
    def _whole_channels(cls, width: float) -> float:
        if width * 8 != int(width * 8):
            raise ValueError("must be a multiple of 0.125, such as 0.25, 0.5 or 1")
        return width


class Pretraining(Section):
    """What the weights have seen."""

    data_version: str
    persons: int
    scans: int
    epochs: int
    seed: int


class Plan(Section):
    """The adaptation plan: all that a user of the weights must know, written beside them."""

    schema_version: Literal[1] = 1
    name: str
    """What finetune.initializations call these weights."""
    encoder: EncoderParams
    features: int
    grid: dict[str, Any]
    """``Grid.describe()`` of the volumes: space, orientation, spacing, shape. Empty: weights from
    elsewhere that are bound to none."""
    normalization: str = "zscore"
    """What intensities meant in those volumes, as their grid.json says; the background is 0."""
    preprocess: dict[str, Any] = Field(default_factory=dict)
    """How a scan's volume is made and judged: ``preprocess`` of params.yaml without what compares
    scans, and ``standard``, the landmarks of nyul. Empty where it is not known."""
    method: Literal["simclr", "mae", "random", "supervised", "unknown"]
    licence: str
    """Of the weights: what the licences of the data allow."""
    pretraining: Pretraining | None = None
    origin: str = ""
    """The checkpoint that weights from elsewhere were read from."""


def check_volumes(plan: Plan, folder: Path) -> Grid:
    """The grid of a volumes folder; UsageError unless the weights were trained on such volumes."""
    grid = read_grid(folder)
    check_grid(plan, grid)
    check_normalization(plan, read_normalization(folder))
    return grid


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


def check_normalization(plan: Plan, found: str) -> None:
    """Raise UsageError unless intensities mean what they meant where the weights were trained."""
    if plan.normalization == found:
        return
    kind, fitted, _ = plan.normalization.partition(" at ")
    mend = f"Set preprocess.normalization to {kind} and preprocess again"
    if fitted and found.startswith(kind):
        mend = "Preprocess both cohorts in one run, which fits one scale"
    raise UsageError(
        f"The encoder {plan.name} was trained on volumes normalized by {plan.normalization}; "
        f"these are normalized by {found}. {mend}, or pretrain an encoder on these volumes."
    )


def find(folders: Iterable[Path]) -> dict[str, Path]:
    """Encoders by the name in their plan.

    Each of ``folders`` is one encoder, or holds one in each of its folders. Raises DataError.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        inner = [folder] if (folder / "plan.json").exists() else sorted(folder.glob("[!.]*/"))
        holders = [each for each in inner if (each / "plan.json").exists()]
        if not holders:
            raise UsageError(
                f"{folder}: no encoder (no plan.json here or in a folder of it). "
                "Run `neurofoundry pretrain` first."
            )
        for holder in holders:
            name = read_plan(holder).name
            if name in found:
                raise DataError(
                    f"{holder}: there is another encoder of the name '{name}' ({found[name]}). "
                    "Give only one of them."
                )
            found[name] = holder
    return found


def read_plan(folder: Path) -> Plan:
    """The plan beside an encoder's weights. Raises DataError."""
    path = folder / "plan.json"
    try:
        return Plan.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(f"{path}: not an adaptation plan ({error}). Pretrain again.") from error
