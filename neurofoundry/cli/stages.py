"""One command per stage, `run` for all of them, `phantom` and `compare`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from neurofoundry import presets
from neurofoundry.cli.options import (
    PARAMS,
    AsJson,
    Cohort,
    Copies,
    Data,
    Encoder,
    ExecutorInput,
    Models,
    OtherEncoders,
    Out,
    Overrides,
    ParamsFile,
    Reuse,
    ShardOf,
    Store,
    Volumes,
    Workers,
    app,
    data_folder,
    encoder_inputs,
    encoders_of,
    guard_run,
    hand_over,
    load_params,
    load_sections,
    params_file,
    plan,
    with_shipped,
    worker_count,
)
from neurofoundry.errors import UsageError
from neurofoundry.runtime.experiment import pipeline_run
from neurofoundry.runtime.store import locate_all


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, or this one (.).")],
    preset: Annotated[
        str, typer.Option(help=f"What to start from: {', '.join(presets.NAMES)}.")
    ] = "laptop",
) -> None:
    """Write a project: params.yaml of a preset, dvc.yaml, a sweep of W&B, and where data go."""
    print(presets.write_project(folder, preset))


@app.command()
def ingest(
    data: Data,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Inspect every file of the raw data, and list the usable scans with their splits."""
    from neurofoundry.ingest import run
    from neurofoundry.project import IngestSections
    from neurofoundry.runtime import stage

    values = load_sections(IngestSections, params, overrides)
    folder = stage.run(
        "ingest",
        lambda work: run.ingest(
            work, data=data, params=values.ingest, tasks=values.tasks, seed=values.seed
        ),
        to=stage.Destination(out, store),
        params=values.deciding(),
        inputs={},
        reads=[data, *params_file(params)],
        track=values.experiment,
    )
    hand_over(folder, copies, executor_input)


