"""Networks, the adaptation plan that travels with their weights, and weights in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from monai.networks.nets.resnet import ResNet
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from neurofoundry import stage
from neurofoundry.errors import DataError, UsageError
from neurofoundry.params import Section
from neurofoundry.volumes import Grid

BLOCKS = {"resnet18": ("basic", [2, 2, 2, 2]), "resnet50": ("bottleneck", [3, 4, 6, 3])}


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


class Encoder(ResNet):
    """MONAI's ResNet without its classifier: z-scores (batch, 1, z, y, x) to (batch, features)."""

    features: int

    def __init__(self, params: EncoderParams) -> None:
        block, layers = BLOCKS[params.architecture]
        super().__init__(
            block,
            layers,
            [64, 128, 256, 512],
            n_input_channels=1,
            conv1_t_stride=params.stem_stride,
            shortcut_type="A" if params.shortcut == "padded" else "B",
            bias_downsample=params.shortcut == "biased",
            widen_factor=params.width,
            feed_forward=False,
        )
        self.features = self.in_planes
        if params.norm == "group":
            # MONAI hands its own `norm` to the stem alone.
            for module in list(self.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.BatchNorm3d):
                        setattr(module, name, nn.GroupNorm(8, child.num_features))
        if params.shortcut == "padded":
            for module in self.modules():
                if isinstance(shortcut := getattr(module, "downsample", None), partial):
                    module.downsample = Padded(
                        shortcut.keywords["planes"], shortcut.keywords["stride"]
                    )
        if params.dilated:
            for level, dilation in ((self.layer3, 2), (self.layer4, 4)):
                _dilate(level, dilation)


class Padded(nn.Module):
    """A shortcut without parameters: every ``stride``-th voxel, and channels of zeros.

    MONAI's own lets no gradient through.
    """

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (batch, channels, z, y, x) to ``planes`` channels."""
        kept = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, 0, 0, 0, self.planes - kept.shape[1]))


def _dilate(level: nn.Module, dilation: int) -> None:
    """Exchange the strides of a level for dilation."""
    for module in level.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size == (3, 3, 3):
                module.dilation = module.padding = (dilation, dilation, dilation)
        elif isinstance(module, Padded):
            module.stride = 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules built inside get weights that depend on ``seed`` alone.

    The global random state is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build(params: EncoderParams, *, seed: int) -> Encoder:
    """An encoder on the CPU, with weights that depend on ``seed`` alone."""
    with seeded(seed):
        return Encoder(params)


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
    normalization: str = "z-score within the brain, background 0"
    preprocess: dict[str, Any] = Field(default_factory=dict)
    """What a scan's volume depends on: ``preprocess`` of params.yaml without bounds of quality, and
    ``standard``, the landmarks of nyul. Empty where it is not known."""
    method: Literal["simclr", "mae", "random", "supervised", "unknown"]
    licence: str
    """Of the weights: what the licences of the data allow."""
    pretraining: Pretraining | None = None
    origin: str = ""
    """The checkpoint that weights from elsewhere were read from."""


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


def save(folder: Path, encoder: Encoder, plan: Plan) -> None:
    """Write ``encoder.safetensors`` and ``plan.json``."""
    write_weights(folder / "encoder.safetensors", encoder)
    stage.write_json(folder / "plan.json", plan)


def load(folder: Path) -> tuple[Encoder, Plan]:
    """Read what `save` wrote, strictly. Raises DataError."""
    plan = read_plan(folder)
    encoder = build(plan.encoder, seed=0)
    read_weights(folder / "encoder.safetensors", encoder)
    return encoder, plan


def read_plan(folder: Path) -> Plan:
    """The plan beside an encoder's weights. Raises DataError."""
    path = folder / "plan.json"
    try:
        return Plan.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(f"{path}: not an adaptation plan ({error}). Pretrain again.") from error


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of any model as safetensors, whole or not at all."""
    # safetensors refuses channels-last weights.
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.tmp")
    safetensors.torch.save_file(tensors, temporary)
    temporary.replace(path)


def read_weights(path: Path, model: nn.Module) -> None:
    """Fill ``model`` with weights that fit it in every name, shape and type, or raise DataError."""
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the weights cannot be read ({error}).") from error
    fill(model, found, origin=path, remedy="Give the plan.json that was written with these weights")


def fill(model: nn.Module, found: Mapping[str, torch.Tensor], *, origin: Path, remedy: str) -> None:
    """As `read_weights`, with tensors that were read from ``origin``."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of the network" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        have, want = found[name], expected[name]
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            problems.append(
                f"{name} is {tuple(have.shape)} {have.dtype}, "
                f"expected {tuple(want.shape)} {want.dtype}"
            )
    if problems:
        shown = "\n  ".join(sorted(problems)[:10]) + ("\n  …" if len(problems) > 10 else "")
        raise DataError(
            f"{origin}: the weights do not fit the network of their plan in {len(problems)} "
            f"places:\n  {shown}\n{remedy}."
        )
    model.load_state_dict(found)
