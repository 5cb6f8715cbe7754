from kfp import dsl

from components.command import TextOutput, step


@dsl.container_component
def fetch(
    version: str,
    repository: str,
    revision: str,
    store: str,
    folder: TextOutput,
) -> dsl.ContainerSpec:
    """Bring the raw data in the version that is asked for onto the volume, unless it is there."""
    return step(
        "fetch",
        *("--store", store),
        *("--data-version", version),
        *("--repository", repository),
        *("--revision", revision),
    )
