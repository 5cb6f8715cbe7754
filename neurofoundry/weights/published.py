"""Weights in: checkpoints of others as an encoder that every stage takes.

Nothing in a checkpoint is run (``weights_only=True``), and nothing is loaded in part: every tensor
becomes one of the encoder's, or is named with the reason why it does not.
"""

from __future__ import annotations

import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import BLOCKS
from neurofoundry.params import validate
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import Workspace
from neurofoundry.weights.params import ImportParams, Kind


@dataclass(frozen=True)
class Form:
    """What is known of checkpoints of one kind, beyond their tensors."""

    holder: str
    """Key of the tensors within the file; '' where the file is the tensors."""
    prefix: str
    """What the names of the encoder's tensors begin with."""
    others: Mapping[str, str]
    """Beginnings of the names of further tensors, and why they are left out."""
    params: Mapping[str, Any]
    """What the tensors do not say of the network."""
    method: Literal["simclr", "supervised", "unknown"]
    licence: str = ""
    spacing: float | None = None
    """mm of the standard grid that the weights are bound to."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)


FORMS: dict[str, Form] = {
    # emilykaczmarek/3D-Neuro-SimCLR, release v1.0.0: rigid registration to MNI152 2009c at 1 mm
    # after N4, its box, z-scores within the mask.
    "3d-neuro-simclr": Form(
        holder="model_state_dict",
        prefix="module.encoder.",
        others={"module.projector.": "the projector of pretraining; features come before it"},
        params={"stem_stride": 1},
        method="simclr",
        licence="MIT",
        spacing=1.0,
        preprocess={
            "grid": {"spacing": 1.0},
            "bias_correction": "n4",
            "registration": "rigid",
            "normalization": "zscore",
        },
    ),
    # Tencent/MedicalNet: trained to segment many organs, without a standard grid.
    "medicalnet": Form(
        holder="state_dict",
        prefix="module.",
        others={"module.conv_seg.": "the head of its segmentation"},
        params={"stem_stride": 2, "dilated": True},
        method="supervised",
        licence="MIT",
    ),
    "monai": Form(
        holder="",
        prefix="",
        others={"fc.": "the classifier"},
        params={},
        method="unknown",
    ),
}

BESIDE = {
    "epoch": "how far the training was",
    "optimizer_state_dict": "the state of the training",
    "optimizer": "the state of the training",
}
"""What a checkpoint holds beside tensors, and why it is left out."""

COUNTER = "num_batches_tracked"
"""Of batch norm: no feature depends on it, and older checkpoints have none."""


@dataclass(frozen=True)
class Published:
    """An encoder's tensors as a checkpoint has them."""

    kind: Kind
    params: EncoderParams
    tensors: dict[str, Tensor]
    left_out: dict[str, str]
    """Name to reason."""


def import_checkpoint(work: Workspace, *, checkpoint: Path, params: ImportParams) -> None:
    """Write the files of `encoder/NAME/` (docs/architecture.md) and import.json.

    The kind is guessed from the content where it is None. import.json lists what of the checkpoint
    was used and what not. Weights of others come without subjects.tsv and images.tsv: whom they
    have seen is unknown. Raises DataError and UsageError.
    """
    kind = params.kind or ("neurofoundry" if checkpoint.is_dir() else None)
    if kind == "neurofoundry":
        _bring_own(work, checkpoint, params)
        return
    content = read_checkpoint(checkpoint)
    sha256 = hash_file(checkpoint)
    kind = kind or guess(content, checkpoint)
    form = FORMS[kind]
    if params.stem_stride and "stem_stride" in form.params:
        raise UsageError(
            f"--stem-stride: that of {kind} is {form.params['stem_stride']}. Leave it out."
        )
    if params.spacing and form.spacing:
        raise UsageError(f"--spacing: that of {kind} is {form.spacing:g} mm. Leave it out.")
    licence = params.licence or form.licence
    if not licence:
        raise UsageError(
            f"--licence: a checkpoint of kind {kind} does not say under which licence it is. Give "
            "it, such as --licence MIT; it stays with the weights."
        )
    found = read(content, kind, origin=checkpoint, stem_stride=params.stem_stride or 1)
    encoder = encoders.build(found.params, seed=0)
    encoders.fill(
        encoder,
        found.tensors,
        origin=checkpoint,
        remedy=f"If the file is whole, it is not of the kind {kind}: give another --kind",
    )
    bound = params.spacing or form.spacing
    plan = Plan(
        name=params.name,
        encoder=found.params,
        features=encoder.features,
        grid=validate({"spacing": bound}, Grid, origin="--spacing").describe() if bound else {},
        preprocess=dict(form.preprocess),
        method=form.method,
        licence=licence,
        origin=f"{kind} checkpoint, sha256 {sha256}",
    )
    encoders.save(work.dir, encoder, plan)
    _write_record(work, kind, sha256, len(found.tensors), found.left_out)


