from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.command import step


@dsl.container_component
def pretrain(
    params: str,
    method: str,
    gpus: str,
    store: str,
    volumes: Input[Dataset],
    encoder: Output[Model],
    metrics: Output[Metrics],
    folder: dsl.OutputPath(str),
):
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
