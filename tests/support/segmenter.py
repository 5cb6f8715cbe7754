"""A segmentation without training: we set the weights, and it outlines what is bright."""

from __future__ import annotations

from pathlib import Path

import torch

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.models import (
    EnsemblePlan,
    LearnedFrom,
    ModelPlan,
    ModelVolumes,
    Start,
    write_ensemble,
    write_model_plan,
)
from neurofoundry.contracts.recipe import NOT_IN_RECIPE
from neurofoundry.nn import encoders
from neurofoundry.nn.segmenter import Segmenter
from neurofoundry.preprocess.params import PreprocessParams

ENCODER = EncoderParams(stem_stride=2, width=0.125)


def bright(
    threshold: float,
    *,
    steepness: float = 4.0,
    contrasts: tuple[str, ...] = ("T1w",),
    patch: int | None = None,
) -> Segmenter:
    """A network whose logit is a steep line of the last contrast in its standard deviations."""
    encoder = encoders.build(ENCODER, seed=5, channels=len(contrasts))
    network = Segmenter(encoder, 1, patch=patch)
    last = network.head.steps[-1]
    width = last[0].in_channels
    with torch.no_grad():
        for convolution, source in ((network.head.entrance[0], -1), (last[0], width - 8)):
            convolution.weight.zero_()
            convolution.weight[0, source, 1, 1, 1] = 1
        network.head.classify.weight[1, 0] = steepness
        network.head.prior.copy_(torch.tensor([steepness * threshold, 0.0]))
    return network.eval()


def write_model(
    folder: Path,
    network: Segmenter,
    recipe: PreprocessParams,
    *,
    mirror: bool = False,
    contrasts: tuple[str, ...] = ("T1w",),
) -> Path:
    """Write the folder of a model whose task is 'hot-spot', its class 'spot'."""
    folder.mkdir(parents=True)
    made = recipe.model_dump(mode="json", exclude=set(NOT_IN_RECIPE))
    encoder = Plan(
        name="simclr",
        encoder=ENCODER,
        features=network.encoder.features,
        grid=recipe.grid.describe(),
        contrasts=contrasts,
        preprocess=made,
        method="simclr",
        licence="none",
    )
    label = {"suffix": "dseg", "desc": "hotspot"}
    plan = ModelPlan(
        task={
            **{"name": "hot-spot", "kind": "segmentation", "column": "hot-spot"},
            **{"classes": ["spot"], "label": label},
        },
        initialization=Start(name="simclr", encoder="simclr", mode="finetune"),
        fraction=1.0,
        seed=int(folder.name) if folder.name.isdigit() else 0,
        learned_from=LearnedFrom(persons=9, scans=9, scan_ids_sha256="0" * 64),
        encoder=encoder,
        volumes=ModelVolumes(grid=recipe.grid.describe(), preprocess=made),
        test_time_augmentation="mirror" if mirror else "none",
        patch=network.patch,
    )
    write_model_plan(folder, plan)
    encoders.write_weights(folder / "model.safetensors", network)
    return folder


def write_models(folder: Path, networks: list[Segmenter], recipe: PreprocessParams) -> Path:
    """Write several as one ensemble."""
    for number, network in enumerate(networks):
        write_model(folder / str(number), network, recipe)
    members = tuple(map(str, range(len(networks))))
    nothing = {"temperature": None, "distance_limit": None}
    write_ensemble(folder, EnsemblePlan(members=members, **nothing))
    return folder
