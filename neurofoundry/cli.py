"""The command line: one command a stage, and the only place that knows all of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import neurofoundry
from neurofoundry.errors import NeurofoundryError, UsageError, complain
from neurofoundry.store import locate, locate_all

if TYPE_CHECKING:
    from neurofoundry.project import Params

# Workers of a stage import this module again: what is heavy is imported where it is used.

app = typer.Typer(
    help="From raw 3D brain MRI to a pretrained, fine-tuned and honestly evaluated model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

plan = typer.Typer(no_args_is_help=True, help="Say what a stage will cost on this machine.")
app.add_typer(plan, name="plan")

ParamsFile = Annotated[
    str,
    typer.Option(
        "--params",
        help="The parameters: a file, its text, or what `configure` gave for this stage.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter: pretrain.epochs=3"),
]
Out = Annotated[Path, typer.Option("--out", help="The folder to write; it appears when whole.")]
Data = Annotated[Path, typer.Option("--data", help="The raw data: BIDS, DICOM or a table.")]
Cohort = Annotated[Path, typer.Option("--cohort", callback=locate, help="The output of ingest.")]
Volumes = Annotated[
    Path, typer.Option("--volumes", callback=locate, help="The output of preprocess.")
]
Encoder = Annotated[
    list[Path],
    typer.Option(
        "--encoder",
        callback=locate_all,
        help="An output of pretrain, or a folder of them. Repeatable.",
    ),
]
Models = Annotated[Path, typer.Option("--models", callback=locate, help="The output of finetune.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one a core.")]

# What a step of an orchestrator needs beside (docs/kubeflow.md).
CLUSTER = "On a cluster"
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        rich_help_panel=CLUSTER,
        help="Keep the output here, beside those of other runs; --out becomes its manifest.",
    ),
]
Copies = Annotated[
    list[str] | None,
    typer.Option(
        "--copy",
        metavar="FILE=PATH",
        rich_help_panel=CLUSTER,
        help="Copy a file of the finished output. Repeatable.",
    ),
]
ExecutorInput = Annotated[
    str, typer.Option("--executor-input", rich_help_panel=CLUSTER, help="Of Kubeflow Pipelines.")
]
PartOf = Annotated[
    str,
    typer.Option(
        "--part",
        metavar="NUMBER/OF",
        rich_help_panel=CLUSTER,
        help="Make one of several equal parts, such as 2/8.",
    ),
]
Reuse = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse",
        callback=locate_all,
        rich_help_panel=CLUSTER,
        help="Take from these outputs what they have made, such as parts. Repeatable.",
    ),
]


@app.command()
def ingest(
    data: Data,
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Look at every file of the raw data and make the table of usable scans and their splits."""
    from neurofoundry import stage
    from neurofoundry.ingest import run

    values = _load(params, overrides, stage="ingest")
    folder = stage.run(
        "ingest",
        lambda work: run.ingest(
            work, data=data, params=values.ingest, tasks=values.tasks, seed=values.seed
        ),
        out=out,
        params=_read(values, "ingest"),
        inputs={},
        track=values.tracking,
        store=store,
    )
    _hand_over(folder, copies, executor_input)


