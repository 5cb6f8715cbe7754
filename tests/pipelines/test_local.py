"""Faults of kfp's local runners, each shown with and without its patch."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from kfp import compiler, dsl, local
from kfp.local import io, subprocess_task_handler
from kfp.local.orchestrator import task_spec_utils

from neurofoundry.errors import UsageError
from pipelines import compiled
from pipelines.local import Runner, get_parent_input, iteration_of, run

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


@dsl.pipeline
def telling(log: str, store: str = ""):
    start(log=log)


def start_run(folder: Path, runner: Runner, *, data: Path | None = None) -> None:
    package = folder / "telling.yaml"
    compiler.Compiler().compile(telling, str(package))
    arguments = {"log": str(folder / "log")}
    documents = compiled.read(package)
    run(documents, arguments, runner=runner, data=data, store=folder / "store", image="none")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[str]:
    handler = subprocess_task_handler.SubprocessTaskHandler
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    with mock.patch.object(handler, "validate_not_container_component"):
        yield str(tmp_path / "log")


def test_without_a_container_engine_the_other_runner_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"No container engine answers .*--runner subprocess"):
        start_run(tmp_path, Runner.docker)


def test_data_of_one_run_are_not_those_of_the_run_before(tmp_path: Path) -> None:
    """The store is one for all runs; what it shows as data is what this one was given."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        start_run(tmp_path, Runner.subprocess, data=tmp_path / name)
        assert (tmp_path / "store/data/local/file").read_text() == name
    (tmp_path / "store/data/local").unlink()
    (tmp_path / "store/data/local").mkdir()  # where containers had them mounted
    start_run(tmp_path, Runner.subprocess, data=tmp_path / "first")
    assert (tmp_path / "store/data/local/file").read_text() == "first"
    with pytest.raises(UsageError, match="no such folder"):
        start_run(tmp_path, Runner.subprocess, data=tmp_path / "third")


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
