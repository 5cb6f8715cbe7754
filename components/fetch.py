from kfp import dsl

from components.command import step


@dsl.container_component
def fetch(
    version: str,
    repository: str,
    revision: str,
    store: str,
    folder: dsl.OutputPath(str),
):
    """The raw data in the version that is asked for; downloaded unless it is on the volume."""
    return step(
        "fetch",
        *("--store", store),
        *("--data-version", version),
        *("--repository", repository),
        *("--revision", revision),
    )
