"""`python -m pipelines`: compile the pipeline, run it here, submit it to a cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from neurofoundry.errors import UsageError, run_app
from neurofoundry.params import load_text, read_text
from neurofoundry.project import Params as Project
from neurofoundry.runtime import log
from neurofoundry.runtime.log import LOGGER
from pipelines import cluster, compiled, local, node_pools, size
from pipelines.arguments import check, check_cron

app = typer.Typer(
    help="The five stages as one Kubeflow pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Package = Annotated[Path, typer.Option(help="The compiled pipeline.")]
Params = Annotated[Path, typer.Option("--params", help="params.yaml")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of the pipeline, such as gpus=2."
    ),
]
Image = Annotated[str, typer.Option(help="By digest: REGISTRY/neurofoundry@sha256:…")]
DataVersion = Annotated[
    str,
    typer.Option(help="Folder in STORE/data; by default that of data.dvc, or of data_repository."),
]
Host = Annotated[
    str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="The address of Kubeflow Pipelines.")
]
Namespace = Annotated[
    str | None, typer.Option(help="The namespace of the run, where Kubeflow has users.")
]
Token = Annotated[
    str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="A bearer token.", show_envvar=True)
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="KF_PIPELINES_SA_TOKEN_PATH",
        help="The token of a service account, read again with every call.",
    ),
]
Cookie = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_COOKIE", help="A cookie, such as authservice_session=…"),
]
Cache = Annotated[bool, typer.Option(help="Reuse steps whose inputs are the same.")]
Experiment = Annotated[str, typer.Option(help="The group of runs in Kubeflow.")]
ServiceAccount = Annotated[str | None, typer.Option(help="The account that the steps run as.")]


@app.command("compile")
def compile_pipeline(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = compiled.HERE,
    pools: Annotated[str, typer.Option(help="A profile: plain, gke, eks.")] = "plain",
    pools_file: Annotated[Path, typer.Option(help="Your own node pools.")] = node_pools.SHIPPED,
    spot: Annotated[bool, typer.Option(help="Use nodes that may be taken away.")] = False,
) -> None:
    """Write the pipeline and its smoke test as YAML, for the node pools of a cluster."""
    for path in compiled.write(out, pools=pools, file=pools_file, spot=spot):
        print(f"{path}: {path.stat().st_size / 1024:.0f} kB")


@app.command()
def run_local(
    store: Annotated[Path, typer.Option(help="The folder for outputs: on a cluster, the volume.")],
    data: Annotated[
        Path | None, typer.Option(help="The raw data, if not --param data_repository=…")
    ] = None,
    params: Params = Path("params.yaml"),
    package: Package = compiled.COMMITTED,
    runner: Annotated[
        local.Runner, typer.Option(help="Run steps in containers or in processes.")
    ] = (local.Runner.docker),
    image: Annotated[str, typer.Option(help="The image that `make image` made.")] = (
        "neurofoundry:cpu"
    ),
    settings: Settings = None,
) -> None:
    """Run the compiled pipeline on this machine, in containers and without a network."""
    documents = compiled.read(package)
    asked = compiled.parameters(documents)
    given = _parse(settings) | {"image": image, "store": node_pools.MOUNT}
    if "params" in asked:
        given.setdefault("params", read_text(params))
    if "data_version" in asked:
        if (data is None) == ("data_repository" not in given):
            raise UsageError("Give one of --data and --param data_repository=…")
        if data:
            given["data_version"] = local.VERSION
        elif runner is local.Runner.docker:
            raise UsageError(
                "--param data_repository: containers run without a network. Fetch the data with "
                "--runner subprocess, or give --data."
            )
    arguments = check(documents, given)
    local.run(documents, arguments, runner=runner, data=data, store=store, image=image)
    print(f"Outputs: {store}")


@app.command()
def submit(
    host: Host,
    image: Image,
    namespace: Namespace = None,
    params: Params = Path("params.yaml"),
    data_version: DataVersion = "",
    package: Package = compiled.COMMITTED,
    settings: Settings = None,
    experiment: Experiment = "neurofoundry",
    name: Annotated[
        str, typer.Option(help="The name of the run; by default with date and time.")
    ] = "",
    service_account: ServiceAccount = None,
    cache: Cache = True,
    wait: Annotated[bool, typer.Option(help="Follow the run to its end.")] = False,
    again: Annotated[
        int,
        typer.Option(
            min=0, help="With --wait: submit a failed run again so often, unless it cannot pass."
        ),
    ] = 0,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
) -> None:
    """Start a run on a cluster. Everything is checked against the pipeline before it is sent."""
    documents, arguments = _checked(package, image, params, data_version, settings)
    client = cluster.Cluster(host, namespace, token=token, token_file=token_file, cookie=cookie)
    name = name or f"neurofoundry {datetime.now():%Y-%m-%d %H:%M:%S}"

    def start(number: int) -> str:
        run = client.submit(
            documents,
            arguments,
            experiment=experiment,
            name=name if number == 0 else f"{name} ({number + 1})",
            service_account=service_account,
            cache=cache,
        )
        print(client.url(run), flush=True)
        return run

    if not wait:
        if again:
            raise UsageError("--again: give --wait as well, which sees whether the run fails.")
        start(0)
        return
    _follow(client, start, documents, arguments, again)


@app.command()
def upload(
    host: Host,
    namespace: Namespace = None,
    version: Annotated[str, typer.Option(help="By default the git commit.")] = "",
    package: Package = compiled.COMMITTED,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
) -> None:
    """Upload the pipeline, or a new version of it, for people who start runs in the browser."""
    client = cluster.Cluster(host, namespace, token=token, token_file=token_file, cookie=cookie)
    version = version or cluster.git_commit()
    name = client.upload(package, version)
    print(f"Uploaded {name}, version {version}.")


@app.command()
def schedule(
    host: Host,
    image: Image,
    cron: Annotated[str, typer.Option(help="Six fields, seconds first: '0 0 2 * * *'.")],
    namespace: Namespace = None,
    params: Params = Path("params.yaml"),
    data_version: DataVersion = "",
    package: Package = compiled.COMMITTED,
    settings: Settings = None,
    experiment: Experiment = "neurofoundry",
    name: Annotated[str, typer.Option(help="The name of the schedule.")] = "neurofoundry",
    service_account: ServiceAccount = None,
    cache: Cache = True,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
) -> None:
    """Start runs on a schedule, one at a time."""
    documents, arguments = _checked(package, image, params, data_version, settings)
    cron = check_cron(cron)
    client = cluster.Cluster(host, namespace, token=token, token_file=token_file, cookie=cookie)
    client.schedule(
        documents,
        arguments,
        experiment=experiment,
        name=name,
        cron=cron,
        service_account=service_account,
        cache=cache,
    )
    print(f"Scheduled '{name}': {cron}")


def _follow(
    client: cluster.Cluster,
    start: Callable[[int], str],
    documents: list[dict[str, Any]],
    arguments: dict[str, Any],
    again: int,
) -> None:
    """Start a run and follow it to its end, ``again`` times more while its failure may pass."""
    before: cluster.StepsFailedError | None = None
    text = arguments.get("params")  # the smoke test has none
    methods = load_text(text, Project, origin="params").pretrain.methods if text else ()
    for number in range(again + 1):
        try:
            client.wait(start(number), documents, arguments, methods=methods)
            return
        except cluster.StepsFailedError as error:
            if number == again or not error.may_pass(before):
                raise
            LOGGER.warning("%s Submitting it again, %d of %d.", error, number + 1, again)
            before = error


def _checked(
    package: Path, image: str, params: Path, data_version: str, settings: list[str] | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the pipeline and the arguments of a run on a cluster, checked against each other."""
    documents = compiled.read(package)
    given = {"image": cluster.by_digest(image), **_parse(settings)}
    asked = compiled.parameters(documents)
    if "params" in asked:
        given.setdefault("params", read_text(params))
    if "data_version" in asked and (data_version or "data_repository" not in given):
        given.setdefault("data_version", data_version or cluster.data_version(Path("data.dvc")))
    arguments = check(documents, given)
    if "params" in asked:
        _check_plan(arguments, load_text(given["params"], Project, origin=str(params)), documents)
    return documents, arguments


