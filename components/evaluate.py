from kfp import dsl
from kfp.dsl import (
    HTML,
    Artifact,
    ClassificationMetrics,
    Dataset,
    Input,
    Markdown,
    Metrics,
    Model,
    Output,
)

from components.command import step


@dsl.container_component
def evaluate(
    params: str,
    encoders: list[str],
    store: str,
    cohort: Input[Dataset],
    volumes: Input[Dataset],
    models: Input[Model],
    evaluation: Output[Artifact],
    report: Output[HTML],
    model_card: Output[Markdown],
    metrics: Output[Metrics],
    roc: Output[ClassificationMetrics],
) -> dsl.ContainerSpec:
    """Measure the models in and out of distribution, write the report, decide on promotion."""
    return step(
        "evaluate",
        *("--params", params),
        *("--cohort", cohort.path),
        *("--volumes", volumes.path),
        *("--encoder", encoders),
        *("--models", models.path),
        *("--out", evaluation.path),
        *("--store", store),
        files={"report.html": report.path, "model_card.md": model_card.path},
    )
