"""What the five stages share: an output folder that appears whole, and explains itself."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import neurofoundry
from neurofoundry import tracking
from neurofoundry.errors import DataError, UsageError
from neurofoundry.store import folder_of, outputs, write_manifest
from neurofoundry.tracking import Tracker, TrackingParams

SCHEMA_VERSION = 1

PUBLISHES = {
    "ingest": ("scans.tsv", "excluded.tsv"),
    "preprocess": ("scans.tsv", "grid.json"),
    "pretrain": ("encoder.safetensors", "plan.json", "subjects.tsv", "images.tsv"),
    "finetune": (
        "runs.tsv",
        "**/predictions.tsv",
        "**/explanation.npz",
        "features/*.npz",
    ),
    "evaluate": ("metrics.json", "promotion.json"),
    "promote": ("model.safetensors", "plan.json", "reference.npz"),
    "weights": ("encoder.safetensors", "plan.json", "subjects.tsv", "images.tsv"),
}
"""The contract files of each stage: their content is what a later stage depends on."""

LOOKED_AT = 8
"""Outputs in a store, the newest first, that are looked through for items to reuse."""

SOURCES = (".py", ".html", ".md")
"""Files of a stage's package that decide what it writes."""


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a stage's items, made on several machines."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read 'NUMBER/OF', such as 2/8. Raises UsageError."""
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UsageError(f"--part {text}: expected NUMBER/OF, such as 2/8.")

    @property
    def items(self) -> slice:
        """Which items of a list, or rows of a table, are this part's."""
        return slice(self.number - 1, None, self.of)

    @property
    def whole(self) -> bool:
        """Whether there is no other part."""
        return self.of == 1


@dataclass
class Workspace:
    """Where a stage's work happens until it is published."""

    dir: Path
    """The partial folder. It survives a kill and is handed to the next run of the same stage."""
    earlier: tuple[Path, ...]
    """Finished outputs of this stage, whatever their parameters, whose items may be reused."""
    tracker: Tracker
    data_version: str
    """Hash of the raw data. Ingest sets it; later stages inherit it."""
    part: Part = Part()
    """Which items are to be made."""
    summary: dict[str, Any] = field(default_factory=dict)
    """A few numbers for stage.json and the tracker: counts, losses, metrics."""


