"""Weights out: a folder that the Hugging Face hub and MONAI's bundle loader accept as it is."""

from __future__ import annotations

import io
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import neurofoundry
from neurofoundry.contracts.cohort import is_phantom
from neurofoundry.contracts.encoder import (
    HASHED_SUBJECTS,
    Plan,
    hash_person,
    read_pretrained,
)
from neurofoundry.contracts.tables import write_table
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import ResNetEncoder
from neurofoundry.runtime import templates
from neurofoundry.runtime.files import atomic, hash_file, write_json, write_text
from neurofoundry.runtime.stage import Workspace
from neurofoundry.weights.features import LARGEST
from neurofoundry.weights.hub import front_matter

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
"""The schema that MONAI checks metadata.json against."""

PREPROCESSING = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "LoadImage", "image_only": True},
        {"_target_": "EnsureChannelFirst"},
        {"_target_": "Transpose", "indices": [0, 3, 2, 1]},
    ],
}
"""How MONAI reads a volume of preprocess, as one channel."""

CARD = Path(__file__).with_name("card.md")


def export(work: Workspace, *, encoder: Path, authors: str) -> None:
    """Write an encoder for others: weights, plan, model card, MONAI bundle, hashed subjects.

    Names of persons become HMAC-SHA256 with the hash of the weights as salt: whoever holds the same
    names can see whom the encoder has seen, and the guard against leakage still works.
    """
    network, plan = encoders.load(encoder)
    encoders.save(work.dir, network, plan)
    for folder in ("configs", "models"):
        (work.dir / folder).mkdir(exist_ok=True)
    content = io.BytesIO()  # torch would report a full disk as a defect
    torch.save(network.state_dict(), content)
    with atomic(work.dir / "models/model.pt") as temporary:
        temporary.write_bytes(content.getbuffer())
    write_json(work.dir / "configs/metadata.json", metadata(plan, authors))
    write_json(work.dir / "configs/inference.json", inference(plan))
    write_text(work.dir / "LICENSE", f"The weights are licensed under: {plan.licence}\n")
    seen = read_pretrained(encoder)
    if seen.persons is not None:
        salt = seen.salt or hash_file(work.dir / "encoder.safetensors")
        named = seen.persons if seen.salt else {hash_person(p, salt) for p in seen.persons}
        table = pd.DataFrame({"person_hash": sorted(named), "salt": salt})
        write_table(table, work.dir / "subjects.tsv", HASHED_SUBJECTS)
    if seen.images is not None:
        shutil.copyfile(encoder / "images.tsv", work.dir / "images.tsv")
    card = _card(plan, None if seen.persons is None else frozenset(seen.persons), authors)
    write_text(work.dir / "README.md", card)
    parameters = sum(weight.numel() for weight in network.parameters())
    work.summary |= {"parameters": parameters, "features": plan.features}


def metadata(plan: Plan, authors: str) -> dict[str, Any]:
    """Return configs/metadata.json, which MONAI asks of a bundle."""
    return {
        "schema": SCHEMA,
        "version": neurofoundry.__version__,
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")}
        | ({} if _is_plain(plan) else {"neurofoundry": neurofoundry.__version__}),
        "name": plan.name,
        "task": f"Features of 3D {' and '.join(plan.contrasts)} brain MRI",
        "description": f"{plan.encoder.architecture}, pretrained with {plan.method}: "
        f"{plan.features} features of a brain. Not for diagnosis.",
        "authors": authors,
        "copyright": f"Weights: {plan.licence}",
        "data_type": "nibabel",
        "intended_use": "Research: a starting point for fine-tuning and linear models. "
        "Not for diagnosis.",
        "network_data_format": {
            "inputs": {"image": describe_input(plan)},
            "outputs": {
                "pred": {
                    "type": "array",
                    "format": "features",
                    "num_channels": plan.features,
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                }
            },
        },
    }


def describe_input(plan: Plan) -> dict[str, Any]:
    """Return what MONAI's metadata say of a volume that the weights take.

    A channel is a contrast, and zeros where a scan lacks it.
    """
    t1w, *others = plan.contrasts
    channels = [f"{t1w}, axes (z, y, x), {plan.normalization}"]
    channels += [f"{contrast}, likewise; zeros where a scan lacks it" for contrast in others]
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(channels),
        "spatial_shape": plan.grid["shape_xyz"][::-1] if plan.grid else ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [-LARGEST, LARGEST],
        "is_patch_data": False,
        "channel_def": {str(number): channel for number, channel in enumerate(channels)},
    }


def inference(plan: Plan) -> dict[str, Any]:
    """Return configs/inference.json: the network, and how it reads a volume of preprocess."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network(plan),
        "network": "$@network_def.to(@device)",
        "preprocessing": PREPROCESSING,
        "inferer": {"_target_": "SimpleInferer"},
    }


def _is_plain(plan: Plan) -> bool:
    """Return whether MONAI alone can build the network."""
    return plan.encoder.norm == "batch" and not plan.encoder.dilated


def _network(plan: Plan) -> dict[str, Any]:
    params, channels = plan.encoder, len(plan.contrasts)
    if not _is_plain(plan):
        schema, values = type(params), params.model_dump(mode="json")
        return {
            "_target_": f"{ResNetEncoder.__module__}.{ResNetEncoder.__qualname__}",
            "params": {"_target_": f"{schema.__module__}.{schema.__qualname__}", **values},
            "channels": channels,
        }
    arguments = encoders.monai_arguments(params, channels)
    return {"_target_": "monai.networks.nets.resnet.ResNet", **arguments}


def _card(plan: Plan, persons: frozenset[str] | None, authors: str) -> str:
    """Return README.md: the model card, with the front matter that the hub reads."""
    synthetic = bool(persons) and all(is_phantom(person) for person in persons or ())
    front = front_matter(
        licence=plan.licence,
        synthetic=synthetic,
        tags=["monai"],
        pipeline_tag="image-feature-extraction",
        license_link="LICENSE",
    )
    context = {
        "front_matter": front,
        "plan": plan,
        "persons": None if persons is None else len(persons),
        "authors": authors,
        "synthetic": synthetic,
    }
    return templates.render(CARD, context) + "\n"
