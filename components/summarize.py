from kfp import dsl
from kfp.dsl import Markdown, Output

from components.command import step


@dsl.container_component
def summarize(
    status: dsl.PipelineTaskFinalStatus, store: str, summary: Output[Markdown]
) -> dsl.ContainerSpec:
    """Say how the run ended, and how to go on."""
    return step(
        "summarize",
        *("--status", status),
        *("--store", store),
        *("--out", summary.path),
    )
