"""Faults of kfp's local runners, each shown with and without its mend."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from kfp import dsl, local
from kfp.local import io, subprocess_task_handler
from kfp.local.orchestrator import task_spec_utils

from pipelines.local import get_parent_input, iteration_of

TELL = """
import json, pathlib, sys
told, path, *values = sys.argv[1:]
outputs = json.loads(told)["outputs"]
with open(path, "a") as file:
    file.write(json.dumps(values) + chr(10))
document = {"artifacts": {}, "parameterValues": {"items": ["a", "b"], "name": "".join(values)}}
target = pathlib.Path(outputs["outputFile"])
target.parent.mkdir(parents=True, exist_ok=True)
declared = outputs.get("parameters", {})
for name in set(document["parameterValues"]) - set(declared):
    del document["parameterValues"][name]
target.write_text(json.dumps(document))
"""


def say(*values: object) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="none", command=["python3", "-c", TELL], args=["{{$}}", *values])


@dsl.container_component
def start(log: str, items: dsl.OutputPath(list), name: dsl.OutputPath(str)):
    return say(log, "start")


@dsl.container_component
def each(log: str, item: str, other: str, name: dsl.OutputPath(str)):
    return say(log, item, other)


@dsl.container_component
def last(log: str):
    return say(log, "last")


@dsl.pipeline
def looping(log: str):
    first = start(log=log)
    with dsl.ParallelFor(first.outputs["items"]) as item:
        each(log=log, item=item, other=first.outputs["name"])


@dsl.pipeline
def branching(log: str):
    first = start(log=log)
    with dsl.If(first.outputs["name"] == "start"):
        last(log=log)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[str]:
    handler = subprocess_task_handler.SubprocessTaskHandler
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    with mock.patch.object(handler, "validate_not_container_component"):
        yield str(tmp_path / "log")


names = mock.patch.object(io.IOStore, "get_parent_input", get_parent_input)
turns = mock.patch.object(
    task_spec_utils, "create_parameter_loop_iteration_task_spec", iteration_of
)


def test_a_loop_over_an_output_with_a_name_of_its_own(log: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"not found|FAILURE"), turns:
        looping(log=log)
    with names, turns:
        looping(log=log)
    said = Path(log).read_text().splitlines()[-2:]
    assert sorted(said) == ['["a", "start"]', '["b", "start"]']


def test_what_comes_from_another_step_stays_what_it_is_in_a_loop(log: str) -> None:
    with names:
        looping(log=log)
    assert '["a", "a"]' in Path(log).read_text()
    with names, turns:
        looping(log=log)
    assert '["a", "start"]' in Path(log).read_text()


def test_a_condition_on_an_output_with_a_name_of_its_own(log: str) -> None:
    branching(log=log)
    assert "last" not in Path(log).read_text()
    with names:
        branching(log=log)
    assert "last" in Path(log).read_text()
