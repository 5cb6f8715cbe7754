from kfp import dsl
from kfp.dsl import Dataset, Output

from components.command import step


@dsl.container_component
def ingest(
    params: str,
    data: str,
    store: str,
    cohort: Output[Dataset],
):
    """Look at every raw file; table of usable scans, splits by person."""
    return step(
        "ingest",
        *("--params", params),
        *("--data", data),
        *("--out", cohort.path),
        *("--store", store),
    )