def run(
    name: str,
    body: Callable[[Workspace], None],
    *,
    out: Path,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    track: TrackingParams,
    resume_items: bool = False,
    part: Part = Part(),
    reuse: Sequence[Path] = (),
    store: Path | None = None,
    leads: bool = True,
) -> Path:
    """Run ``body`` in a partial folder and publish it as ``out`` when it is whole; where it lies.

    With a ``store`` the output lies in a folder of it that nothing ever replaces, and ``out``
    becomes a manifest that names the folder (store.py).

    ``params`` are the validated values that the stage reads; ``inputs`` maps the name of an
    earlier stage (STAGE, or STAGE/NAME where there are several) to its published folder. With the
    same code, parameters and inputs nothing runs again, and a killed run finds its partial folder.
    A stage that keys its own items (a scan, a checkpoint, a fine-tuning run) sets ``resume_items``
    and gets the partial folder whatever has changed, and the finished outputs ``reuse``, such as
    those of the other parts.
    Of several processes that run one stage together, the one that ``leads`` does all this; the
    others run ``body`` beside it in a folder that is thrown away.
    """
    started = datetime.now(UTC)
    upstream = {
        name: read_record(name.partition("/")[0], folder) for name, folder in inputs.items()
    }
    identity = {
        "stage": name,
        "schema_version": SCHEMA_VERSION,
        "code_sha256": code_hash(name),
        "params": json.loads(json.dumps(params, default=_plain)),
        **({} if part.whole else {"part": f"{part.number}/{part.of}"}),
        "inputs": {name: record["contents"] for name, record in upstream.items()},
    }
    key = _hash_json(identity)
    folder = folder_of(store, name, key) if store else out
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = _replaced(folder)
    if not leads:
        # The leader may be putting `replaced` back: both say whether there is nothing to do.
        if key not in (_recorded_key(folder), _recorded_key(replaced)):
            _follow(body, upstream)
        return folder
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)  # killed between the two renames of publish
    # Ingest has no upstream: whether the raw data changed is known only once it has looked.
    if inputs and _recorded_key(folder) == key:
        print(f"{folder}: up to date")
        return _hand_over(folder, out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not resume_items and key not in (_partial_key(partial), _recorded_key(partial)):
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    lock = lock_folder(partial, folder)
    try:
        if _recorded_key(partial) != key or not inputs:
            (partial / "stage.json").unlink(missing_ok=True)
            (partial / ".key").write_text(key)
            data_version = _data_version(upstream)
            config = {
                **identity["params"],
                "data_version": data_version,
                "git_commit": git_commit(),
                "image": os.environ.get("NEUROFOUNDRY_IMAGE", ""),
                "package_version": neurofoundry.__version__,
                "pipeline_run": tracking.pipeline_run(data_version),
                "part": f"{part.number}/{part.of}",
            }
            # Without an upstream the key does not know the data: every run is a new one.
            run_key = key if inputs else _hash_json([key, started.isoformat()])
            place = store / "wandb" if store else None
            with tracking.run(
                track,
                stage=name,
                method=str(params.get("method", "")),
                key=run_key,
                config=config,
                place=place,
            ) as tracker:
                work = Workspace(
                    dir=partial,
                    earlier=_earlier(name, folder, reuse, store),
                    tracker=tracker,
                    data_version=data_version,
                    part=part,
                )
                body(work)
                tracker.config({"data_version": work.data_version})
                tracker.summary(work.summary)
            key = _write_record(partial, name, key, identity, work, started)
            if store and not inputs:
                folder = folder_of(store, name, key)
        if store and _recorded_key(folder) == key:
            shutil.rmtree(partial)  # ingest found what an earlier run had found
        else:
            publish(partial, folder)
    finally:
        os.close(lock)
    return _hand_over(folder, out)


def code_hash(stage: str, *modules: str) -> str:
    """Hash of a stage's package and of shared modules (all of them, unless some are named)."""
    root = Path(neurofoundry.__file__).parent
    shared = [root / module for module in modules] or sorted(root.glob("*.py"))
    digest = hashlib.sha256()
    package = (file for file in sorted((root / stage).rglob("*")) if file.suffix in SOURCES)
    for source in [*package, *shared]:
        if source.name not in ("cli.py", "project.py"):
            digest.update(source.relative_to(root).as_posix().encode() + b"\0")
            digest.update(source.read_bytes())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that ``path`` holds the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(
        json.dumps(content, indent=2, default=_plain, ensure_ascii=False, allow_nan=False) + "\n"
    )
    temporary.replace(path)


def link(source: Path | str, target: Path | str) -> None:
    """A second name for a file, in the place of whatever had it; a copy where the file system has
    no hard links. Never half a file."""
    target = Path(target)
    target.unlink(missing_ok=True)
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(target)


def git_commit() -> str:
    """The commit of the code that runs, with '+' when files differ from it; '' if unknown."""
    if commit := os.environ.get("NEUROFOUNDRY_GIT_COMMIT"):
        return commit
    root = str(Path(neurofoundry.__file__).parent)
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", root, *command], capture_output=True, text=True, check=True
            )
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", root])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _earlier(
    name: str, folder: Path, reuse: Sequence[Path], store: Path | None
) -> tuple[Path, ...]:
    if store:
        return (*reuse, *outputs(store, name)[:LOOKED_AT])
    return (*reuse, *([folder] if (folder / "stage.json").exists() else []))


def _follow(body: Callable[[Workspace], None], upstream: Mapping[str, Any]) -> None:
    """Run ``body`` in a folder that is thrown away, and record nothing."""
    with TemporaryDirectory() as scratch:
        version = _data_version(upstream)
        body(Workspace(Path(scratch), earlier=(), tracker=Tracker(), data_version=version))


def _data_version(upstream: Mapping[str, Any]) -> str:
    return next((record["data_version"] for record in upstream.values()), "")


def publish(partial: Path, folder: Path) -> None:
    """Put a whole partial folder in the place of ``folder``, whatever was there."""
    replaced = _replaced(folder)
    (partial / ".key").unlink(missing_ok=True)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """Where an old output waits while a new one takes its place."""
    return folder.with_name(f".{folder.name}.replaced")


def _hand_over(folder: Path, out: Path) -> Path:
    """Leave a manifest at ``out`` when the output itself lies elsewhere, in a store."""
    if folder != out:
        write_manifest(out, folder, json.loads((folder / "stage.json").read_text()))
    return folder


def lock_folder(partial: Path, out: Path) -> int:
    """Hold the partial folder; the lock ends with the process, however it ends."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise UsageError(
                f"{out}: another process is writing this output. Wait for it, or end it first."
            ) from None
        # Some network file systems cannot lock a folder; there, nothing guards against two writers.
    return descriptor


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


def _write_record(
    partial: Path,
    name: str,
    key: str,
    identity: dict[str, Any],
    work: Workspace,
    started: datetime,
) -> str:
    """Write stage.json, last of all; the key of the output."""
    contents = {
        file.relative_to(partial).as_posix(): hash_file(file)
        for pattern in PUBLISHES[name]
        for file in sorted(partial.glob(pattern))
    }
    if not identity["inputs"]:
        key = _hash_json([key, contents])  # what it is made of is known only from what it found
    write_json(
        partial / "stage.json",
        {
            **identity,
            "key": key,
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


def _recorded_key(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "stage.json").read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def _partial_key(partial: Path) -> str | None:
    path = partial / ".key"
    return path.read_text() if path.exists() else None


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