@app.command()
def preprocess(
    data: Data,
    cohort: Cohort,
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    workers: Workers = 0,
    part: PartOf = "1/1",
    reuse: Reuse = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Mask the brain, register it to MNI152, normalize it, and check the result."""
    from neurofoundry import stage
    from neurofoundry.preprocess import run, template
    from neurofoundry.preprocess.verdict import decisions

    values = _load(params, overrides, stage="preprocess")
    folder = stage.run(
        "preprocess",
        lambda work: run.preprocess(
            work, data=data, cohort=cohort, params=values.preprocess, workers=workers or cores()
        ),
        out=out,
        params=_read(values, "preprocess")
        | decisions(values.preprocess, data)
        | template.fingerprint(template.find(values.preprocess, data)),
        inputs={"ingest": cohort},
        track=values.tracking,
        resume_items=True,
        part=stage.Part.parse(part),
        reuse=reuse or (),
        store=store,
    )
    _hand_over(folder, copies, executor_input)


@plan.command("preprocess")
def plan_preprocess(
    data: Data,
    cohort: Cohort,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    workers: Workers = 0,
    scans: Annotated[int, typer.Option(min=1, help="How many to try.")] = 5,
) -> None:
    """Preprocess a few scans, and say what hours and disk all of them will take."""
    from neurofoundry.preprocess import plan

    values = _load(params, overrides, stage="preprocess")
    found = plan.plan(data=data, cohort=cohort, params=values.preprocess, tries=scans)
    print(found.describe(workers or cores()))


@app.command()
def pretrain(
    volumes: Volumes,
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")],
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(min=0, help="That train together; 0: one a GPU of this machine.")
    ] = 0,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Train an encoder on unlabelled volumes."""
    from neurofoundry import stage
    from neurofoundry.pretrain import ranks, run

    values = _load(params, overrides, stage="pretrain")
    ranks.spread(processes)
    folder = stage.run(
        "pretrain",
        lambda work: run.pretrain(
            work, volumes=volumes, method=method, params=values.pretrain, seed=values.seed
        ),
        out=out,
        params={
            "pretrain": values.pretrain.read_by(method),
            "seed": values.seed,
            "method": method,
        },
        inputs={"preprocess": volumes},
        track=values.tracking,
        resume_items=True,
        store=store,
        leads=ranks.leads(),
    )
    if ranks.leads():
        _hand_over(folder, copies, executor_input)


@app.command(hidden=True)
def pretrain_on_nodes(
    volumes: Volumes,
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")],
    store: Annotated[Path, typer.Option("--store", help="On the volume that all nodes mount.")],
    params: ParamsFile,
    nodes: Annotated[int, typer.Option(help="Machines that train together.")],
    processes: Annotated[int, typer.Option(help="Of each node: its GPUs.")],
    image: Annotated[str, typer.Option(help="Of the containers.")],
    claim: Annotated[str, typer.Option(help="The persistent volume claim of the store.")],
    mount: Annotated[str, typer.Option(help="Where it is mounted.")],
    pool: Annotated[str, typer.Option(help="Of pipelines/node_pools.yaml, as JSON.")],
    selector: Annotated[str, typer.Option(help="Labels of the nodes, as JSON.")],
    tolerations: Annotated[str, typer.Option(help="Taints that are accepted, as JSON.")],
    secret: Annotated[str, typer.Option(help="With the key of W&B.")],
    executor_input: ExecutorInput = "",
) -> None:
    """Train an encoder on several machines of a cluster; `pretrain` then finds it in the store."""
    from neurofoundry import executor
    from neurofoundry.params import validate
    from neurofoundry.pretrain import nodes as cluster

    _load(params, None, stage="pretrain")
    found = {
        "pool": _json(pool),
        "selector": _json(selector),
        "tolerations": _json(tolerations),
        "nodes": nodes,
        "processes": processes,
        "secret": secret,
        "image": image,
        "claim": claim,
        "mount": mount,
    }
    machines = validate(found, cluster.Machines, origin="pretrain-on-nodes")
    api = cluster.Api.of_this_pod()
    job = cluster.train_job(
        machines,
        method=method,
        params=params,
        volumes=volumes,
        store=store,
        run=os.environ.get("NEUROFOUNDRY_RUN", ""),
        owner=cluster.owner_of_this_run(api),
    )
    cluster.train(api, job)
    if executor_input:
        executor.publish(executor_input)


@plan.command("pretrain")
def plan_pretrain(
    scans: Annotated[int, typer.Option("--scans", min=1, help="Of the cohort.")],
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")] = "",
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
) -> None:
    """Measure a few steps here; print hours, memory and the largest batch for so many scans."""
    from neurofoundry.pretrain.plan import describe_cost

    values = _load(params, overrides)
    methods = values.pretrain.methods
    if method and method not in methods:
        raise UsageError(f"--method {method}: not one of pretrain.methods ({', '.join(methods)}).")
    for name in [method] if method else methods:
        print(describe_cost(name, values.pretrain, values.preprocess.grid, scans=scans))


@app.command()
def finetune(
    volumes: Volumes,
    encoder: Encoder,
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    part: PartOf = "1/1",
    reuse: Reuse = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Fine-tune and probe on the declared tasks, from every declared initialization."""
    from neurofoundry import stage
    from neurofoundry.finetune import run

    values = _load(params, overrides, stage="finetune")
    folder = stage.run(
        "finetune",
        lambda work: run.finetune(
            work,
            volumes=volumes,
            encoder=encoder,
            params=values.finetune,
            tasks=values.tasks,
            seed=values.seed,
        ),
        out=out,
        params=_read(values, "finetune"),
        inputs={"preprocess": volumes, **_encoders(encoder)},
        track=values.tracking,
        resume_items=True,
        part=stage.Part.parse(part),
        reuse=reuse or (),
        store=store,
    )
    _hand_over(folder, copies, executor_input)


@app.command()
def evaluate(
    cohort: Cohort,
    volumes: Volumes,
    encoder: Encoder,
    models: Models,
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Measure the models in and out of distribution, with intervals, and write the report."""
    from neurofoundry import stage
    from neurofoundry.evaluate import run

    values = _load(params, overrides, stage="evaluate")
    folder = stage.run(
        "evaluate",
        lambda work: run.evaluate(
            work,
            cohort=cohort,
            volumes=volumes,
            encoder=encoder,
            models=models,
            params=values.evaluate,
            tasks=values.tasks,
            seed=values.seed,
        ),
        out=out,
        params=_read(values, "evaluate"),
        inputs={
            "ingest": cohort,
            "preprocess": volumes,
            **_encoders(encoder),
            "finetune": models,
        },
        track=values.tracking,
        store=store,
    )
    _hand_over(folder, copies, executor_input)


@app.command()
def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            callback=locate_all,
            help="Outputs of evaluate; the others are compared with the first.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder to write tables and a page into, as a whole."),
    ] = None,
) -> None:
    """Evaluations of the same scans side by side: what differs, with paired intervals."""
    from rich.console import Console

    from neurofoundry.evaluate import compare

    found = compare.compare(evaluations)
    compare.show(found, Console())
    if out:
        compare.write(found, out)


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or an encoder's folder.")],
    name: Annotated[str, typer.Option("--as", help="What finetune.initializations call it.")],
    out: Out,
    kind: Annotated[
        str, typer.Option(help="3d-neuro-simclr, medicalnet, monai or neurofoundry; else guessed.")
    ] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, where they do not say.")] = "",
    spacing: Annotated[
        float | None, typer.Option(help="mm of the grid to bind weights to that have none.")
    ] = None,
    stem_stride: Annotated[
        int | None, typer.Option(help="Of the first convolution, for kind monai; else 1.")
    ] = None,
) -> None:
    """Make an encoder of a published checkpoint: strictly, and without running what is in it."""
    from neurofoundry import stage
    from neurofoundry.params import validate
    from neurofoundry.tracking import TrackingParams
    from neurofoundry.weights.params import ImportParams
    from neurofoundry.weights.published import bring

    given: dict[str, Any] = {"name": name, "kind": kind or None, "licence": licence}
    given |= {"spacing": spacing, "stem_stride": stem_stride}
    params = validate(given, ImportParams, origin="import")
    stage.run(
        "pretrain",  # its output takes the place of one
        lambda work: bring(work, checkpoint=checkpoint, params=params),
        out=out,
        params={"import": params},
        inputs={},
        track=TrackingParams(mode="disabled"),
    )