def _bring_own(work: Workspace, folder: Path, params: ImportParams) -> None:
    """Copy an encoder's folder, of pretrain or exported, under another name."""
    if params.licence or params.spacing or params.stem_stride:
        raise UsageError(
            "--licence, --spacing and --stem-stride: the plan.json of a folder says what its "
            "weights are. Leave them out."
        )
    if not (folder / "plan.json").is_file():
        unpacked = any(folder.rglob("data.pkl"))
        raise DataError(
            f"{folder}: "
            + (
                "an unpacked checkpoint. The published .tar is a file of torch and no archive: "
                "download it again, and give it as it is."
                if unpacked
                else "no encoder: it has no plan.json. Give the folder that pretrain or export "
                "wrote, or a checkpoint file."
            )
        )
    encoder, plan = encoders.load(folder)
    sha256 = hash_file(folder / "encoder.safetensors")
    origin = plan.origin or f"neurofoundry encoder '{plan.name}', sha256 {sha256}"
    encoders.save(
        work.dir, encoder, plan.model_copy(update={"name": params.name, "origin": origin})
    )
    for table in ("subjects.tsv", "images.tsv", "history.tsv"):
        if (folder / table).exists():
            shutil.copyfile(folder / table, work.dir / table)
    _write_record(work, "neurofoundry", sha256, len(encoder.state_dict()), {})


def _write_record(
    work: Workspace, kind: str, sha256: str, tensors: int, left_out: Mapping[str, str]
) -> None:
    listed = [{"name": name, "reason": reason} for name, reason in left_out.items()]
    write_json(
        work.dir / "import.json",
        {"kind": kind, "sha256": sha256, "tensors": tensors, "left_out": listed},
    )
    work.data_version = sha256
    work.summary |= {"kind": kind, "tensors": tensors, "left_out": len(left_out)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a file of torch or safetensors holds; nothing in it is run. Raises DataError."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UsageError(f"{path}: the checkpoint cannot be read ({error.strerror}).") from error
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise DataError(f"{path}: damaged or cut short ({error}). Download it again.") from None
    if not start.startswith((b"PK", b"\x80")):
        if tarfile.is_tarfile(path):
            raise DataError(
                f"{path}: a real tar archive, expected a checkpoint of torch (the published "
                "3D-Neuro-SimCLR file is one in spite of its name). Unpack this archive, and give "
                "the checkpoint in it."
            )
        raise DataError(
            f"{path}: neither a checkpoint of torch nor safetensors; it begins with {start.hex()}. "
            "Was the download a web page, or a pointer of git-lfs?"
        )
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cut short ({path.stat().st_size} bytes). Download it again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"(?:global|GLOBAL) (\S+)|(?:function|class) (\S+)", str(error)):
            what = f": {refused[1] or refused[2]}"
        else:
            what = ""
        if what or "weights_only" in str(error).lower():
            raise DataError(
                f"{path}: refused. Beside tensors it holds Python objects, which could run code "
                f"when read{what}. Ask its author for the tensors alone (a state dict, or better "
                "safetensors)."
            ) from None
        raise DataError(f"{path}: damaged or cut short ({error}). Download it again.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: damaged or cut short ({str(error).splitlines()[0]}). Download it again."
        ) from None
    if not isinstance(content, Mapping):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors."
        )
    return dict(content)