def _check_plan(
    arguments: dict[str, Any], params: Project, documents: list[dict[str, Any]]
) -> None:
    """See that parameters and machines fit each other and a cluster. Raises UsageError.

    Where it is left to us into how many shards the models are divided, it is set here.
    """
    declared = compiled.parameters(documents)
    shards = {
        name: int(arguments.get(name, declared[name]["defaultValue"]))
        for name in ("preprocess_shards", "finetune_shards")
    }
    ranks = int(arguments.get("nodes", 1)) * max(
        1, int(arguments.get("gpus", declared["gpus"]["defaultValue"]))
    )
    if params.pretrain.batch_size % ranks:
        raise UsageError(
            f"pretrain.batch_size ({params.pretrain.batch_size}) is no multiple of the {ranks} "
            "GPUs (nodes × gpus) that pretrain together. Change one of them."
        )
    methods, scans = len(params.pretrain.methods), shards["preprocess_shards"]
    models = params.finetune_shards(shards["finetune_shards"])
    if not shards["finetune_shards"]:
        models = min(models, size.most_finetune_shards(preprocess_shards=scans, methods=methods))
        arguments["finetune_shards"] = models
    size.check(preprocess_shards=scans, finetune_shards=models, methods=methods)


def _parse(settings: list[str] | None) -> dict[str, str]:
    values = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--param {setting}: expected NAME=VALUE, such as gpus=2.")
        values[name] = value
    return values


def main() -> None:
    """Run the command line."""
    log.configure()
    run_app(app)


if __name__ == "__main__":
    main()
