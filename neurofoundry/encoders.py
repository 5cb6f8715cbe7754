"""Networks, and their weights in and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from monai.networks.nets.resnet import ResNet
from safetensors import SafetensorError
from torch import nn

from neurofoundry import stage
from neurofoundry.adaptation import EncoderParams, Plan, read_plan
from neurofoundry.errors import DataError

BLOCKS = {"resnet18": ("basic", [2, 2, 2, 2]), "resnet50": ("bottleneck", [3, 4, 6, 3])}


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
            f"{path}: the weights do not fit the network of their plan in {len(problems)} "
            f"places:\n  {shown}\nGive the plan.json that was written with these weights."
        )
    model.load_state_dict(found)