@app.command()
def preprocess(
    data: Data,
    cohort: Cohort,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    workers: Workers = 0,
    shard: ShardOf = "1/1",
    reuse: Reuse = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Mask the brain, register it to MNI152, normalize it, and check the result."""
    from neurofoundry.preprocess import run, template
    from neurofoundry.preprocess.verdict import decisions
    from neurofoundry.project import PreprocessSections
    from neurofoundry.runtime import stage

    values = load_sections(PreprocessSections, params, overrides)
    data = data_folder(data)
    folder = stage.run(
        "preprocess",
        lambda work: run.preprocess(
            work, data=data, cohort=cohort, params=values.preprocess, workers=worker_count(workers)
        ),
        to=stage.Destination(out, store, stage.Shard.parse(shard), tuple(reuse or ())),
        params=values.deciding()
        | decisions(values.preprocess, data)
        | template.fingerprint(template.find(values.preprocess, data)),
        inputs={"ingest": cohort},
        reads=[data, *params_file(params)],
        track=values.experiment,
    )
    hand_over(folder, copies, executor_input)


@plan.command("preprocess")
def plan_preprocess(
    data: Data,
    cohort: Cohort,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    workers: Workers = 0,
    scans: Annotated[int, typer.Option(min=1, help="Scans to try.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Preprocess a few scans, and estimate the hours and the disk space that all will take."""
    from neurofoundry.preprocess import plan
    from neurofoundry.project import PreprocessSections

    values = load_sections(PreprocessSections, params, overrides)
    cost = plan.plan(data=data_folder(data), cohort=cohort, params=values.preprocess, tries=scans)
    count = worker_count(workers)
    print(json.dumps(cost.numbers(count)) if as_json else cost.describe(count))


@app.command()
def pretrain(
    volumes: Volumes,
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")],
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(min=0, help="Processes that train together; 0: one a GPU.")
    ] = 0,
    accept_code_change: Annotated[
        bool,
        typer.Option(
            "--accept-code-change",
            help="Continue from a checkpoint of other code; stage.json names the changed modules.",
        ),
    ] = False,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Train an encoder on unlabelled volumes."""
    from neurofoundry.pretrain import objectives, ranks, run
    from neurofoundry.project import PretrainSections
    from neurofoundry.runtime import stage

    values = load_sections(PretrainSections, params, overrides)
    read = values.pretrain.read_by(method)
    ranks.spread(processes)
    folder = stage.run(
        "pretrain",
        lambda work: run.pretrain(
            work, volumes=volumes, method=method, params=values.pretrain, seed=values.seed
        ),
        to=stage.Destination(out, store),
        params={"pretrain": read, "seed": values.seed, "method": method},
        inputs={"preprocess": volumes},
        reads=params_file(params),
        track=values.experiment,
        leads=ranks.leads(),
        found_by_name=[objectives.MODULES[method]],
        accept_code_change=accept_code_change,
    )
    if ranks.leads():
        hand_over(folder, copies, executor_input)


@plan.command("pretrain")
def plan_pretrain(
    scans: Annotated[int, typer.Option("--scans", min=1, help="Scans of the cohort.")],
    method: Annotated[str, typer.Option("--method", help="One of pretrain.methods.")] = "",
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a few steps here; print hours, memory and the largest batch for so many scans."""
    from neurofoundry.pretrain.cost import plan

    values = load_params(params, overrides)
    plans = (
        plan(name, values.pretrain, values.preprocess.grid, scans=scans)
        for name in ([method] if method else values.pretrain.methods)
    )
    if as_json:
        print(json.dumps([each.numbers() for each in plans]))
    else:
        for each in plans:
            print(each.describe())


@app.command()
def finetune(
    volumes: Volumes,
    encoder: Encoder,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    shard: ShardOf = "1/1",
    reuse: Reuse = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Fine-tune and probe every declared initialization on the declared tasks."""
    from neurofoundry.finetune import run
    from neurofoundry.project import FinetuneSections
    from neurofoundry.runtime import stage

    values = load_sections(FinetuneSections, params, overrides)
    starts = values.finetune.initializations.values()
    encoders = with_shipped(encoder, (start.encoder for start in starts))
    folder = stage.run(
        "finetune",
        lambda work: run.finetune(
            work,
            volumes=volumes,
            encoder=encoders,
            params=values.finetune,
            tasks=values.tasks,
            seed=values.seed,
        ),
        to=stage.Destination(out, store, stage.Shard.parse(shard), tuple(reuse or ())),
        params=values.deciding(),
        inputs={"preprocess": volumes, **encoder_inputs(encoders)},
        reads=[*encoders, *params_file(params)],
        track=values.experiment,
    )
    hand_over(folder, copies, executor_input)


@app.command()
def evaluate(
    cohort: Cohort,
    volumes: Volumes,
    encoder: Encoder,
    models: Models,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    store: Store = None,
    copies: Copies = None,
    executor_input: ExecutorInput = "",
) -> None:
    """Evaluate the models in and out of distribution, with intervals, and write the report."""
    from neurofoundry.evaluate import champion, run
    from neurofoundry.project import EvaluateSections
    from neurofoundry.runtime import stage

    values = load_sections(EvaluateSections, params, overrides)
    encoders = with_shipped(encoder, encoders_of(models))
    folder = stage.run(
        "evaluate",
        lambda work: run.evaluate(
            work,
            cohort=cohort,
            volumes=volumes,
            encoder=encoders,
            models=models,
            params=values.evaluate,
            tasks=values.tasks,
            seed=values.seed,
        ),
        to=stage.Destination(out, store),
        params=values.deciding() | champion.fingerprint(values.evaluate.promotion),
        inputs={
            "ingest": cohort,
            "preprocess": volumes,
            **encoder_inputs(encoders),
            "finetune": models,
        },
        reads=[*encoders, *params_file(params)],
        track=values.experiment,
    )
    hand_over(folder, copies, executor_input)


@app.command(name="run")
def run_all(
    data: Data,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    workers: Workers = 0,
    encoder: OtherEncoders = None,
) -> None:
    """Run all five stages into one folder. Run again, it makes only what has changed."""
    cohort, volumes, own = out / "cohort", out / "volumes", out / "encoder"
    models, evaluation = out / "models", out / "evaluation"
    guard_run(out, inputs=[data, *params_file(params), *(encoder or ())])
    values = load_params(params, overrides)
    encoders = [*([own] if values.pretrain.methods else []), *(encoder or ())]
    starts = values.finetune.initializations.values()
    if not encoders and not with_shipped([], (start.encoder for start in starts)):
        raise UsageError("pretrain.methods names none: give weights with --encoder.")
    with pipeline_run(out.resolve(), data.resolve(), values):
        ingest(data, cohort, params, overrides)
        preprocess(data, cohort, volumes, params, overrides, workers)
        for method in values.pretrain.methods:
            pretrain(volumes, method, own / method, params, overrides, processes=1)
        finetune(volumes, encoders, models, params, overrides)
        evaluate(cohort, volumes, encoders, models, evaluation, params, overrides)
    print(f"\nReport: {evaluation / 'report.html'}")


@app.command()
def phantom(
    out: Out,
    subjects: Annotated[int, typer.Option(help="Number of subjects over all four sites.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 0,
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
    contrasts: Annotated[
        str, typer.Option(help="What each session is scanned with: T1w, T1w,FLAIR, T1w,FLAIR,T2w.")
    ] = "T1w",
    workers: Workers = 0,
) -> None:
    """Generate the sample cohort: synthetic T1-weighted heads with known labels, as BIDS."""
    # numpy's AVX-512 functions differ in the last bit, and data.dvc must hold on every machine.
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
        "contrasts": contrasts.split(","),
    }
    generate(validate(values, PhantomParams, origin="phantom"), out, worker_count(workers))


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
        typer.Option(
            "--out", help="A folder to write with tables and a page; it appears when whole."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare evaluations of the same scans: what differs, with paired intervals."""
    from rich.console import Console

    from neurofoundry.evaluate import compare

    if out:
        compare.guard(out, evaluations)
    comparison = compare.compare(evaluations)
    if as_json:
        print(compare.as_json(comparison))
    else:
        compare.show(comparison, Console())
    if out:
        compare.write(comparison, out)
