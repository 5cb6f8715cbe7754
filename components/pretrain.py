from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.command import TextOutput, step


@dsl.container_component
def pretrain(
    params: str,
    method: str,
    gpus: str,
    store: str,
    volumes: Input[Dataset],
    encoder: Output[Model],
    metrics: Output[Metrics],
    folder: TextOutput,
) -> dsl.ContainerSpec:
    """Train an encoder on unlabelled volumes by one method."""
    return step(
        "pretrain",
        *("--params", params),
        *("--volumes", volumes.path),
        *("--method", method),
        *("--processes", gpus),
        *("--out", encoder.path),
        *("--store", store),
    )


@dsl.container_component
def pretrain_on_nodes(
    params: str,
    method: str,
    nodes: int,
    gpus: str,
    image: str,
    claim: str,
    mount: str,
    pool: dict[str, Any],
    selector: dict[str, str],
    tolerations: list[dict[str, Any]],
    secret: str,
    store: str,
    volumes: Input[Dataset],
    gpus_left: TextOutput,
) -> dsl.ContainerSpec:
    """Train an encoder on several machines, into the store, and say what GPUs are left to ask for.

    For one machine there is nothing to do: they are those that `pretrain` trains with.
    """
    return step(
        "pretrain-on-nodes",
        *("--params", params),
        *("--volumes", volumes.path),
        *("--method", method),
        *("--nodes", nodes),
        *("--processes", gpus),
        *("--image", image),
        *("--claim", claim),
        *("--mount", mount),
        *("--pool", pool),
        *("--selector", selector),
        *("--tolerations", tolerations),
        *("--secret", secret),
        *("--store", store),
    )
