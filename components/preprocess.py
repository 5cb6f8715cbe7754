from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components.command import TextOutput, step


@dsl.container_component
def preprocess_shard(
    params: str,
    data: str,
    shard: str,
    store: str,
    cohort: Input[Dataset],
    volumes: Output[Dataset],
    folder: TextOutput,
) -> dsl.ContainerSpec:
    """Preprocess one shard of the scans."""
    return step(
        "preprocess",
        *("--params", params),
        *("--data", data),
        *("--cohort", cohort.path),
        *("--out", volumes.path),
        *("--shard", shard),
        *("--store", store),
    )


@dsl.container_component
def preprocess(
    params: str,
    data: str,
    shards: list[str],
    store: str,
    cohort: Input[Dataset],
    volumes: Output[Dataset],
    qc: Output[HTML],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Merge the shards, and judge the whole: brain masks, registration, normalization."""
    return step(
        "preprocess",
        *("--params", params),
        *("--data", data),
        *("--cohort", cohort.path),
        *("--out", volumes.path),
        *("--reuse", shards),
        *("--store", store),
        files={"qc.html": qc.path},
    )
