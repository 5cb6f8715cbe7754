from kfp import dsl

from components.command import ListOutput, TextOutput, step


@dsl.container_component
def configure(
    params: str,
    preprocess_shards: int,
    finetune_shards: int,
    data_version: str,
    data_repository: str,
    data_revision: str,
    store: str,
    ingest: TextOutput,
    preprocess: TextOutput,
    pretrain: TextOutput,
    finetune: TextOutput,
    evaluate: TextOutput,
    methods: ListOutput,
    shards_of_preprocess: ListOutput,
    shards_of_finetune: ListOutput,
    data: TextOutput,
) -> dsl.ContainerSpec:
    """Check all parameters, hand each stage its own, and bring the raw data if it is not there."""
    return step(
        "configure",
        *("--params", params),
        *("--preprocess-shards", preprocess_shards),
        *("--finetune-shards", finetune_shards),
        *("--data-version", data_version),
        *("--repository", data_repository),
        *("--revision", data_revision),
        *("--store", store),
    )
