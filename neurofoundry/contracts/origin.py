"""Folders from elsewhere: what they must hold to before anything in them is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofoundry.errors import DataError
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.verify import check_item


def check_contents(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError where files of ``folder`` are not those that its stage.json was written for.

    A file that has been removed, such as subjects.tsv, is no alteration. Of a folder without a
    stage.json that of the output that it lies in counts, as a model lies in that of finetune.
    """
    path = folder / "stage.json"
    if not path.exists():
        check_item(*(folder / name for name in names))
        return
    try:
        contents: Any = json.loads(path.read_text(encoding="utf-8"))["contents"]
        recorded = {name: contents[name] for name in names if name in contents}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a stage record ({error}). Get the folder again.") from error
    for name, expected in recorded.items():
        if (folder / name).is_file() and (sha256 := hash_file(folder / name)) != expected:
            raise DataError(
                f"{folder / name}: not the file that {path.name} was written for: its SHA-256 is "
                f"{sha256}, recorded is {expected!r:.80}. Get the folder again, or run the "
                "stage again that wrote it."
            )
