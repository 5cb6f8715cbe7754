"""A store: one place for the outputs of many runs, each in a folder named by its key.

On a cluster it is a volume that every step mounts. Nothing in it is ever replaced, so runs share
what they have in common. What passes from step to step is a manifest, a small file that says
where an output lies; a stage takes a manifest wherever it takes a folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from neurofoundry.errors import DataError
from neurofoundry.runtime.files import read_json, write_json, write_text


def folder_of(store: Path, stage: str, key: str) -> Path:
    """Return where the output of ``stage`` with this key lies."""
    return store / stage / key[:16]


def outputs(store: Path, stage: str) -> list[Path]:
    """Return the finished outputs of ``stage``, the newest first."""
    records = (store / stage).glob("[!.]*/stage.json")
    return [path.parent for path in sorted(records, key=_age)]


def keep_params(store: Path, stage: str, text: str) -> Path:
    """Put the parameters of a stage into the store under their hash; return the file.

    What passes from step to step, and what an orchestrator keeps of each, then stays short, and is
    another path when the parameters are others.
    """
    path = store / "params" / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return path


def recorded_key(folder: Path) -> str | None:
    """Return the key in stage.json of an output; None where there is no output."""
    try:
        return str(read_json(folder / "stage.json")["key"])
    except (OSError, ValueError, KeyError):
        return None


def circumstances_of(folder: Path) -> Path:
    """Return where it is written when, where and how fast an output was made.

    It lies beside the output, which is the same bytes whenever and wherever it is made.
    """
    place = folder.resolve()
    return place.with_name(f".{place.name}.run.json")


def read_circumstances(folder: Path) -> dict[str, Any]:
    """Return when, where and how fast an output was made; nothing where that is not known."""
    try:
        return read_json(circumstances_of(folder))
    except (OSError, ValueError):
        return {}


def write_manifest(path: Path, folder: Path, record: dict[str, Any]) -> None:
    """Write the manifest ``path`` of the output in ``folder``, whose stage.json is ``record``."""
    names = ("stage", "schema_version", "key", "data_version")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"folder": str(folder.resolve()), **{name: record[name] for name in names}})


def locate(path: Path) -> Path:
    """Return ``path`` if it is a folder, or the folder that the manifest ``path`` names.

    Raises DataError.
    """
    if not path.is_file():
        return path
    try:
        manifest = read_json(path)
        folder, key = Path(manifest["folder"]), manifest["key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: neither a folder nor a manifest ({error}).") from error
    recorded = recorded_key(folder)
    if recorded != key:
        raise DataError(
            f"{path}: the output it names is not in {folder} (expected {key[:16]}, found "
            f"{(recorded or 'nothing')[:16]}). Mount the same store in every step; if the output "
            "was deleted, run the stage that wrote it again, without caching."
        )
    return folder


def locate_all(values: list[Path] | None) -> list[Path]:
    """`locate` several paths; a JSON list, as orchestrators pass one, counts as its members."""
    members: list[Path] = []
    for value in values or ():
        text = str(value)
        members += map(Path, json.loads(text)) if text.startswith("[") else [value]
    return [locate(member) for member in members]


def _age(record: Path) -> tuple[float, str]:
    return -record.stat().st_mtime, str(record)
