"""Encoders, and reading and writing their weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import safetensors.torch
import torch
from monai.networks.nets.resnet import ResNet
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from neurofoundry.contracts.encoder import EncoderParams, Plan, read_plan
from neurofoundry.contracts.origin import check_contents
from neurofoundry.errors import DataError
from neurofoundry.nn.seeds import seeded
from neurofoundry.runtime.files import atomic, write_json
from neurofoundry.runtime.stage import ENCODER_FILES

Placed = TypeVar("Placed", bound=nn.Module)

BLOCKS = {"resnet18": ("basic", [2, 2, 2, 2]), "resnet50": ("bottleneck", [3, 4, 6, 3])}


class Encoder(nn.Module):
    """Maps z-scores (batch, channels, z, y, x) to (batch, features)."""

    features: int
    channels: int
    """Contrasts of a scan that it sees."""
    stem: ClassVar[str]
    """The name of the weights that see them, (filters, channels, …)."""
    levels: ClassVar[tuple[str, ...]]
    """Its modules, or their common prefixes, from the output down to the input."""


class ResNetEncoder(Encoder, ResNet):
    """MONAI's ResNet without its classifier (He et al. 2016, arXiv 1512.03385)."""

    levels = ("layer4", "layer3", "layer2", "layer1", "")
    stem = "conv1.weight"

    def __init__(self, params: EncoderParams, channels: int = 1) -> None:
        super().__init__(**monai_arguments(params, channels))
        self.features, self.channels = self.in_planes, channels
        if params.norm == "group":
            # MONAI's own argument `norm` changes the stem alone.
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (batch, features)."""
        # MONAI's steps, but ReLU after the pool: the same values from an eighth of the voxels.
        maps = self.act(self.maxpool(self.bn1(self.conv1(x))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        features: torch.Tensor = self.avgpool(maps).flatten(1)
        return features


class Sfcn(Encoder):
    """The simple fully convolutional network of brain age, without its classifier.

    Peng et al. 2021 (doi 10.1016/j.media.2020.101871): five blocks of a convolution (3³), batch
    norm, max-pool and ReLU, one of a convolution (1³), then the mean over all positions and dropout
    of one half. Pools round up, so that volumes of any size fit.
    """

    levels = ("blocks.5", "blocks.4", "blocks.3", "blocks.2", "blocks.1", "blocks.0")
    stem = "blocks.0.0.weight"

    def __init__(self, params: EncoderParams, channels: int = 1) -> None:
        super().__init__()
        widths = [channels, *(int(share * params.width) for share in (32, 64, 128, 256, 256, 64))]
        self.features, self.channels = widths[-1], channels
        steps = itertools.pairwise(widths)
        self.blocks = nn.Sequential(
            *(self._block(*step, last=number == 5) for number, step in enumerate(steps))
        )
        self.dropout = nn.Dropout(0.5)

    @staticmethod
    def _block(inside: int, outside: int, *, last: bool) -> nn.Sequential:
        kernel = 1 if last else 3
        pool = nn.Identity() if last else nn.MaxPool3d(2, ceil_mode=True)
        convolution = nn.Conv3d(inside, outside, kernel, padding=kernel // 2)
        return nn.Sequential(convolution, nn.BatchNorm3d(outside), pool, nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (batch, features)."""
        features: torch.Tensor = self.dropout(self.blocks(x).mean((2, 3, 4)))
        return features


def monai_arguments(params: EncoderParams, channels: int) -> dict[str, Any]:
    """Return the arguments of MONAI's ResNet; `ResNetEncoder` then replaces norms and strides."""
    block, layers = BLOCKS[params.architecture]
    return {
        "block": block,
        "layers": layers,
        "block_inplanes": [64, 128, 256, 512],
        "n_input_channels": channels,
        "conv1_t_stride": params.stem_stride,
        "shortcut_type": "A" if params.shortcut == "padded" else "B",
        "bias_downsample": params.shortcut == "biased",
        "widen_factor": params.width,
        "feed_forward": False,
    }


