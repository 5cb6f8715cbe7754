from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.command import step


@dsl.container_component
def promote(
    store: str,
    models: Input[Model],
    evaluation: Input[Artifact],
    model: Output[Model],
) -> dsl.ContainerSpec:
    """Register the model that the promotion rule has accepted, or say why there is none."""
    return step(
        "promote",
        *("--models", models.path),
        *("--evaluation", evaluation.path),
        *("--out", model.path),
        *("--store", store),
    )
