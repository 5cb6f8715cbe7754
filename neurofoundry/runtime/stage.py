"""What the five stages share: an output folder that appears whole, and explains itself."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import neurofoundry
from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import tracking
from neurofoundry.runtime.code import deciding_code, git_commit
from neurofoundry.runtime.files import hash_file, hash_json, to_plain, write_json
from neurofoundry.runtime.output import Output, hand_over, recorded_key
from neurofoundry.runtime.store import folder_of, outputs
from neurofoundry.runtime.tracking import Tracker, TrackingParams

SCHEMA_VERSION = 2

LOOKED_AT = 8
"""Outputs in a store, the newest first, that are looked through for items to reuse."""


@dataclass(frozen=True)
class Stage:
    """What a stage is, apart from any run of it."""

    entry: str
    """The module where its work begins: what it imports decides the output (code.py)."""
    publishes: tuple[str, ...]
    """Its contract files: their content is what a later stage depends on."""
    keeps_items: bool = False
    """It keys its own items (a scan, a checkpoint, a model), and so gets the partial folder of any
    earlier run, whatever has changed."""


ENCODER_FILES = ("encoder.safetensors", "plan.json", "subjects.tsv", "images.tsv")

STAGES = {
    "ingest": Stage("neurofoundry.ingest.run", ("scans.tsv", "excluded.tsv")),
    "preprocess": Stage(
        "neurofoundry.preprocess.run", ("scans.tsv", "grid.json"), keeps_items=True
    ),
    "pretrain": Stage("neurofoundry.pretrain.run", ENCODER_FILES, keeps_items=True),
    "finetune": Stage(
        "neurofoundry.finetune.run",
        ("runs.tsv", "**/predictions.tsv", "**/explanation.npz", "features/*.npz"),
        keeps_items=True,
    ),
    "evaluate": Stage("neurofoundry.evaluate.run", ("metrics.json", "promotion.json")),
    "promote": Stage(
        "neurofoundry.kubeflow.promote", ("model.safetensors", "plan.json", "reference.npz")
    ),
    "import": Stage("neurofoundry.weights.published", ENCODER_FILES),
    "export": Stage("neurofoundry.weights.bundle", ENCODER_FILES),
}

UNTRACKED = TrackingParams(mode="disabled")

IMITATES = {"import": "pretrain"}
"""Commands whose output takes the place of a stage's, and says so in stage.json."""


