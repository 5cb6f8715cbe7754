"""What the steps of a Kubeflow pipeline run beside the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from neurofoundry.cli.options import (
    PARAMS,
    ExecutorInput,
    Models,
    Out,
    Overrides,
    ParamsFile,
    Store,
    Volumes,
    app,
    hand_over,
    load_params,
    load_sections,
)
from neurofoundry.errors import UsageError
from neurofoundry.kubeflow import journal
from neurofoundry.runtime.store import keep_params, locate


@app.command()
def configure(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    preprocess_shards: Annotated[int, typer.Option(min=1, help="Shards of the scans.")] = 1,
    finetune_shards: Annotated[
        int,
        typer.Option(min=0, help="Shards of the models to make; 0: as many as can be, up to 16."),
    ] = 1,
    store: Annotated[Path | None, typer.Option(help="The volume that all steps share.")] = None,
    data_version: Annotated[str, typer.Option(help="The md5 in data.dvc; any, if empty.")] = "",
    repository: Annotated[str, typer.Option(help="The git repository with data.dvc.")] = "",
    revision: Annotated[str, typer.Option(help="A commit, tag or branch of it.")] = "",
    executor_input: ExecutorInput = "",
) -> None:
    """Check the parameters; print for each stage those that it reads, and what can run apart.

    So a stage whose own parameters are the same is the same step, whatever else has changed. With a
    store they lie there, named by their hash, and the raw data is brought there unless it is there.
    """
    from neurofoundry.kubeflow import executor
    from neurofoundry.kubeflow.fetch import fetch
    from neurofoundry.project import SECTIONS

    values = load_params(params, overrides)
    finetune_shards = values.finetune_shards(finetune_shards)
    outputs: dict[str, Any] = {}
    for stage, sections in SECTIONS.items():
        text = values.read_by(sections).model_dump_json(by_alias=True)
        outputs[stage] = str(keep_params(store, stage, text)) if store else text
    if not values.pretrain.methods:
        raise UsageError("pretrain.methods: a pipeline on a cluster pretrains; name a method.")
    outputs["methods"] = list(values.pretrain.methods)
    outputs["shards_of_preprocess"] = _shards(preprocess_shards)
    outputs["shards_of_finetune"] = _shards(finetune_shards)
    if store:
        data = fetch(store, version=data_version, repository=repository, revision=revision)
        outputs["data"] = str(data)
    if executor_input:
        executor.publish(executor_input, parameters=outputs)
    else:
        print(json.dumps(outputs, indent=2))


def _shards(count: int) -> list[str]:
    return [f"{number}/{count}" for number in range(1, count + 1)]


@app.command()
def promote(
    models: Models,
    evaluation: Annotated[
        Path, typer.Option("--evaluation", callback=locate, help="The output of evaluate.")
    ],
    out: Out,
    store: Store = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Put the model that the promotion rule has accepted into a folder, with its card."""
    from neurofoundry.contracts.evaluation import read_decision
    from neurofoundry.kubeflow import executor, promote
    from neurofoundry.runtime import stage

    if executor_input:
        decision = read_decision(evaluation)
        journal.add(evaluation=str(evaluation), reason=decision.reason)
        if not decision.promoted:
            # A step of a pipeline, which asks for every run: its end is no failure.
            executor.tell(f"No model is promoted. {decision.reason}\n", out, executor_input)
            return
    folder = stage.run(
        "promote",
        lambda work: promote.promote(work, models=models, evaluation=evaluation),
        to=stage.Destination(out, store),
        params={},
        inputs={"finetune": models, "evaluate": evaluation},
    )
    journal.add(model=str(folder))
    hand_over(folder, None, executor_input)


@app.command(hidden=True)
def check(
    store: Annotated[Path, typer.Option(help="The volume that all steps share.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that must be seen.")] = 0,
    executor_input: ExecutorInput = "",
) -> None:
    """Check whether a step finds what it needs; exit 2 says what is missing."""
    from neurofoundry.kubeflow import executor

    findings = executor.check(store, gpus=gpus)
    text = "\n".join(f"- {finding}" for finding in findings) + "\n"
    executor.tell(text, out, executor_input)


@app.command(hidden=True)
def summarize(
    store: Annotated[Path, typer.Option(help="Where the outputs are.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    executor_input: ExecutorInput = "",
) -> None:
    """Say what came out of a pipeline run, or which step failed and how to go on."""
    from neurofoundry.kubeflow import executor, summary

    notes = journal.read(store, journal.run_name())
    executor.tell(summary.describe(notes), out, executor_input)


@app.command(hidden=True)
def pretrain_on_nodes(
    volumes: Volumes,
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")],
    store: Annotated[Path, typer.Option("--store", help="On the volume that all nodes mount.")],
    params: Annotated[str, typer.Option("--params", help="What `configure` gave for pretrain.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train together.")],
    processes: Annotated[int, typer.Option(min=0, help="Processes on each node: its GPUs.")],
    image: Annotated[str, typer.Option(help="The image of the containers.")],
    claim: Annotated[str, typer.Option(help="The persistent volume claim of the store.")],
    mount: Annotated[str, typer.Option(help="Where it is mounted.")],
    pool: Annotated[str, typer.Option(help="A pool of pipelines/node_pools.yaml, as JSON.")],
    selector: Annotated[str, typer.Option(help="Labels of the nodes, as JSON.")],
    tolerations: Annotated[str, typer.Option(help="Taints that are accepted, as JSON.")],
    secret: Annotated[str, typer.Option(help="The secret with the key of W&B.")],
    executor_input: ExecutorInput = "",
) -> None:
    """Train an encoder on several machines of a cluster; `pretrain` then finds it in the store.

    For one node there is nothing to do: `pretrain` trains it, and gets the GPUs.
    """
    from neurofoundry.kubeflow import executor, trainjob
    from neurofoundry.kubeflow.api import Api
    from neurofoundry.kubeflow.schemas import Machines
    from neurofoundry.params import validate
    from neurofoundry.project import PretrainSections

    load_sections(PretrainSections, params, None)
    values = {
        "pool": _json("--pool", pool),
        "selector": _json("--selector", selector),
        "tolerations": _json("--tolerations", tolerations),
        "nodes": nodes,
        "processes": processes,
        "secret": secret,
        "image": image,
        "claim": claim,
        "mount": mount,
    }
    machines = validate(values, Machines, origin="pretrain-on-nodes")
    if nodes > 1:
        api = Api.of_this_pod()
        job = trainjob.train_job(
            machines,
            method=method,
            params=params,
            volumes=volumes,
            store=store,
            run=journal.run_name(),
            owner=trainjob.owner_of_this_run(api),
        )
        trainjob.train(api, job)
    if executor_input:
        left = processes if nodes == 1 else 0
        executor.publish(executor_input, parameters={"gpus_left": str(left)})


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected JSON ({error}).") from error
