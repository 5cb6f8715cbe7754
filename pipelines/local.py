"""kfp's local runners, patched where they differ from a cluster.

They run the compiled pipeline itself, in containers or as processes of this machine. What is
patched here was seen in kfp 2.17.0 and is private to it, so pyproject.toml pins kfp's minor
version, and tests/pipelines/test_local.py shows each fault without its patch.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from docker.client import DockerClient
from docker.errors import DockerException, ImageNotFound
from docker.types import Mount
from kfp import components, local
from kfp.compiler import pipeline_spec_builder
from kfp.local import docker_task_handler, io, placeholder_utils, subprocess_task_handler
from kfp.local.orchestrator import task_spec_utils

from neurofoundry.errors import RunFailedError, UsageError
from neurofoundry.runtime.guard import guard_output
from pipelines import compiled, placeholders
from pipelines.node_pools import MOUNT

VERSION = "local"
"""Of the data, where a folder of this machine stands for it."""

HANDED_ON = ("NEUROFOUNDRY_RUN", "OMP_NUM_THREADS")
"""Environment variables that containers get, too."""

OURS = ("pipeline", f"data/{VERSION}")
"""What the store of an earlier run holds."""


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Make local runners read a pipeline as a cluster does."""
    handler = subprocess_task_handler.SubprocessTaskHandler
    with (
        mock.patch.object(docker_task_handler, "run_docker_container", run_container),
        mock.patch.object(handler, "validate_not_container_component"),
        mock.patch.object(io.IOStore, "get_parent_input", get_parent_input),
        mock.patch.object(placeholder_utils, "replace_placeholders", replace_placeholders),
        mock.patch.object(
            task_spec_utils, "create_parameter_loop_iteration_task_spec", iteration_of
        ),
    ):
        yield


def run_container(client: Any, image: str, command: list[str], volumes: Any, **options: Any) -> int:
    """Run a container to its end; return its exit code.

    kfp lets the engine remove the container, and when that happens before it asks for the exit
    code, a failed container counts as a success (kubeflow/pipelines#13332).
    """
    container = client.containers.run(
        image=docker_task_handler.add_latest_tag_if_not_present(image),
        command=command,
        detach=True,
        volumes=volumes,
        **options,
    )
    try:
        for line in container.logs(stream=True, follow=True):
            sys.stdout.write(line.decode(errors="replace"))
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def replace_placeholders(
    full_command: Sequence[str], executor_input_dict: Mapping[str, Any], **_: Any
) -> list[str]:
    """Replace the placeholders that a cluster knows; kfp replaces more."""
    return placeholders.resolve(full_command, executor_input_dict)


def get_parent_input(store: io.IOStore, key: str) -> Any:
    """Do as IOStore does, and find for ``pipelinechannel--TASK-OUTPUT`` the output of that task.

    kfp guesses where the name of the task ends and finds outputs only that are called 'Output':
    loops over other outputs fail, and conditions on them count as false.
    """
    here: io.IOStore | None = store
    while here is not None:
        if key in here._parent_input_data:
            return here._parent_input_data[key]
        for task, outputs in here._task_output_data.items():
            for name, value in outputs.items():
                if key.removeprefix("pipelinechannel--") == f"{task}-{name}":
                    return value
        here = here._parent
    raise ValueError(f"Parent pipeline input argument '{key}' not found.")


def iteration_of(loop: Any, item: Any, _: str) -> Any:
    """Return the task of one iteration of a loop.

    kfp replaces every input that comes from another task by the loop's item.
    """
    task = type(loop)()
    task.CopyFrom(loop)
    value = pipeline_spec_builder.to_protobuf_value(item)
    name = loop.parameter_iterator.item_input
    task.inputs.parameters[name].runtime_value.constant.CopyFrom(value)
    task.ClearField("parameter_iterator")
    return task


class Runner(StrEnum):
    """What a step runs in."""

    docker = "docker"
    subprocess = "subprocess"


def run(
    documents: list[dict[str, Any]],
    arguments: dict[str, Any],
    *,
    runner: Runner,
    data: Path | None,
    store: Path,
    image: str,
) -> None:
    """Run the compiled pipeline on this machine, without a network.

    ``store`` is what the volume is on a cluster; ``data``, if given, is seen there as version
    VERSION, and nothing is written to it. Raises UsageError and RunFailedError.
    """
    if data and not data.is_dir():
        raise UsageError(f"--data {data}: there is no such folder.")
    guard_output(store, makes="", inputs=[data] if data else [], option="--store", marks=OURS)
    documents = compiled.for_this_machine(documents, image)
    component = components.load_component_from_text(yaml.safe_dump_all(documents))
    place = _place_of_data(store)
    with patched(), _named():
        if runner is Runner.docker:
            _check_engine(image)
            engine = _docker_runner(data, store)
        else:
            # Processes see this machine's folders: the store is where it is.
            if data:
                place.symlink_to(data.resolve())
            arguments = {**arguments, "store": str(store.resolve())}
            engine = local.SubprocessRunner(use_venv=False)
        local.init(runner=engine, pipeline_root=str((store / "pipeline").resolve()))
        try:
            component(**arguments)
        except RuntimeError as error:
            raise RunFailedError(f"{_plain(error)} The log above says why.") from error


def _named() -> contextlib.AbstractContextManager[Any]:
    """Give the run a name, under which its steps leave their notes."""
    name = f"local-{datetime.now():%Y%m%d-%H%M%S}"
    return mock.patch.dict(os.environ, {"NEUROFOUNDRY_RUN": name})


def _place_of_data(store: Path) -> Path:
    """Return where the data of this run are seen, cleared of what an earlier run has left."""
    place = store / "data" / VERSION
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        try:
            place.rmdir()  # where containers had them mounted
        except OSError as error:
            raise UsageError(
                f"--store: {place} holds something else. Give a new folder."
            ) from error
    return place


def _plain(error: Exception) -> str:
    """Return a message without the colours of kfp."""
    return re.sub(r"\x1b\[\d+m", "", str(error))


def _check_engine(image: str) -> None:
    """See whether there is an engine that has the image; kfp would try to pull it."""
    try:
        with contextlib.closing(DockerClient.from_env()) as client:
            client.images.get(image)
    except ImageNotFound as error:
        raise UsageError(f"--image {image}: there is no such image here: `make image`.") from error
    except DockerException as error:
        raise UsageError(
            f"No container engine answers ({error}). Start one, or run in processes: "
            "--runner subprocess."
        ) from error


def _docker_runner(data: Path | None, store: Path) -> local.DockerRunner:
    mounts = [Mount(MOUNT, str(store.resolve()), type="bind")]
    if data:
        (store / "data" / VERSION).mkdir()
        place = f"{MOUNT}/data/{VERSION}"
        mounts.append(Mount(place, str(data.resolve()), type="bind", read_only=True))
    return local.DockerRunner(
        # The files belong to who runs it.
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=mounts,
        network_disabled=True,
        read_only=True,
        tmpfs={"/tmp": "exec"},
        shm_size="1g",
        environment={name: os.environ[name] for name in HANDED_ON if name in os.environ},
    )