class Padded(nn.Module):
    """A shortcut without parameters: every ``stride``-th voxel, padded with channels of zeros.

    No gradient flows through MONAI's own.
    """

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``planes`` channels of (batch, channels, z, y, x)."""
        kept = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, 0, 0, 0, self.planes - kept.shape[1]))


def _dilate(level: nn.Module, dilation: int) -> None:
    """Replace the strides of a level by dilation."""
    for module in level.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size == (3, 3, 3):
                module.dilation = module.padding = (dilation, dilation, dilation)
        elif isinstance(module, Padded):
            module.stride = 1


def build(params: EncoderParams, *, seed: int, channels: int = 1) -> Encoder:
    """Return an encoder on the CPU whose weights depend on ``seed`` alone."""
    with seeded(seed):
        if params.architecture == "sfcn":
            return Sfcn(params, channels)
        return ResNetEncoder(params, channels)


def widen(encoder: Encoder, plan: Plan, contrasts: Sequence[str]) -> tuple[Encoder, Plan]:
    """Return an encoder, and its plan, that sees further ``contrasts``, too.

    Filters of what it has seen stay, those of the new channels are 0: until it is trained on, it
    says of a scan what it has said before. The same encoder where there is nothing new.
    """
    new = [contrast for contrast in contrasts if contrast not in plan.contrasts]
    if not new:
        return encoder, plan
    weights = encoder.state_dict()
    stem = weights[encoder.stem]
    added = stem.new_zeros(len(stem), len(new), *stem.shape[2:])
    weights[encoder.stem] = torch.cat([stem, added], 1)
    both = (*plan.contrasts, *new)
    wider = build(plan.encoder, seed=0, channels=len(both))
    wider.load_state_dict(weights)
    return wider, plan.model_copy(update={"contrasts": both})


def place(encoder: Placed) -> Placed:
    """Move a network to the GPU if there is one, and its weights into the faster memory format."""
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    # A quarter less time than in the default format, on a CPU too.
    encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return encoder


def save(folder: Path, encoder: Encoder, plan: Plan) -> None:
    """Write ``encoder.safetensors`` and ``plan.json``."""
    write_weights(folder / "encoder.safetensors", encoder)
    write_json(folder / "plan.json", plan)


def load(folder: Path) -> tuple[Encoder, Plan]:
    """Read what `save` wrote, strictly.

    Raises DataError, also where the folder is not what its stage.json was written for.
    """
    plan = read_plan(folder)
    check_contents(folder, ENCODER_FILES)
    encoder = build(plan.encoder, seed=0, channels=len(plan.contrasts))
    read_weights(folder / "encoder.safetensors", encoder)
    return encoder, plan


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of any model as safetensors, whole or not at all."""
    # safetensors refuses channels-last weights.
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))  # a full disk is an OSError


def read_weights(path: Path, model: nn.Module) -> None:
    """Fill ``model`` with weights that fit it in every name, shape and type, or raise DataError."""
    try:
        weights = safetensors.torch.load(path.read_bytes())  # a mapped file could be cut
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the weights cannot be read ({error}).") from error
    fill(model, weights, origin=path, remedy="Give the plan.json that was written with them")


def fill(
    model: nn.Module, weights: Mapping[str, torch.Tensor], *, origin: Path, remedy: str
) -> None:
    """Fill ``model`` with ``weights`` that were read from ``origin``, strictly, or raise DataError.

    ``remedy`` ends the message: what to do where they do not fit.
    """
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not part of the network" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        have, want = weights[name], expected[name]
        if (have.shape, have.dtype, have.layout) != (want.shape, want.dtype, want.layout):
            problems.append(
                f"{name} is {tuple(have.shape)} {have.dtype}"
                f"{'' if have.layout == want.layout else f' ({have.layout})'}, "
                f"expected {tuple(want.shape)} {want.dtype}"
            )
    if problems:
        shown = "\n  ".join(sorted(problems)[:10]) + ("\n  …" if len(problems) > 10 else "")
        raise DataError(
            f"{origin}: the weights do not fit the network of their plan in {len(problems)} "
            f"places:\n  {shown}\n{remedy}."
        )
    _check_values(weights, origin)
    model.load_state_dict(weights)


def _check_values(tensors: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Raise DataError unless every weight is finite and every variance positive."""
    problems = []
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        low, high = (float(end) for end in tensor.aminmax())  # one pass; NaN wins over any number
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            problems.append(f"{name} has {count} values that are NaN or infinite")
        elif name.endswith("running_var") and low < 0:
            count = int((tensor < 0).sum())
            problems.append(f"{name} has {count} negative variances")
    if problems:
        shown = "\n  ".join(problems[:10]) + ("\n  …" if len(problems) > 10 else "")
        raise DataError(
            f"{origin}: the weights are damaged in {len(problems)} tensors:\n  {shown}\n"
            "Get the file again, or train again."
        )
