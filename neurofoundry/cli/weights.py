"""Commands that bring weights in and out, and that apply them to raw scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neurofoundry.cli.options import Out, Overrides, Workers, app, load_params, worker_count
from neurofoundry.errors import UsageError
from neurofoundry.runtime.store import locate


def locate_encoder(path: Path) -> Path:
    """Return the folder of an encoder: of ``path``, or of that name in the package."""
    from neurofoundry.contracts.encoder import shipped

    return (None if path.exists() else shipped(str(path))) or locate(path)


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or an encoder's folder.")],
    name: Annotated[str, typer.Option("--as", help="The name that finetune.initializations use.")],
    out: Out,
    kind: Annotated[
        str,
        typer.Option(help="3d-neuro-simclr, medicalnet, monai or neurofoundry; else guessed."),
    ] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, where they do not state it.")
    ] = "",
    spacing: Annotated[
        float | None,
        typer.Option(help="Grid in mm that unbound weights are to be bound to."),
    ] = None,
    stem_stride: Annotated[
        int | None,
        typer.Option(help="Stride of the first convolution, for monai; else 1."),
    ] = None,
) -> None:
    """Import a published checkpoint as an encoder: strictly, and without running what is in it."""
    from neurofoundry.params import validate
    from neurofoundry.runtime import stage
    from neurofoundry.weights.params import ImportParams
    from neurofoundry.weights.published import import_checkpoint

    given: dict[str, Any] = {"name": name, "kind": kind or None, "licence": licence}
    given |= {"spacing": spacing, "stem_stride": stem_stride}
    params = validate(given, ImportParams, origin="import")
    stage.run(
        "import",
        lambda work: import_checkpoint(work, checkpoint=checkpoint, params=params),
        to=stage.Destination(out),
        params={"import": params},
        inputs={},
        reads=[checkpoint],
    )


@app.command()
def export(
    encoder: Annotated[
        Path,
        typer.Argument(
            callback=locate_encoder,
            help="The output of pretrain, import or promote, or a model: "
            "models/TASK/INIT/FRACTION/SEED, or models/TASK/INIT/FRACTION for all as one.",
        ),
    ],
    out: Out,
    authors: Annotated[str, typer.Option(help="Authors for the model card.")] = "Not named",
) -> None:
    """Export an encoder or a fine-tuned model for the Hugging Face hub, for MONAI and for other
    installations."""
    from neurofoundry.inference import bundle as models
    from neurofoundry.runtime import stage
    from neurofoundry.weights import bundle

    if models.is_model(encoder):
        stage.run(
            "export a model",
            lambda work: models.export(work, model=encoder, authors=authors),
            to=stage.Destination(out),
            params={"authors": authors, "model": models.identity(encoder)},
            inputs={},
            reads=[encoder],
        )
        return
    stage.run(
        "export",
        lambda work: bundle.export(work, encoder=encoder, authors=authors),
        to=stage.Destination(out),
        params={"authors": authors},
        inputs={"pretrain": encoder},
    )


ScanPaths = Annotated[
    list[Path],
    typer.Argument(help="BIDS, DICOM, NIfTI files or folders of them, or outputs of preprocess."),
]
TemplateFolder = Annotated[
    Path | None,
    typer.Option(help="The folder of the template, for weights that do not use nilearn's."),
]
MaskCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="The program that finds the brain, for weights whose volumes were made with one: "
        "'mri_synthstrip -i {input} -m {output}'. It runs once a scan.",
    ),
]
Table = Annotated[Path, typer.Option("--out", help="The table to write: .tsv or .parquet.")]


@app.command()
def embed(
    scans: ScanPaths,
    weights: Annotated[
        Path,
        typer.Option(
            callback=locate_encoder,
            help="The folder of an encoder, or of an exported one; small: the package's own.",
        ),
    ],
    out: Table,
    params: Annotated[
        str, typer.Option(help="Parameters whose 'preprocess' makes volumes, for weights without.")
    ] = "",
    overrides: Overrides = None,
    template: TemplateFolder = None,
    mask_command: MaskCommand = None,
    workers: Workers = 0,
) -> None:
    """Write the features of raw scans: one row a scan, with the reason where there are none."""
    from neurofoundry.inference.embeddings import embed

    if overrides and not params:
        raise UsageError("--set: there are no --params to override. Give --params, too.")
    preprocess = load_params(params, overrides).preprocess if params else None
    embed(
        scans,
        weights=weights,
        out=out,
        workers=worker_count(workers),
        params=preprocess,
        template=template,
        mask_command=mask_command,
    )


@app.command()
def predict(
    scans: ScanPaths,
    model: Annotated[
        Path,
        typer.Option(
            callback=locate,
            help="A model: models/TASK/INIT/FRACTION/SEED, or the output of promote.",
        ),
    ],
    out: Table,
    template: TemplateFolder = None,
    mask_command: MaskCommand = None,
    workers: Workers = 0,
) -> None:
    """Write predictions for raw scans, with uncertainty and a flag for unfamiliar ones; of a
    segmentation masks in a folder of the table's name, and their volumes."""
    from neurofoundry.inference.predictions import predict

    predict(
        scans,
        model=model,
        out=out,
        workers=worker_count(workers),
        template=template,
        mask_command=mask_command,
    )
