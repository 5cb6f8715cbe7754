from kfp import dsl
from kfp.dsl import Markdown, Output

from components.command import step


@dsl.container_component
def check(store: str, gpus: str, findings: Output[Markdown]) -> dsl.ContainerSpec:
    """See whether a step finds what it needs: image, volume, GPUs, secret, artifact storage."""
    return step("check", *("--store", store), *("--gpus", gpus), *("--out", findings.path))
