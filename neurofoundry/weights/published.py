"""Weights in: others' checkpoints as an encoder that every stage takes.

Nothing in a checkpoint is run (``weights_only=True``), and nothing is loaded in part: every tensor
becomes one of the encoder's, or is listed with the reason why it does not.
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

from neurofoundry.contracts.encoder import EncoderParams, Plan, read_pretrained
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import BLOCKS
from neurofoundry.params import validate
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import IMPORTED, Workspace
from neurofoundry.weights.params import CheckpointKind, ImportParams


@dataclass(frozen=True)
class Layout:
    """What is known of checkpoints of one kind, beyond their tensors."""

    holder: str
    """Key of the tensors in the file; '' where the file is the tensors."""
    prefix: str
    """What the names of the encoder's tensors start with."""
    others: Mapping[str, str]
    """What the names of other tensors start with, and why those are left out."""
    params: Mapping[str, Any]
    """What the tensors do not tell of the network."""
    method: Literal["simclr", "supervised", "unknown"]
    licence: str = ""
    spacing: float | None = None
    """mm of the standard grid that the weights are bound to; None: any grid."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)


LAYOUTS: dict[str, Layout] = {
    # emilykaczmarek/3D-Neuro-SimCLR, release v1.0.0: rigid registration to MNI152 2009c at 1 mm
    # after N4, its box, z-scores within the mask.
    "3d-neuro-simclr": Layout(
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
    "medicalnet": Layout(
        holder="state_dict",
        prefix="module.",
        others={"module.conv_seg.": "the head of its segmentation"},
        params={"stem_stride": 2, "dilated": True},
        method="supervised",
        licence="MIT",
    ),
    "monai": Layout(
        holder="",
        prefix="",
        others={"fc.": "the classifier"},
        params={},
        method="unknown",
    ),
}

BESIDE = {
    "epoch": "how far training had come",
    "optimizer_state_dict": "the state of training",
    "optimizer": "the state of training",
}
"""What a checkpoint holds beside tensors, and why that is left out."""

COUNTER = "num_batches_tracked"
"""A count of batch norm: no feature depends on it, and older checkpoints have none."""


@dataclass(frozen=True)
class Published:
    """An encoder's tensors as a checkpoint has them."""

    kind: CheckpointKind
    params: EncoderParams
    tensors: dict[str, Tensor]
    left_out: dict[str, str]
    """Name to reason."""


def import_checkpoint(work: Workspace, *, checkpoint: Path, params: ImportParams) -> None:
    """Write the files of `encoder/NAME/` (docs/architecture.md) and import.json.

    Where the kind is None it is guessed from the content. import.json lists what of the checkpoint
    was used and what was not. Others' weights come without subjects.tsv and images.tsv: whom they
    have seen is unknown. Raises DataError and UsageError.
    """
    kind = params.kind or ("neurofoundry" if checkpoint.is_dir() else None)
    if kind == "neurofoundry":
        _import_encoder(work, checkpoint, params)
        return
    content = read_checkpoint(checkpoint)
    sha256 = hash_file(checkpoint)
    kind = kind or guess_kind(content, checkpoint)
    layout = LAYOUTS[kind]
    licence = _check_options(params, kind, layout)
    published = read_tensors(content, kind, origin=checkpoint, stem_stride=params.stem_stride or 1)
    encoder = encoders.build(published.params, seed=0)
    encoders.fill(
        encoder,
        published.tensors,
        origin=checkpoint,
        remedy=f"If the file is whole, it is not of the kind {kind}: give another --kind",
    )
    spacing = params.spacing or layout.spacing
    grid = validate({"spacing": spacing}, Grid, origin="--spacing").describe() if spacing else {}
    plan = Plan(
        name=params.name,
        encoder=published.params,
        features=encoder.features,
        grid=grid,
        preprocess=dict(layout.preprocess),
        method=layout.method,
        licence=licence,
        origin=f"{kind} checkpoint, sha256 {sha256}",
    )
    encoders.save(work.dir, encoder, plan)
    _write_record(work, kind, sha256, len(published.tensors), published.left_out)


