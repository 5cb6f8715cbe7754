"""Whether outputs are still what was written: files against the hashes that are kept of them.

stage.json holds the hash of every contract file; a table holds those of the items that it lists.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from neurofoundry.errors import DataError
from neurofoundry.runtime import machine
from neurofoundry.runtime.cells import read_cell
from neurofoundry.runtime.files import hash_file, read_json
from neurofoundry.runtime.links import lies_within
from neurofoundry.runtime.progress import Progress

ITEMS = {
    "preprocess": (
        ("scans.tsv", "{volume}", "volume_sha256"),
        ("labels.tsv", "{scan_id}.label-{task}.nii", "label_sha256"),
    )
}
"""By stage: the tables that list its items, the file of each, and the column of its hash."""

SHOWN = 5
"""Files that a message names; it counts the others."""


def recorded(folder: Path) -> dict[str, str]:
    """Return the contract files of an output with their hashes; none where nothing is recorded."""
    contents = _record(folder).get("contents")
    if not isinstance(contents, dict):
        return {}
    return {str(name): str(value) for name, value in contents.items()}


def recorded_items(folder: Path) -> dict[str, str]:
    """Return the files of the items of an output, such as volumes, with their hashes.

    Tables of earlier versions do not say where all of them lie; their items are not known.
    """
    items: dict[str, str] = {}
    for table, name, column in ITEMS.get(str(_record(folder).get("stage")), ()):
        if not (folder / table).is_file():
            continue
        with (folder / table).open(encoding="utf-8", newline="") as file, suppress(KeyError):
            rows = csv.DictReader(file, delimiter="\t")
            items |= {
                read_cell(each.format(**row)): row[of]
                for row in rows
                for each, of in _columns(name, column, row)
                if row.get(of) not in (None, "n/a")
            }
    return items


def _columns(name: str, column: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of an item and the column of its hash: of a volume, also those of its session
    in further contrasts."""
    yield name, column
    if column == "volume_sha256":
        for other in row:
            if str(other).startswith("volume_sha256_"):
                yield f"{{volume_{other.removeprefix('volume_sha256_')}}}", other


def differences(folder: Path, *, items: bool) -> list[str]:
    """Return which files of an output are not what was written, and how.

    Its ``items`` count, too, unless a table that lists them has changed itself.
    """
    if damage := _damage(folder):
        return [damage]
    changed = list(_compare(folder, recorded(folder)))
    tables = [table for table, _, _ in ITEMS.get(str(_record(folder).get("stage")), ())]
    listed = not any(line.startswith(f"{table} ") for line in changed for table in tables)
    return changed + item_differences(folder) if items and listed else changed


def item_differences(folder: Path) -> list[str]:
    """Return which files of the items of an output are not what was written, and how."""
    hashes = recorded_items(folder)
    if not hashes:
        return []
    with Progress(f"verify {folder.name}", len(hashes), unit="files") as progress:
        return list(_compare(folder, hashes, progress))


def check(stage: str, folder: Path, *, items: bool) -> None:
    """Raise DataError unless an output of ``stage`` is what was written."""
    refuse(stage, folder, differences(folder, items=items))


def refuse(stage: str, folder: Path, changed: Sequence[str]) -> None:
    """Raise DataError if anything of an output of ``stage`` has ``changed``."""
    if changed:
        more = f"; {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise DataError(
            f"{folder} is not what '{stage}' wrote: {'; '.join(changed[:SHOWN])}{more}. Bring it "
            f"back with `dvc checkout --force {folder}`, or run '{stage}' again."
        )


def is_altered(item: Path) -> bool:
    """Return whether a file or folder within an output differs from the record of the output."""
    for folder in item.parents:
        if os.path.lexists(folder / "stage.json"):
            name = item.relative_to(folder).as_posix()
            within = {
                file: value
                for file, value in recorded(folder).items()
                if file == name or file.startswith(f"{name}/")
            }
            return _damage(folder) is not None or any(_compare(folder, within))
    return False


def check_item(*files: Path) -> None:
    """Raise DataError where a file within an output differs from the record of the output."""
    for file in files:
        if is_altered(file):
            raise DataError(
                f"{file}: not what was written, by the hashes in stage.json. Bring it back "
                f"with `dvc checkout --force {file.parent}`, or make it again."
            )


def _compare(
    folder: Path, hashes: Mapping[str, str], progress: Progress | None = None
) -> Iterator[str]:
    def difference(name: str) -> str | None:
        if not lies_within(name):
            return f"{name} lies in another folder, which no stage writes"
        path = folder / name
        if not path.is_file():  # to read a pipe or device might never end
            return f"{name} is {'no file' if path.exists() else 'gone'}"
        value = hash_file(path)
        if value == hashes[name]:
            return None
        return f"{name} has changed (SHA-256 {value[:12]}…, expected {hashes[name][:12]}…)"

    with ThreadPoolExecutor(machine.cores()) as pool:
        for found in pool.map(difference, hashes):
            if progress:
                progress.advance(failed=found is not None)
            if found:
                yield found


def _damage(folder: Path) -> str | None:
    """Return why the record of an output tells nothing; None where it does, or where none is.

    Nobody can tell then whose output it is, so that no stage replaces it.
    """
    path = folder / "stage.json"
    if not os.path.lexists(path):
        return None
    try:
        if isinstance(read_json(path)["contents"], dict):
            return None
        why = "it lists no contents"
    except (OSError, ValueError, KeyError) as error:
        why = str(error)
    return f"stage.json is damaged ({why}): before the stage runs again, move the folder elsewhere"


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "stage.json")
    except (OSError, ValueError):
        return {}
