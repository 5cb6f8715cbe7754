"""`neurofoundry verify`: whether outputs are still what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from neurofoundry.cli.options import AsJson, app
from neurofoundry.errors import DataError, UsageError

USUAL = ("cohort", "volumes", "encoder", "models", "evaluation")


@app.command()
def verify(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Outputs, or folders of them; by default those of `dvc repro` here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare outputs, with all volumes, with the hashes that were written with them."""
    from neurofoundry.runtime.verify import differences, recorded, recorded_items

    outputs = _outputs(folders or [Path(name) for name in USUAL if Path(name).exists()])
    found = {folder: differences(folder, items=True) for folder in outputs}
    if as_json:
        print(json.dumps({str(folder): lines for folder, lines in found.items()}))
    else:
        for folder, lines in found.items():
            files = len(recorded(folder)) + len(recorded_items(folder))
            for line in lines or [f"{files} files as written"]:
                print(f"{folder}: {line}")
    if altered := sum(map(bool, found.values())):
        raise DataError(
            f"{altered} of {len(outputs)} outputs are not what was written. Bring them back with "
            "`dvc checkout --force FOLDER`, or run their stages again."
        )


def _outputs(folders: list[Path]) -> list[Path]:
    """Return the outputs among folders and right below them. Raises UsageError."""
    outputs = []
    for folder in folders:
        within = [folder] if (folder / "stage.json").exists() else []
        within = within or sorted(path.parent for path in folder.glob("[!.]*/stage.json"))
        if not within:
            raise UsageError(f"{folder}: no output of a stage (no stage.json here or below).")
        outputs += within
    if not outputs:
        raise UsageError("There are no outputs here. Give their folders.")
    return outputs