def _check_options(params: ImportParams, kind: CheckpointKind, layout: Layout) -> str:
    """Return the licence. Raises UsageError where an option contradicts the kind, or lacks."""
    if params.stem_stride and "stem_stride" in layout.params:
        raise UsageError(
            f"--stem-stride: that of {kind} is {layout.params['stem_stride']}. Leave it out."
        )
    if params.spacing and layout.spacing:
        raise UsageError(f"--spacing: that of {kind} is {layout.spacing:g} mm. Leave it out.")
    licence = params.licence or layout.licence
    if not licence:
        raise UsageError(
            f"--licence: a checkpoint of kind {kind} does not state its licence. Give it, such as "
            "--licence MIT; it stays with the weights."
        )
    return licence


def _import_encoder(work: Workspace, folder: Path, params: ImportParams) -> None:
    """Copy an encoder's folder, from pretrain or export, under another name."""
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
                "an unpacked checkpoint. The published .tar is a torch file and not an archive: "
                "download it again, and give it as it is."
                if unpacked
                else "not an encoder: it has no plan.json. Give the folder that pretrain or export "
                "wrote, or a checkpoint file."
            )
        )
    encoder, plan = encoders.load(folder)
    read_pretrained(folder)  # checks the tables that are copied
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
    work: Workspace, kind: CheckpointKind, sha256: str, tensors: int, left_out: Mapping[str, str]
) -> None:
    listed = [{"name": name, "reason": reason} for name, reason in left_out.items()]
    write_json(
        work.dir / IMPORTED,
        {"kind": kind, "sha256": sha256, "tensors": tensors, "left_out": listed},
    )
    work.data_version = sha256
    work.summary |= {"kind": kind, "tensors": tensors, "left_out": len(left_out)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what a torch or safetensors file holds; nothing in it is run.

    Raises DataError where it is damaged or refused, and UsageError where it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UsageError(f"{path}: the checkpoint cannot be read ({error.strerror}).") from error
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load(path.read_bytes()))
        except SafetensorError as error:
            raise _damaged(path, error) from None
    _check_start(path, start)
    if start.startswith(b"PK"):
        _check_sums(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) or _damaged(path, error) from None
    except Exception as error:  # inverted bytes of a pickle can raise any
        why = str(error).splitlines() or [type(error).__name__]
        raise _damaged(path, why[0]) from None
    if not isinstance(content, Mapping):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors."
        )
    return dict(content)


def _check_start(path: Path, start: bytes) -> None:
    """Raise DataError unless the first bytes are those of a torch file."""
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cut short ({path.stat().st_size} bytes). Download it again.")
    if start.startswith((b"PK", b"\x80")):
        return
    if tarfile.is_tarfile(path):
        raise DataError(
            f"{path}: a real tar archive, expected a torch checkpoint (the published "
            "3D-Neuro-SimCLR file is one in spite of its name). Unpack this archive, and give "
            "the checkpoint in it."
        )
    raise DataError(
        f"{path}: neither a torch checkpoint nor safetensors; it starts with {start.hex()}. "
        "Was the download a web page, or a git-lfs pointer?"
    )


