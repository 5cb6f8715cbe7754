from kfp import dsl

from components.command import step


@dsl.container_component
def configure(
    params: str,
    preprocess_shards: int,
    finetune_shards: int,
    ingest: dsl.OutputPath(str),
    preprocess: dsl.OutputPath(str),
    pretrain: dsl.OutputPath(str),
    finetune: dsl.OutputPath(str),
    evaluate: dsl.OutputPath(str),
    methods: dsl.OutputPath(list),
    shards_of_preprocess: dsl.OutputPath(list),
    shards_of_finetune: dsl.OutputPath(list),
):
    """Check all parameters before any data is touched, and hand each stage its own."""
    return step(
        "configure",
        *("--params", params),
        *("--preprocess-shards", preprocess_shards),
        *("--finetune-shards", finetune_shards),
    )
