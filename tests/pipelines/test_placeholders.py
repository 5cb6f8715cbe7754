"""Every placeholder of the compiled pipelines is one that a cluster resolves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from kfp import compiler, dsl
from kfp.dsl import HTML, Output

from neurofoundry.cli import main  # noqa: F401  the commands join the app
from neurofoundry.cli.options import app
from pipelines import compiled, placeholders

CONSTANTS: dict[str, Any] = {
    "STRING": "a text",
    "NUMBER_INTEGER": 4,
    "LIST": ["1/2", "2/2"],
    "STRUCT": {"cpu": "8", "gpus": 1},
    "TASK_FINAL_STATUS": {"state": "SUCCEEDED", "error": {}},
}


@pytest.fixture(params=sorted(compiled.PIPELINES))
def pipeline(request: pytest.FixtureRequest) -> Any:
    return compiled.read(compiled.HERE / request.param)[0]


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


def steps(pipeline: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, container and component of each step."""
    for name, component in pipeline["components"].items():
        if label := component.get("executorLabel"):
            container = pipeline["deploymentSpec"]["executors"][label]["container"]
            yield name.removeprefix("comp-"), container, component


def executor_input(component: Any) -> dict[str, Any]:
    """What a driver writes for a step, with artifacts in the storage of a stock installation."""
    inputs, outputs = (component.get(f"{side}Definitions", {}) for side in ("input", "output"))

    def artifacts(names: Any) -> dict[str, Any]:
        return {
            name: {"artifacts": [{"name": name, "uri": f"minio://mlpipeline/v2/{name}"}]}
            for name in names
        }

    return {
        "inputs": {
            "parameterValues": {
                name: CONSTANTS[kind["parameterType"]]
                for name, kind in inputs.get("parameters", {}).items()
            },
            "artifacts": artifacts(inputs.get("artifacts", ())),
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"}
                for name in outputs.get("parameters", ())
            },
            "artifacts": artifacts(outputs.get("artifacts", ())),
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
        },
    }


def test_a_step_holds_no_placeholder_that_a_cluster_leaves_as_it_is(pipeline: Any) -> None:
    for name, container, component in steps(pipeline):
        for word in [*container["command"], *container["args"]]:
            assert placeholders.unresolved(word) == "", name
        assert not any(map(placeholders.UNRESOLVED.search, container["command"])), name
        # An image and resources: one text parameter and nothing around it, or a constant.
        rest = {key: value for key, value in container.items() if key not in ("command", "args")}
        declared = component["inputDefinitions"]["parameters"]
        for text in texts(rest):
            if placeholders.UNRESOLVED.search(text):
                parameter = placeholders.IMAGE.fullmatch(text)
                assert parameter, (name, text)
                channel = parameter[1]
                if channel in declared:  # what the compiler hands in beside them has no type
                    assert declared[channel]["parameterType"] == "STRING", (name, text)


@pytest.mark.parametrize(
    "word",
    [
        '{"Concat": ["a=", "{{$.outputs.artifacts[\'a\'].path}}"]}',
        '{"IfPresent": {"InputName": "a", "Then": "b"}}',
        "{{$.outputs.output_file}}",
        "{{$.pipeline_job_name}}",
        "{{$.json_escape[1]}}",
        "{{$.inputs.artifacts['a']}}",
        "{{$.inputs.artifacts['a'].metadata['b']}}",
        "in a word={{$.outputs.parameters['a']}}",
    ],
)
def test_what_no_cluster_resolves_is_refused(word: str) -> None:
    assert placeholders.unresolved(word)
    with pytest.raises(ValueError, match="no cluster resolves"):
        placeholders.resolve(["python3", word], {})


def test_the_placeholder_that_broke_the_pipeline_on_a_cluster_is_refused(tmp_path: Path) -> None:
    @dsl.container_component
    def copying(page: Output[HTML]):
        words = ["--copy", dsl.ConcatPlaceholder(["qc.html=", page.path])]
        return dsl.ContainerSpec(image="none", command=["python3"], args=words)

    compiler.Compiler().compile(copying, str(tmp_path / "a.yaml"))
    ((_, container, component),) = steps(compiled.read(tmp_path / "a.yaml")[0])
    words = [*container["command"], *container["args"]]
    with pytest.raises(ValueError, match="no cluster resolves"):
        placeholders.resolve(words, executor_input(component))


def test_every_step_is_a_command_of_ours_once_a_cluster_has_resolved_it(pipeline: Any) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("neurofoundry", [], resilient_parsing=True)
    for name, container, component in steps(pipeline):
        told = executor_input(component)
        words = placeholders.resolve([*container["command"], *container["args"]], told)
        assert words[:3] == ["python3", "-m", "neurofoundry"], name
        command = group.get_command(context, words[3])  # type: ignore[attr-defined]
        inner = command.make_context(words[3], [], parent=context, resilient_parsing=True)
        options, rest, _ = command.make_parser(inner).parse_args(words[4:])
        assert rest == [], name  # an unknown option is an error of the parser
        assert json.loads(options["executor_input"]) == told, name
        assert not any(re.search(r"\{\{|Concat", word) for word in words[:-1]), name


def test_a_file_of_an_output_is_copied_to_where_the_launcher_looks_for_it() -> None:
    (qc,) = (
        placeholders.resolve(container["args"], executor_input(component))
        for name, container, component in steps(compiled.read(compiled.COMMITTED)[0])
        if name == "preprocess"
    )
    assert qc[qc.index("--copy") + 1] == "qc.html=/minio/mlpipeline/v2/qc"


def test_values_become_words_as_a_cluster_writes_them() -> None:
    values = {"whole": 4.0, "half": 0.5, "yes": True, "list": [1, "a"], "none": None}
    told = {"inputs": {"parameterValues": values}}
    words = [f"{{{{$.inputs.parameters['{name}']}}}}" for name in values]
    assert placeholders.resolve(["p", *words], told) == ["p", "4", "0.5", "true", '[1,"a"]', ""]
    with pytest.raises(ValueError, match="no input other"):
        placeholders.resolve(["p", "{{$.inputs.parameters['other']}}"], told)
    with pytest.raises(ValueError, match="not JSON compliant"):
        placeholders.resolve(["p", "{{$}}"], {"a": float("nan")})
    assert placeholders.local_path("gs://bucket/key") == "/gcs/bucket/key"
    with pytest.raises(ValueError, match="the launcher knows gs, minio, s3"):
        placeholders.local_path("ftp://host/key")
