"""A store: one place for the outputs of many runs, each in a folder named by what it is made of.

On a cluster it is a volume that every step mounts. Nothing in it is ever replaced, so runs share
what they have in common. What passes from step to step is a manifest, a small file that says
where an output lies; a stage takes a manifest wherever it takes a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neurofoundry.errors import DataError


def folder_of(store: Path, stage: str, key: str) -> Path:
    """Where the output of ``stage`` with this key lies."""
    return store / stage / key[:16]


def outputs(store: Path, stage: str) -> list[Path]:
    """The finished outputs of ``stage``, the newest first."""
    records = (store / stage).glob("[!.]*/stage.json")
    return [path.parent for path in sorted(records, key=_age)]


def write_manifest(path: Path, folder: Path, record: dict[str, Any]) -> None:
    """Say in the file ``path`` where an output lies, and which one it is."""
    names = ("stage", "schema_version", "key", "data_version")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"folder": str(folder.resolve()), **{name: record[name] for name in names}}
    path.write_text(json.dumps(content, indent=2) + "\n")


def locate(path: Path) -> Path:
    """The folder that ``path`` is, or that the manifest ``path`` names. Raises DataError."""
    if not path.is_file():
        return path
    try:
        manifest = json.loads(path.read_text())
        folder, key = Path(manifest["folder"]), manifest["key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: neither a folder nor a manifest ({error}).") from error
    try:
        found = json.loads((folder / "stage.json").read_text())["key"]
    except (OSError, ValueError, KeyError):
        found = "nothing"
    if found != key:
        raise DataError(
            f"{path}: the output it names is not in {folder} (expected {key[:16]}, found "
            f"{found[:16]}). Mount the same store in every step; if the output was deleted, run "
            "the stage that wrote it again, without caching."
        )
    return folder


def locate_all(values: list[Path] | None) -> list[Path]:
    """As `locate`, for several; a JSON list, as orchestrators pass one, counts as its members."""
    members: list[Path] = []
    for value in values or ():
        text = str(value)
        members += map(Path, json.loads(text)) if text.startswith("[") else [value]
    return [locate(member) for member in members]


def _age(record: Path) -> tuple[float, str]:
    return -record.stat().st_mtime, str(record)
