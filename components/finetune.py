from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.command import TextOutput, step


@dsl.container_component
def finetune_shard(
    params: str,
    encoders: list[str],
    shard: str,
    store: str,
    volumes: Input[Dataset],
    models: Output[Model],
    folder: TextOutput,
) -> dsl.ContainerSpec:
    """Make one shard of the declared models."""
    return step(
        "finetune",
        *("--params", params),
        *("--volumes", volumes.path),
        *("--encoder", encoders),
        *("--out", models.path),
        *("--shard", shard),
        *("--store", store),
    )


@dsl.container_component
def finetune(
    params: str,
    encoders: list[str],
    shards: list[str],
    store: str,
    volumes: Input[Dataset],
    models: Output[Model],
) -> dsl.ContainerSpec:
    """Merge the shards into all models: every task from every initialization."""
    return step(
        "finetune",
        *("--params", params),
        *("--volumes", volumes.path),
        *("--encoder", encoders),
        *("--out", models.path),
        *("--reuse", shards),
        *("--store", store),
    )
