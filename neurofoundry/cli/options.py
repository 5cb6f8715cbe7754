"""Options that several commands share, and what they do with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurofoundry.errors import UsageError
from neurofoundry.kubeflow import executor, journal
from neurofoundry.runtime import machine
from neurofoundry.runtime.files import atomic
from neurofoundry.runtime.guard import guard_file, guard_output, guard_place
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.store import locate, locate_all

if TYPE_CHECKING:
    from neurofoundry.project import Params, Sections

# Workers of a stage import the command line again: what is heavy is imported where it is used.

app = typer.Typer(
    help="From raw 3D brain MRI to a pretrained, fine-tuned and honestly evaluated model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


plan = typer.Typer(no_args_is_help=True, help="Say what a stage will cost on this machine.")
app.add_typer(plan, name="plan")

ParamsFile = Annotated[
    list[str],
    typer.Option(
        "--params",
        help="The parameters: a file, its text, or what `configure` gave for this stage. "
        "Repeatable: a later one changes values of the earlier.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
PARAMS = ["params.yaml"]
"""Where parameters are by default."""

Layers = str | Sequence[str]
"""One or several of what `ParamsFile` takes."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter: pretrain.epochs=3"),
]
Out = Annotated[Path, typer.Option("--out", help="The folder to write; it appears when whole.")]
Data = Annotated[
    Path, typer.Option("--data", help="The folder of the raw data, or a table of images in it.")
]
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
OtherEncoders = Annotated[
    list[Path] | None,
    typer.Option(
        "--encoder",
        callback=locate_all,
        help="Weights that exist already: an output of import or pretrain, or a folder of them. "
        "Repeatable.",
    ),
]
Models = Annotated[Path, typer.Option("--models", callback=locate, help="The output of finetune.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=0, help="Worker processes; 0: one per core, as far as memory allows."
    ),
]

# What only a step of an orchestrator needs (docs/kubeflow.md).
CLUSTER = "On a cluster"
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        rich_help_panel=CLUSTER,
        help="Keep the output here, beside those of other runs; --out becomes its manifest.",
    ),
]


def _guarded(copies: list[str] | None) -> list[str] | None:
    """Refuse a copy that would replace a file before the work, not after it."""
    for copy in copies or ():
        name, _, target = copy.partition("=")
        if not name or not target:
            raise UsageError(f"--copy {copy}: expected FILE=PATH.")
        guard_file(Path(target), option="--copy")
    return copies


Copies = Annotated[
    list[str] | None,
    typer.Option(
        "--copy",
        callback=_guarded,
        metavar="FILE=PATH",
        rich_help_panel=CLUSTER,
        help="Copy a file of the finished output. Repeatable.",
    ),
]


def _begin(context: typer.Context, executor_input: str) -> str:
    if executor_input:
        executor.check_input(executor_input)
        journal.begin(str(context.info_name), executor_input)
    return executor_input


ExecutorInput = Annotated[
    str,
    typer.Option(
        "--executor-input",
        callback=_begin,
        is_eager=True,  # before an input that is not there ends the command
        rich_help_panel=CLUSTER,
        help="What Kubeflow Pipelines tells a step, as JSON.",
    ),
]
ShardOf = Annotated[
    str,
    typer.Option(
        "--shard",
        metavar="NUMBER/OF",
        rich_help_panel=CLUSTER,
        help="Make one of several equal shards, such as 2/8.",
    ),
]
Reuse = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse",
        callback=locate_all,
        rich_help_panel=CLUSTER,
        help="Reuse what these outputs have made, such as shards. Repeatable.",
    ),
]


WORKER = 2**30
"""Bytes of a worker: preprocessing at 1 mm takes 0.67 to 0.8 GB (docs/measurements.md)."""


def worker_count(asked: int) -> int:
    """Return the number of worker processes, and say so where memory makes them few."""
    count = asked or machine.workers(WORKER)
    if not asked and count < machine.cores():
        LOGGER.info(
            "%d workers for %d cores: there is %.0f GB of memory, and each takes up to 1 GB",
            count,
            machine.cores(),
            machine.memory() / 1e9,
        )
    return count


def data_folder(data: Path) -> Path:
    """Return the folder of the raw data, where ``--data`` names a table in it."""
    return data.parent if data.is_file() else data


