"""What all steps have in common."""

from __future__ import annotations

from typing import Any

from kfp import dsl

IMAGE = "neurofoundry:cpu"
"""A name to compile with; the pipeline's parameter ``image`` stands in its place."""

TextOutput: Any = dsl.OutputPath(str)
ListOutput: Any = dsl.OutputPath(list)
"""Types of parameters that a step hands on, which kfp wants as values."""

RECORD = ["--executor-input", "{{$}}"]


def step(name: str, *flags: Any, files: dict[str, Any] | None = None) -> dsl.ContainerSpec:
    """``neurofoundry NAME FLAGS`` in a container.

    ``files`` are paths of output artifacts that are a file of the stage's output, by its name.
    """
    copies = [
        word
        for file, path in (files or {}).items()
        # In one word: no backend resolves dsl.ConcatPlaceholder, only kfp's local runners do.
        for word in ("--copy", f"{file}={path}")
    ]
    return dsl.ContainerSpec(
        image=IMAGE,
        # Not the script `neurofoundry`: kfp's subprocess runner starts python3 only.
        command=["python3", "-m", "neurofoundry", name],
        args=[*flags, *copies, *RECORD],
    )
