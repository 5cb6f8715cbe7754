from kfp import dsl

from components.command import ListOutput, TextOutput, step


@dsl.container_component
def configure(
    params: str,
    preprocess_shards: int,
    finetune_shards: int,
    store: str,
    ingest: TextOutput,
    preprocess: TextOutput,
    pretrain: TextOutput,
    finetune: TextOutput,
    evaluate: TextOutput,
    methods: ListOutput,
    shards_of_preprocess: ListOutput,
    shards_of_finetune: ListOutput,
) -> dsl.ContainerSpec:
    """Check all parameters before any data is touched, and hand each stage its own."""
    return step(
        "configure",
        *("--params", params),
        *("--preprocess-shards", preprocess_shards),
        *("--finetune-shards", finetune_shards),
        *("--store", store),
    )
