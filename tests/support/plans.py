"""plan.json of a model, as plain values."""

from __future__ import annotations

from typing import Any

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.models import LearnedFrom, ModelPlan, ModelVolumes, Start
from neurofoundry.contracts.volumes import Grid


def model_plan(**change: Any) -> dict[str, Any]:
    """plan.json of a model, as plain values."""
    encoder = Plan(
        name="simclr",
        encoder=EncoderParams(),
        features=512,
        grid={},
        preprocess={},
        normalization="zscore",
        method="simclr",
        licence="none",
    )
    values = ModelPlan(
        task={"name": "sex", "kind": "classification", "column": "sex", "classes": ["F", "M"]},
        initialization=Start(name="tuned", encoder="simclr", mode="finetune"),
        fraction=1.0,
        seed=0,
        learned_from=LearnedFrom(persons=3, scans=4, scan_ids_sha256="0" * 64),
        encoder=encoder,
        volumes=ModelVolumes(
            grid=Grid(spacing=6.0).describe(), preprocess={"registration": "rigid"}
        ),
    )
    return values.model_dump(mode="json") | change
