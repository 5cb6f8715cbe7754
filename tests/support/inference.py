"""Weights that say how their volumes are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.recipe import NOT_IN_RECIPE
from neurofoundry.contracts.volumes import Grid
from neurofoundry.nn import encoders
from neurofoundry.preprocess.params import PreprocessParams

RECIPE = PreprocessParams(grid=Grid(spacing=6.0), registration_spacing=4.0)


def write_encoder(
    folder: Path, *, recipe: PreprocessParams | dict[str, Any] | None = RECIPE
) -> Path:
    """Write untrained weights for 6 mm, and the recipe of their volumes."""
    if isinstance(recipe, PreprocessParams):
        recipe = recipe.model_dump(mode="json", exclude=set(NOT_IN_RECIPE))
    folder.mkdir(parents=True)
    params = EncoderParams(stem_stride=2, width=0.125)
    encoder = encoders.build(params, seed=5)
    plan = Plan(
        name="simclr",
        encoder=params,
        features=encoder.features,
        grid=RECIPE.grid.describe(),
        preprocess=recipe or {},
        method="simclr",
        licence="none",
    )
    encoders.save(folder, encoder, plan)
    return folder