@app.command()
def export(
    encoder: Annotated[
        Path, typer.Argument(callback=locate, help="An output of pretrain or import.")
    ],
    out: Out,
    authors: Annotated[str, typer.Option(help="As the model card names them.")] = "Not named",
) -> None:
    """Write an encoder for the Hugging Face hub, for MONAI and for other installations."""
    from neurofoundry import stage
    from neurofoundry.tracking import TrackingParams
    from neurofoundry.weights import bundle

    stage.run(
        "weights",
        lambda work: bundle.export(work, encoder=encoder, authors=authors),
        out=out,
        params={"authors": authors},
        inputs={"pretrain": encoder},
        track=TrackingParams(mode="disabled"),
    )


Scans = Annotated[
    list[Path],
    typer.Argument(help="BIDS, DICOM, NIfTI files or folders of them, or outputs of preprocess."),
]
Template = Annotated[
    Path | None,
    typer.Option(help="The folder of the template, for weights whose volumes had another."),
]
Table = Annotated[Path, typer.Option("--out", help="The table to write, .tsv or .parquet.")]


@app.command()
def embed(
    scans: Scans,
    weights: Annotated[
        Path, typer.Option(callback=locate, help="The folder of an encoder, or of an exported one.")
    ],
    out: Table,
    params: Annotated[
        str, typer.Option(help="Whose 'preprocess' makes volumes; for weights that do not say.")
    ] = "",
    overrides: Overrides = None,
    template: Template = None,
    workers: Workers = 0,
) -> None:
    """Features of raw scans: one row a scan, with the reason where there are none."""
    from neurofoundry.inference.embeddings import embed

    if overrides and not params:
        raise UsageError("--set: there are no --params that it could override.")
    values = _load(params, overrides).preprocess if params else None
    embed(
        scans,
        weights=weights,
        out=out,
        workers=workers or cores(),
        params=values,
        template=template,
    )


