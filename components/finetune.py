from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.command import step


@dsl.container_component
def finetune_shard(
    params: str,
    encoders: list,
    shard: str,
    store: str,
    volumes: Input[Dataset],
    models: Output[Model],
    folder: dsl.OutputPath(str),
):
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
    encoders: list,
    shards: list,
    store: str,
    volumes: Input[Dataset],
    models: Output[Model],
):
    """Every task from every initialization: merge the shards."""
    return step(
        "finetune",
        *("--params", params),
        *("--volumes", volumes.path),
        *("--encoder", encoders),
        *("--out", models.path),
        *("--reuse", shards),
        *("--store", store),
    )