def load_params(params: Layers, overrides: Sequence[str] | None) -> Params:
    """Read all parameters: those of the files ``params``, or of the texts that they are."""
    from neurofoundry.params import validate
    from neurofoundry.project import Params

    values, origin = _read(params, overrides)
    return validate(values, Params, origin=origin)


def load_sections(
    sections: type[Sections], params: Layers, overrides: Sequence[str] | None
) -> Sections:
    """Read what a stage reads: from all parameters, or from what `configure` gave for it.

    What is wrong with the sections of other stages is logged; this stage does not need them.
    """
    from neurofoundry.params import load_part, validate
    from neurofoundry.project import Params

    values, origin = _read(params, overrides)
    if set(values) <= set(sections.model_fields):  # as `configure` writes them
        return validate(values, sections, origin=origin)
    read, elsewhere = load_part(values, sections, Params, origin=origin)
    read.belongs_to(values)
    if elsewhere:
        LOGGER.warning("%s: another stage will refuse this: %s", origin, elsewhere)
    return read


def _layers(params: Layers) -> Sequence[str]:
    return [params] if isinstance(params, str) else params


def _read(params: Layers, overrides: Sequence[str] | None) -> tuple[dict[str, Any], str]:
    """Return what ``--params`` holds, each a file or the text itself, and what to call it."""
    from neurofoundry.params import read_layers, read_text

    texts = [
        (layer, "--params") if _is_text(layer) else (read_text(Path(layer)), layer)
        for layer in _layers(params)
    ]
    return read_layers(texts, overrides or ()), " + ".join(origin for _, origin in texts)


def _is_text(layer: str) -> bool:
    return "\n" in layer or layer.startswith("{")


def params_file(params: Layers) -> list[Path]:
    """Return the files that ``--params`` names, as far as they are not the text itself."""
    return [Path(layer) for layer in _layers(params) if not _is_text(layer)]


def guard_run(out: Path, *, inputs: Sequence[Path]) -> None:
    """Raise UsageError unless `run` can write all its stages into ``out`` without loss."""
    folders = {
        "ingest": "cohort",
        "preprocess": "volumes",
        "finetune": "models",
        "evaluate": "evaluation",
    }
    names = (*folders.values(), "encoder")
    marks = [*names, *(f".{name}.partial" for name in names)]
    guard_output(out, makes="run", inputs=inputs, marks=marks)
    for stage, name in folders.items():
        guard_output(out / name, makes=stage, inputs=inputs)
    guard_place(out / "encoder", inputs=inputs)
    for folder in sorted((out / "encoder").glob("[!.]*")):
        guard_output(folder, makes="pretrain", inputs=inputs)


def with_shipped(folders: Sequence[Path], names: Iterable[str]) -> list[Path]:
    """Return ``folders``, and those of the encoders of ``names`` that come with the package."""
    from neurofoundry.contracts.encoder import shipped

    found = (shipped(name) for name in dict.fromkeys(names))
    return [*folders, *(folder for folder in found if folder)]


def encoders_of(models: Path) -> list[str]:
    """Return the names of the encoders that finetune has recorded. Raises UsageError, DataError."""
    from neurofoundry.runtime.stage import read_record

    record = read_record("finetune", models)
    try:
        starts = record["params"]["finetune"]["initializations"].values()
        return list(dict.fromkeys(str(start["encoder"]) for start in starts))
    except (KeyError, TypeError, AttributeError):
        return []


def encoder_inputs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the inputs of a stage that takes encoders, by name."""
    from neurofoundry.contracts.encoder import find_encoders

    return {f"pretrain/{name}": folder for name, folder in find_encoders(folders).items()}


def hand_over(folder: Path, copies: Sequence[str] | None, executor_input: str) -> None:
    """Give an orchestrator what it asked for of a finished output."""
    for copy in copies or ():
        name, _, target = copy.partition("=")
        if not (folder / name).is_file():
            raise UsageError(f"--copy {copy}: expected FILE=PATH; {folder} has no file '{name}'.")
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with atomic(Path(target)) as temporary:
            shutil.copyfile(folder / name, temporary)
    if executor_input:
        executor.publish(executor_input, **executor.describe(folder))