@app.command()
def predict(
    scans: Scans,
    model: Annotated[
        Path,
        typer.Option(
            callback=locate,
            help="A model: models/TASK/INIT/FRACTION/SEED, or an output of promote.",
        ),
    ],
    out: Table,
    template: Template = None,
    workers: Workers = 0,
) -> None:
    """What a model says of raw scans, with its uncertainty and a flag for unfamiliar ones."""
    from neurofoundry.inference.predictions import predict

    predict(scans, model=model, out=out, workers=workers or cores(), template=template)


@app.command()
def configure(
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    preprocess_parts: Annotated[int, typer.Option(min=1, help="Parts of the scans.")] = 1,
    finetune_parts: Annotated[
        int, typer.Option(min=0, help="Parts of the models to make; 0: as many as can be.")
    ] = 1,
    executor_input: ExecutorInput = "",
) -> None:
    """Check the parameters, and print for each stage those that it reads, and what runs apart.

    So a stage whose own parameters are the same is the same step, whatever else has changed.
    """
    from neurofoundry import executor
    from neurofoundry.project import SECTIONS

    values = _load(params, overrides)
    finetune_parts = finetune_parts or values.finetune.most_parts(len(values.tasks))
    tracking = {"tracking": values.tracking.model_dump(mode="json")}
    found: dict[str, Any] = {name: json.dumps(_read(values, name) | tracking) for name in SECTIONS}
    found["methods"] = list(values.pretrain.methods)
    for name, count in (("preprocess", preprocess_parts), ("finetune", max(1, finetune_parts))):
        found[f"parts_of_{name}"] = [f"{number}/{count}" for number in range(1, count + 1)]
    if executor_input:
        executor.publish(executor_input, parameters=found)
    else:
        print(json.dumps(found, indent=2))


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
    from neurofoundry import registry, stage
    from neurofoundry.tracking import TrackingParams

    folder = stage.run(
        "promote",
        lambda work: registry.promote(work, models=models, evaluation=evaluation),
        out=out,
        params={},
        inputs={"finetune": models, "evaluate": evaluation},
        track=TrackingParams(mode="disabled"),
        store=store,
    )
    _hand_over(folder, None, executor_input)


@app.command(hidden=True)
def fetch(
    store: Annotated[Path, typer.Option(help="The volume that all steps share.")],
    data_version: Annotated[str, typer.Option(help="Its md5 in data.dvc; any, if empty.")] = "",
    repository: Annotated[str, typer.Option(help="The git repository with data.dvc.")] = "",
    revision: Annotated[str, typer.Option(help="A commit, tag or branch of it.")] = "",
    executor_input: ExecutorInput = "",
) -> None:
    """Bring the raw data onto the store, in the version that is asked for."""
    from neurofoundry import executor
    from neurofoundry.fetch import fetch

    folder = fetch(store, version=data_version, repository=repository, revision=revision)
    print(folder)
    if executor_input:
        executor.publish(executor_input, parameters={"folder": str(folder)})


@app.command(hidden=True)
def check(
    store: Annotated[Path, typer.Option(help="The volume that all steps share.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that must be seen.")] = 0,
    executor_input: ExecutorInput = "",
) -> None:
    """See whether a step finds what it needs; exit 2 says what is missing."""
    from neurofoundry import executor

    findings = executor.check(store, gpus=gpus)
    text = "\n".join(f"- {finding}" for finding in findings) + "\n"
    executor.tell(text, out, executor_input)


