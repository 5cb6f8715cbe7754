"""What the steps of a run leave for its last step to tell: which began, and how each ended.

Kubeflow tells the last step no more than a state, which is often wrong, and never which step
failed. A note lies in STORE/runs/RUN/STEP.json; a step that is tried again replaces its own. One
that has no end was killed. Steps that were taken from the cache leave none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from neurofoundry.runtime.files import write_json

RUNS = "runs"
"""The folder of the notes in a store."""


@dataclass(frozen=True)
class Note:
    """What a step says of itself."""

    step: str
    """The command, and which shard or method of it."""
    pod: str
    exit_code: int | None = None
    """None while it runs, and for ever if it is killed."""
    facts: dict[str, str] = field(default_factory=dict)
    """What came out of it."""


def run_name() -> str:
    """Return the name of the run that this step belongs to, if any."""
    return os.environ.get("NEUROFOUNDRY_RUN", "")


def begin(command: str, executor_input: str) -> None:
    """Leave a note that a step has begun, where Kubeflow tells of a run and of a store."""
    global _path, _note
    values: Mapping[str, Any] = {}
    with suppress(ValueError, KeyError, TypeError):
        values = json.loads(executor_input)["inputs"]["parameterValues"]
    leads = os.environ.get("RANK", "0") == "0"  # of processes that train together, one writes
    if run_name() and values.get("store") and leads:
        step = " ".join([command, *(str(values[k]) for k in ("method", "shard") if k in values)])
        folder = Path(values["store"]) / RUNS / run_name()
        _path = folder / f"{step.replace(' ', '-').replace('/', '-of-')}.json"
        _note = Note(step=step, pod=os.environ.get("HOSTNAME", ""))
        _write()


def add(**facts: str) -> None:
    """Add to the note what has come out of this step."""
    global _note
    if _note:
        _note = replace(_note, facts=_note.facts | facts)


@contextmanager
def kept() -> Iterator[None]:
    """Note how the step ends that begins inside the block."""
    global _note
    code = 1
    try:
        yield
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        if _note:
            _note = replace(_note, exit_code=code)
            _write()


def read(store: Path, run: str) -> list[Note]:
    """Return the notes of a run, in the order in which they were left last."""
    files = list((store / RUNS / run).glob("*.json")) if run else []
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
    return [Note(**json.loads(file.read_text())) for file in files]


_path: Path
_note: Note | None = None
"""Of this process."""


def _write() -> None:
    assert _note
    # A store that cannot be written is for the step itself to report.
    with suppress(OSError):
        _path.parent.mkdir(parents=True, exist_ok=True)
        write_json(_path, asdict(_note))