@dataclass(frozen=True)
class Shard:
    """One of several equal shards of a stage's items, each made on another machine."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read 'NUMBER/OF', such as 2/8. Raises UsageError."""
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UsageError(f"--shard {text}: expected NUMBER/OF, such as 2/8.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def items(self) -> slice:
        """Which items of a list, or rows of a table, are this shard's."""
        return slice(self.number - 1, None, self.of)

    @property
    def whole(self) -> bool:
        """Whether there is no other shard."""
        return self.of == 1


@dataclass(frozen=True)
class Destination:
    """Where an output goes, and how much of it is made."""

    out: Path
    """The folder of the output; with a ``store``, the manifest that names its folder there."""
    store: Path | None = None
    """Where outputs of many runs lie, in folders that nothing ever replaces (store.py)."""
    shard: Shard = Shard()
    reuse: tuple[Path, ...] = ()
    """Finished outputs, such as those of other shards, whose items may be taken."""


@dataclass
class Workspace:
    """Where a stage's work happens until it is published."""

    dir: Path
    """The partial folder. It survives a kill and is handed to the next run of the same stage."""
    earlier: tuple[Path, ...] = ()
    """Finished outputs of this stage, whatever their parameters, whose items may be reused."""
    tracker: Tracker = field(default_factory=Tracker)
    data_version: str = ""
    """Hash of the raw data. Ingest sets it; later stages inherit it."""
    shard: Shard = Shard()
    """Which items are to be made."""
    accept_code_change: bool = False
    """Go on from a checkpoint that other code has written."""
    code_changes: tuple[str, ...] = ()
    """The modules that had changed where that was done; stage.json names them."""
    summary: dict[str, Any] = field(default_factory=dict)
    """A few numbers for stage.json and the tracker: counts, losses, metrics."""


def run(
    name: str,
    body: Callable[[Workspace], None],
    *,
    to: Destination,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    track: TrackingParams = UNTRACKED,
    leads: bool = True,
    accept_code_change: bool = False,
) -> Path:
    """Run ``body`` in a partial folder and publish it when it is whole; the folder of the output.

    ``params`` are the validated values that the stage reads; ``inputs`` maps the name of an
    earlier stage (STAGE, or STAGE/NAME where there are several) to its published folder. With the
    same code, parameters and inputs nothing runs again, and a killed run finds its partial folder.
    Of several processes that run one stage together, the one that ``leads`` does all this; the
    others run ``body`` beside it in a folder that is thrown away.

    Raises UsageError and DataError where an input is missing or of another stage.
    """
    started = datetime.now(UTC)
    upstream = {
        name: read_record(name.partition("/")[0], folder) for name, folder in inputs.items()
    }
    data_version = next((record["data_version"] for record in upstream.values()), "")
    code = dict(deciding_code(STAGES[name].entry))
    identity = {
        "stage": IMITATES.get(name, name),
        "schema_version": SCHEMA_VERSION,
        "code_sha256": hash_json(code),
        "params": json.loads(json.dumps(params, default=to_plain)),
        **({} if to.shard.whole else {"shard": str(to.shard)}),
        "inputs": {name: record["contents"] for name, record in upstream.items()},
    }
    key = hash_json(identity)
    output = Output(folder_of(to.store, name, key) if to.store else to.out)
    if not leads:
        # The leader may be putting a replaced output back: both say if there is nothing to do.
        if not output.is_made_of(key):
            with TemporaryDirectory() as scratch:
                body(Workspace(Path(scratch), data_version=data_version))
        return output.folder
    # Ingest has no upstream: whether the raw data changed is known only once it has looked.
    if output.current(key) and inputs:
        print(f"{output.folder}: up to date")
        return hand_over(output.folder, to.out)
    with output.lock(key, keep=STAGES[name].keeps_items) as partial:
        if recorded_key(partial) != key or not inputs:
            work = Workspace(
                dir=partial,
                earlier=_earlier(name, output.folder, to),
                data_version=data_version,
                shard=to.shard,
                accept_code_change=accept_code_change,
            )
            # Without an upstream the key does not know the data: every run is a new one.
            run_key = key if inputs else hash_json([key, started.isoformat()])
            with _tracked(name, identity, work, key=run_key, track=track, store=to.store):
                body(work)
            key = _write_record(name, key, {**identity, "code": code}, work, started)
        folder = folder_of(to.store, name, key) if to.store else to.out
        if to.store and recorded_key(folder) == key:
            shutil.rmtree(partial)  # ingest found what an earlier run had found
        else:
            output.publish(folder)
    return hand_over(folder, to.out)


def read_record(stage: str, folder: Path) -> dict[str, Any]:
    """stage.json of an output of ``stage``. Raises UsageError and DataError."""
    path = folder / "stage.json"
    if not path.exists():
        raise UsageError(
            f"{folder}: no finished output of '{stage}' (stage.json is missing). "
            f"Run `neurofoundry {stage} --out {folder}` first."
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        found = (record["stage"], record["schema_version"])
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: not a stage record ({error}). Run '{stage}' again.") from error
    if found != (stage, SCHEMA_VERSION):
        raise DataError(
            f"{path}: found the output of '{found[0]}' in schema {found[1]}, expected '{stage}' "
            f"in schema {SCHEMA_VERSION}. Give the folder that '{stage}' wrote, or run it again."
        )
    return record


@contextmanager
def _tracked(
    name: str,
    identity: Mapping[str, Any],
    work: Workspace,
    *,
    key: str,
    track: TrackingParams,
    store: Path | None,
) -> Iterator[None]:
    """Record a stage while its body runs."""
    config = {
        **identity["params"],
        "data_version": work.data_version,
        "git_commit": git_commit(),
        "image": os.environ.get("NEUROFOUNDRY_IMAGE", ""),
        "package_version": neurofoundry.__version__,
        "pipeline_run": tracking.pipeline_run(work.data_version),
        "shard": str(work.shard),
    }
    method = str(identity["params"].get("method", ""))
    place = store / "wandb" if store else None
    with tracking.run(
        track, stage=name, method=method, key=key, config=config, place=place
    ) as tracker:
        work.tracker = tracker
        yield
        tracker.config({"data_version": work.data_version})
        tracker.summary(work.summary)


def _earlier(name: str, folder: Path, to: Destination) -> tuple[Path, ...]:
    if to.store:
        return (*to.reuse, *outputs(to.store, name)[:LOOKED_AT])
    return (*to.reuse, *([folder] if (folder / "stage.json").exists() else []))


def _write_record(
    name: str, key: str, identity: Mapping[str, Any], work: Workspace, started: datetime
) -> str:
    """Write stage.json, last of all; the key of the output."""
    contents = {
        file.relative_to(work.dir).as_posix(): hash_file(file)
        for pattern in STAGES[name].publishes
        for file in sorted(work.dir.glob(pattern))
    }
    if not identity["inputs"]:
        key = hash_json([key, contents])  # what it is made of is known only from what it found
    write_json(
        work.dir / "stage.json",
        {
            **identity,
            "key": key,
            "accepted_code_changes": work.code_changes,
            "package_version": neurofoundry.__version__,
            "git_commit": git_commit(),
            "image": os.environ.get("NEUROFOUNDRY_IMAGE", ""),
            "data_version": work.data_version,
            "tracking_run": work.tracker.name,
            "hardware": {
                "processor": platform.machine(),
                "cpus": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
            },
            "started": started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": work.summary,
            "contents": contents,
        },
    )
    return key