@app.command(hidden=True)
def summarize(
    status: Annotated[str, typer.Option(help="What Kubeflow says of the run, as JSON.")],
    store: Annotated[Path, typer.Option(help="Where the outputs are.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    executor_input: ExecutorInput = "",
) -> None:
    """Say how a pipeline run ended, and how to go on."""
    from neurofoundry import executor

    executor.tell(executor.summary(json.loads(status), store), out, executor_input)


@app.command(name="run")
def run_all(
    data: Data,
    out: Out,
    params: ParamsFile = "params.yaml",
    overrides: Overrides = None,
    workers: Workers = 0,
) -> None:
    """All five stages, one after another, into one folder. Run again: only what changed runs."""
    cohort, volumes, encoder = out / "cohort", out / "volumes", out / "encoder"
    models, evaluation = out / "models", out / "evaluation"
    ingest(data, cohort, params, overrides)
    preprocess(data, cohort, volumes, params, overrides, workers)
    for method in _load(params, overrides).pretrain.methods:
        pretrain(volumes, method, encoder / method, params, overrides, processes=1)
    finetune(volumes, [encoder], models, params, overrides)
    evaluate(cohort, volumes, [encoder], models, evaluation, params, overrides)
    print(f"\nReport: {evaluation / 'report.html'}")


@app.command()
def phantom(
    out: Out,
    subjects: Annotated[int, typer.Option(help="Over all four sites.")] = 100,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size in mm; by default each site has its own.")
    ] = None,
    two_sessions: Annotated[
        float, typer.Option(help="Share of subjects scanned again 1 to 3 years later.")
    ] = 0.05,
    travelling: Annotated[
        float, typer.Option(help="Share of subjects scanned again at another familiar site.")
    ] = 0.3,
    ad_effect: Annotated[float, typer.Option(help="Strength of Alzheimer's-like atrophy.")] = 1.0,
    stroke_ml: Annotated[float, typer.Option(help="Median volume of a stroke, ml.")] = 20.0,
    lesion_load: Annotated[float, typer.Option(help="Amount of white matter lesions.")] = 1.0,
    workers: Workers = 0,
) -> None:
    """Generate the sample cohort: synthetic T1-weighted heads with known labels, as BIDS."""
    # numpy's functions for AVX-512 differ from all others in the last bit, and data.dvc is for all.
    os.environ["NPY_DISABLE_CPU_FEATURES"] = "X86_V4 AVX512_ICL AVX512_SPR"
    from neurofoundry.params import validate
    from neurofoundry.phantom.dataset import generate
    from neurofoundry.phantom.params import PhantomParams

    values = {
        "subjects": subjects,
        "seed": seed,
        "spacing_mm": spacing,
        "two_session_fraction": two_sessions,
        "travelling_fraction": travelling,
        "ad_effect": ad_effect,
        "stroke_ml": stroke_ml,
        "lesion_load": lesion_load,
    }
    generate(validate(values, PhantomParams, origin="phantom"), out, workers or cores())


def cores() -> int:
    """Cores that this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def _load(params: str, overrides: Sequence[str] | None, *, stage: str = "") -> Params:
    """The file ``params`` as a whole, or the document that `configure` made for ``stage``."""
    from neurofoundry.params import load, load_text
    from neurofoundry.project import Params, load_sections

    if stage and params.startswith("{"):
        return load_sections(stage, params, overrides or ())
    if "\n" in params:
        return load_text(params, Params, overrides or (), origin="--params")
    return load(Path(params), Params, overrides or ())


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text}: expected JSON ({error}).") from error


def _read(values: Params, stage: str) -> dict[str, Any]:
    """What ``stage`` reads of the parameters."""
    from neurofoundry.project import SECTIONS

    plain = values.model_dump(mode="json", by_alias=True)
    return {name: plain[name] for name in SECTIONS[stage]}


def _encoders(folders: Sequence[Path]) -> dict[str, Path]:
    """The inputs of a stage that takes encoders."""
    from neurofoundry.adaptation import find

    return {f"pretrain/{name}": folder for name, folder in find(folders).items()}


def _hand_over(folder: Path, copies: Sequence[str] | None, executor_input: str) -> None:
    """Give an orchestrator what it asked for of a finished output."""
    from neurofoundry import executor

    for copy in copies or ():
        name, _, target = copy.partition("=")
        if not (folder / name).is_file() or not target:
            raise UsageError(f"--copy {copy}: expected FILE=PATH; {folder} has no file '{name}'.")
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
    if executor_input:
        executor.publish(executor_input, **executor.describe(folder))


def _version(show: bool) -> None:
    if show:
        print(neurofoundry.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Global options."""


def main() -> None:
    """Run the command line; errors that a person can mend end in one message and its exit code."""
    # A thread of torch that waits shall soon sleep. libgomp's own 300,000 looks for work keep a
    # core busy: beside one busy process training took 1.6 times as long; alone, 2 % less.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app()
    except NeurofoundryError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _fail(
            f"{error.filename or 'output'}: {error.strerror}. Nothing is lost: free some space or "
            "give write permission, then run the same command again; it resumes.",
            2,
        )


def _fail(message: str, code: int) -> None:
    from neurofoundry.pretrain.launch import report

    if not report(message):
        complain(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
