from kfp import dsl
from kfp.dsl import Markdown, Output

from components.command import step


@dsl.container_component
def summarize(store: str, summary: Output[Markdown]) -> dsl.ContainerSpec:
    """Say what came out of the run, or which step failed and how to go on."""
    return step("summarize", *("--store", store), *("--out", summary.path))