def guess(content: Mapping[str, Any], origin: Path) -> Kind:
    """The kind of a checkpoint, by the names in it. Raises UsageError."""
    for kind in ("3d-neuro-simclr", "medicalnet", "monai"):
        form = FORMS[kind]
        tensors = content.get(form.holder) if form.holder else content
        if isinstance(tensors, Mapping) and f"{form.prefix}conv1.weight" in tensors:
            return kind
    shown = ", ".join(list(map(str, content))[:5])
    raise UsageError(
        f"{origin}: not a checkpoint of a kind that is known ({', '.join(FORMS)}); it holds "
        f"{shown}{' …' if len(content) > 5 else ''}. Say which with --kind, or bring its tensors "
        "to the names of MONAI's ResNet."
    )


def read(
    content: Mapping[str, Any], kind: Kind, *, origin: Path, stem_stride: Literal[1, 2]
) -> Published:
    """The encoder's tensors under our names, and everything else with the reason it is left out.

    ``stem_stride`` is that of kinds that do not say. Raises DataError when something is neither.
    """
    form = FORMS[kind]
    holder = content.get(form.holder) if form.holder else content
    if not isinstance(holder, Mapping):
        raise DataError(
            f"{origin}: no '{form.holder}', as checkpoints of kind {kind} have it; found "
            f"{', '.join(list(map(str, content))[:5])}. Give another --kind."
        )
    beside = [str(key) for key in content if key != form.holder] if form.holder else []
    left_out = {key: BESIDE.get(key, "not tensors of the network") for key in beside}
    tensors: dict[str, Tensor] = {}
    strange = []
    for key, value in holder.items():
        reason = next((why for start, why in form.others.items() if key.startswith(start)), None)
        if reason:
            left_out[key] = reason
        elif key.startswith(form.prefix) and isinstance(value, Tensor):
            tensors[key.removeprefix(form.prefix)] = value
        else:
            strange.append(key)
    if strange:
        raise DataError(
            f"{origin}: {len(strange)} entries are neither of the encoder ({form.prefix}*) nor "
            f"known to be dispensable: {', '.join(strange[:5])}{' …' if strange[5:] else ''}. "
            "Remove them, or give another --kind."
        )
    params = _params(tensors, {"stem_stride": stem_stride, **form.params}, origin)
    for name in encoders.build(params, seed=0).state_dict():
        if name.endswith(COUNTER) and name not in tensors:
            tensors[name] = torch.tensor(0)
    return Published(kind, params, tensors, left_out)


def _params(tensors: Mapping[str, Tensor], known: Mapping[str, Any], origin: Path) -> EncoderParams:
    """The network, as the names and shapes of its tensors tell it."""
    stem = tensors.get("conv1.weight")
    blocks = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{level}.")})
        for level in (1, 2, 3, 4)
    ]
    form = ("bottleneck" if "layer1.0.conv3.weight" in tensors else "basic", blocks)
    architecture = next((name for name, each in BLOCKS.items() if each == form), None)
    if stem is None or architecture is None:
        raise DataError(
            f"{origin}: a stem {'missing' if stem is None else 'present'} and {form[0]} blocks "
            f"{blocks}; expected a whole {' or '.join(BLOCKS)}."
        )
    if stem.shape[1:] != (1, 7, 7, 7):
        raise DataError(
            f"{origin}: conv1.weight is {tuple(stem.shape)}, expected (channels, 1, 7, 7, 7): one "
            "volume in, not an image of several channels."
        )
    if "layer1.0.bn1.running_mean" not in tensors:
        raise DataError(
            f"{origin}: no batch norm (layer1.0.bn1.running_mean is missing); which norm it was "
            "instead, and of how many groups, tensors do not tell."
        )
    shortcut = "unbiased" if "layer2.0.downsample.0.weight" in tensors else "padded"
    if "layer2.0.downsample.0.bias" in tensors:
        shortcut = "biased"
    values = {"architecture": architecture, "width": stem.shape[0] / 64, "shortcut": shortcut}
    try:
        return EncoderParams.model_validate(values | dict(known))
    except ValueError:
        raise DataError(
            f"{origin}: conv1.weight has {stem.shape[0]} channels, expected a multiple of 8."
        ) from None
