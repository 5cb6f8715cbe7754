"""The compiled pipeline: what is committed, what is submitted, and what runs here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from neurofoundry.errors import UsageError
from neurofoundry.runtime.guard import guard_file
from pipelines import node_pools, pipeline, smoke

HERE = Path(__file__).parent
MADE = "# Made by `python -m pipelines compile`."
"""How every compiled pipeline begins."""
COMMITTED = HERE / "neurofoundry.yaml"

PIPELINES = {"neurofoundry.yaml": pipeline.build, "smoke.yaml": smoke.build}
"""Compiled file to what builds the pipeline for some node pools."""


def write(
    folder: Path, *, pools: str = "plain", file: Path = node_pools.SHIPPED, spot: bool = False
) -> list[Path]:
    """Compile the pipelines for a profile of node pools; return the files."""
    for name in PIPELINES:
        guard_file(folder / name, begins=MADE.encode())
    folder.mkdir(parents=True, exist_ok=True)
    machines = node_pools.read(pools, file, spot=spot)
    for name, build in PIPELINES.items():
        compiler.Compiler().compile(build(machines), str(folder / name))
        # Again with sorted keys: kfp writes some in an order that differs from run to run.
        text = yaml.safe_dump_all(read(folder / name))
        (folder / name).write_text(f"{MADE}\n{text}")
    return [folder / name for name in PIPELINES]


def read(path: Path) -> list[dict[str, Any]]:
    """Read the documents of a compiled pipeline: the pipeline, and what only Kubernetes knows."""
    try:
        # By PyYAML, which has written it: a text such as 1e3 stands there without quotes.
        documents = list(yaml.safe_load_all(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{path}: the pipeline cannot be read ({why}).") from error
    if not documents or not isinstance(documents[0], dict) or "root" not in documents[0]:
        raise UsageError(f"{path}: not a compiled pipeline. Run `python -m pipelines compile`.")
    return documents


def parameters(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the pipeline asks for: name to type, and default where there is one."""
    declared: dict[str, dict[str, Any]] = documents[0]["root"]["inputDefinitions"]["parameters"]
    return declared


def tasks(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every task of the pipeline, those of loops and conditions included."""
    for component in (documents[0]["root"], *documents[0]["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).values()


def for_this_machine(documents: list[dict[str, Any]], image: str) -> list[dict[str, Any]]:
    """Return the pipeline with a fixed image, as local runners need it, and no wait to retry."""
    documents = copy.deepcopy(documents)
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = image
    for task in tasks(documents):
        if "retryPolicy" in task:
            task["retryPolicy"] |= {"backoffDuration": "0s", "backoffMaxDuration": "0s"}
    return documents
