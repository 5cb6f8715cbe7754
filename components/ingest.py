from kfp import dsl
from kfp.dsl import Dataset, Output

from components.command import step


@dsl.container_component
def ingest(
    params: str,
    data: str,
    store: str,
    cohort: Output[Dataset],
) -> dsl.ContainerSpec:
    """Check every raw file; list the usable scans and split them by person."""
    return step(
        "ingest",
        *("--params", params),
        *("--data", data),
        *("--out", cohort.path),
        *("--store", store),
    )