def _check_sums(path: Path) -> None:
    """Raise DataError unless every file of the zip has the CRC that it was written with.

    torch packs nothing: what would be more unpacked, without end perhaps, is not its file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            packed = claimed > path.stat().st_size
            damaged = None if packed else archive.testzip()
    except Exception as error:  # a damaged directory of the zip can raise any
        raise _damaged(path, error) from None
    if packed:
        raise _damaged(path, f"it is packed, and {claimed} bytes unpacked: torch packs nothing")
    if damaged:
        raise _damaged(path, f"{damaged!r:.80} does not have the CRC that it was written with")


def _damaged(path: Path, why: object) -> DataError:
    return DataError(f"{path}: damaged or cut short ({why}). Download it again.")


def _refused(path: Path, error: pickle.UnpicklingError) -> DataError | None:
    """Return the error of a file that holds Python objects; None for one that is damaged."""
    named = re.search(r"(?:global|GLOBAL) (\S+)|(?:function|class) (\S+)", str(error))
    if not named and "weights_only" not in str(error).lower():
        return None
    what = f": {named[1] or named[2]}" if named else ""
    return DataError(
        f"{path}: refused. Beside tensors it holds Python objects, which could run code when "
        f"read{what}. Ask its author for the tensors alone (a state dict, or better safetensors)."
    )


def guess_kind(content: Mapping[str, Any], origin: Path) -> CheckpointKind:
    """Guess the kind of a checkpoint from the names in it. Raises UsageError."""
    for kind in ("3d-neuro-simclr", "medicalnet", "monai"):
        layout = LAYOUTS[kind]
        tensors = content.get(layout.holder) if layout.holder else content
        if isinstance(tensors, Mapping) and f"{layout.prefix}conv1.weight" in tensors:
            return kind
    shown = ", ".join(list(map(str, content))[:5])
    raise UsageError(
        f"{origin}: not a checkpoint of a known kind ({', '.join(LAYOUTS)}); it holds "
        f"{shown}{' …' if len(content) > 5 else ''}. Give its --kind, or rename its tensors as in "
        "MONAI's ResNet."
    )


def read_tensors(
    content: Mapping[str, Any],
    kind: CheckpointKind,
    *,
    origin: Path,
    stem_stride: Literal[1, 2],
) -> Published:
    """Return the encoder's tensors under our names, and why everything else is left out.

    ``stem_stride`` is for kinds that do not say. Raises DataError when something is neither.
    """
    layout = LAYOUTS[kind]
    holder = content.get(layout.holder) if layout.holder else content
    if not isinstance(holder, Mapping):
        raise DataError(
            f"{origin}: no '{layout.holder}', which checkpoints of kind {kind} have; found "
            f"{', '.join(list(map(str, content))[:5])}. Give another --kind."
        )
    beside = [str(key) for key in content if key != layout.holder] if layout.holder else []
    left_out = {key: BESIDE.get(key, "not tensors of the network") for key in beside}
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in ((str(key), value) for key, value in holder.items()):
        reason = next((why for start, why in layout.others.items() if key.startswith(start)), None)
        if reason:
            left_out[key] = reason
        elif key.startswith(layout.prefix) and isinstance(value, Tensor):
            tensors[key.removeprefix(layout.prefix)] = value
        else:
            unknown.append(key)
    if unknown:
        raise DataError(
            f"{origin}: {len(unknown)} entries are neither the encoder's ({layout.prefix}*) nor "
            f"known to be dispensable: {', '.join(unknown[:5])}{' …' if unknown[5:] else ''}. "
            "Remove them, or give another --kind."
        )
    params = _infer_params(tensors, {"stem_stride": stem_stride, **layout.params}, origin)
    for name in encoders.build(params, seed=0).state_dict():
        if name.endswith(COUNTER) and name not in tensors:
            tensors[name] = torch.tensor(0)
    return Published(kind, params, tensors, left_out)


def _infer_params(
    tensors: Mapping[str, Tensor], known: Mapping[str, Any], origin: Path
) -> EncoderParams:
    """Infer the network from the names and shapes of its tensors."""
    stem = tensors.get("conv1.weight")
    blocks = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{level}.")})
        for level in (1, 2, 3, 4)
    ]
    block = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    architecture = next((name for name, each in BLOCKS.items() if each == (block, blocks)), None)
    if stem is None or architecture is None:
        raise DataError(
            f"{origin}: a stem {'missing' if stem is None else 'present'} and {block} blocks "
            f"{blocks}; expected a whole {' or '.join(BLOCKS)}."
        )
    if stem.shape[1:] != (1, 7, 7, 7):
        raise DataError(
            f"{origin}: conv1.weight is {tuple(stem.shape)}, expected (channels, 1, 7, 7, 7): one "
            "volume in, not an image of several channels."
        )
    if "layer1.0.bn1.running_mean" not in tensors:
        raise DataError(
            f"{origin}: no batch norm (layer1.0.bn1.running_mean is missing); tensors do not tell "
            "which norm there was instead, and of how many groups."
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
