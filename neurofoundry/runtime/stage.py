"""What the stages share: an output folder that appears whole and says what it was made from."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import neurofoundry
from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import machine, tracking, verify
from neurofoundry.runtime.code import deciding_code, git_commit
from neurofoundry.runtime.experiment import Experiment, TrackingParams, switched
from neurofoundry.runtime.files import hash_file, hash_json, read_json, to_plain, write_json
from neurofoundry.runtime.guard import guard_manifest, guard_mount, guard_output
from neurofoundry.runtime.links import check_links
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.output import Output, hand_over, hash_name, names_of, remove_temporaries
from neurofoundry.runtime.store import circumstances_of, folder_of, outputs, recorded_key
from neurofoundry.runtime.tracking import PIPELINE, Answer, Made, Tracker

SCHEMA_VERSION = 2
"""Version of stage.json and of the contract files."""

MOST_EARLIER = 8
"""Outputs in a store, the newest first, that are searched for items to reuse."""


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
    "ingest": Stage(
        "neurofoundry.ingest.run",
        (
            "scans.tsv",
            "contrasts.tsv",
            "alternates.tsv",
            "labels.tsv",
            "excluded.tsv",
            "splits.tsv",
        ),
    ),
    "preprocess": Stage(
        "neurofoundry.preprocess.run",
        ("scans.tsv", "labels.tsv", "grid.json", "landmarks.json"),
        keeps_items=True,
    ),
    "pretrain": Stage("neurofoundry.pretrain.run", ENCODER_FILES, keeps_items=True),
    "finetune": Stage(
        "neurofoundry.finetune.run",
        (
            "runs.tsv",
            "**/plan.json",
            "**/model.safetensors",
            "**/trust.npz",
            "**/ensemble.json",
            "**/fitted.tsv",
            "**/predictions.tsv",
            "**/masks.npz",
            "**/explanation.npz",
            "features/*.npz",
        ),
        keeps_items=True,
    ),
    "evaluate": Stage("neurofoundry.evaluate.run", ("metrics.json", "promotion.json")),
    "promote": Stage(
        "neurofoundry.kubeflow.promote",
        ("ensemble.json", "**/model.safetensors", "**/plan.json", "**/trust.npz"),
    ),
    "import": Stage("neurofoundry.weights.published", ENCODER_FILES),
    "export": Stage("neurofoundry.weights.bundle", ENCODER_FILES),
    "export a model": Stage(
        "neurofoundry.inference.bundle",
        (
            *("ensemble.json", "**/model.safetensors", "**/plan.json", "**/trust.npz"),
            "models/model.ts",
        ),
    ),
}

RECORDED_AS = {"import": "pretrain", "export a model": "export"}
"""Commands whose output takes the place of another stage's, and is recorded as that stage's."""

IMPORTED = "import.json"
"""The file that an imported encoder has and a pretrained one has not."""

LIBRARIES = (
    *("dcm2niix", "jinja2", "matplotlib", "monai", "nibabel", "nilearn", "numpy", "pandas"),
    *("pandera", "pydantic", "pydicom", "ruamel.yaml", "safetensors", "scikit-learn", "scipy"),
    *("SimpleITK", "threadpoolctl", "torch"),
)
"""What of pyproject.toml can decide an output. The metadata of an installation say what it needs,
too, but those of an editable one are of the day it was made, and outputs would differ by them."""

UNTRACKED = Experiment(TrackingParams(mode="disabled"))

DATASET = "dataset"
"""The artifact of the raw data, which are not sent."""

REFERENCES = {"ingest": DATASET, "preprocess": "volumes", "finetune": "models"}
"""Stages whose output is an artifact by reference: it is not sent, and links data to report."""


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
        """The items of a list, or rows of a table, that belong to this shard."""
        return slice(self.number - 1, None, self.of)

    @property
    def whole(self) -> bool:
        """Whether this is the only shard."""
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

    def folder(self, stage: str, key: str) -> Path:
        """Return where the output of ``stage`` with this key lies."""
        return folder_of(self.store, stage, key) if self.store else self.out

    def guard(self, stage: str, key: str, reads: Collection[Path]) -> None:
        """Raise UsageError unless an output of ``stage`` can be written here without loss."""
        makes = RECORDED_AS.get(stage, stage)
        if self.store:
            guard_manifest(self.out, makes=makes)
        option = "--store" if self.store else "--out"
        folder = self.folder(stage, key)
        guard_output(folder, makes=makes, inputs=reads, option=option)
        if makes == "pretrain" and (folder / "stage.json").exists():
            maker = "import" if (folder / IMPORTED).exists() else "pretrain"
            if stage != maker:  # what may have taken days, for one that is recorded alike
                raise UsageError(
                    f"{option} {folder}: this is the output of '{maker}', not of '{stage}'. Give a "
                    "new or empty folder."
                )
        guard_mount(folder, option=option)

    def earlier(self, stage: str) -> tuple[Path, ...]:
        """Return the finished outputs of ``stage`` whose items may be reused."""
        if self.store:
            return (*self.reuse, *outputs(self.store, stage)[:MOST_EARLIER])
        return (*self.reuse, *([self.out] if (self.out / "stage.json").exists() else []))


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
    """The items to make."""
    accept_code_change: bool = False
    """Whether to continue from a checkpoint that other code has written."""
    code_changes: tuple[str, ...] = ()
    """The modules that had changed where that was done; stage.json names them."""
    data_reference: str = ""
    """Where the raw data are, such as a hash of DVC's. Ingest sets it; later stages inherit it."""
    summary: dict[str, Any] = field(default_factory=dict)
    """A few numbers for stage.json and the tracker: counts, losses, metrics."""
    circumstances: dict[str, Any] = field(default_factory=dict)
    """What differs from run to run and decides nothing, such as seconds; it goes beside the output,
    which is the same bytes whenever it is made."""
    provisional: int = 0
    """Items that the next run tries again though nothing that decides them has changed, such as
    those of files that were not there."""
    answer: Answer | None = None
    """What is recorded of the whole pipeline run; its last stage sets it."""


def run(
    name: str,
    body: Callable[[Workspace], None],
    *,
    to: Destination,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    reads: Collection[Path] = (),
    track: Experiment = UNTRACKED,
    leads: bool = True,
    found_by_name: Sequence[str] = (),
    accept_code_change: bool = False,
) -> Path:
    """Run ``body`` in a partial folder, publish it once it is whole, and return the output folder.

    ``params`` are the validated values that the stage reads; ``inputs`` maps the name of an
    earlier stage (STAGE, or STAGE/NAME where there are several) to its published folder; ``reads``
    are the files and folders that the stage reads beside them. With the same code, parameters and
    inputs nothing runs again, and a killed run finds its partial folder. Of several processes that
    run one stage together, the one that ``leads`` does all this; the others run ``body`` beside it
    in a folder that is thrown away. Modules that the stage finds by name, such as an objective of
    pretraining, are code too.

    Raises UsageError and DataError where an input is missing, of another stage or not what that
    has written, and UsageError where the output would replace what no run of this stage has made.
    """
    switched()
    job = _Job.of(name, to, params, inputs, found_by_name)
    if leads:
        to.guard(name, job.key, (*inputs.values(), *reads))
    output = Output(to.folder(name, job.key))
    if not leads:
        # The leader may be putting back a replaced output: each must come to the same decision.
        made = output.find(job.key)
        if made is None or verify.differences(made, items=True):
            with TemporaryDirectory() as scratch:
                body(Workspace(Path(scratch), data_version=job.data_version))
        return to.folder(name, job.key)
    # Never true of ingest, which must read the raw data to know whether they have changed: the key
    # of its output holds what it has found (`record`).
    if output.current(job.key) and _is_final(output.folder) and _is_intact(output.folder):
        folder = to.folder(name, job.key)
        LOGGER.info("%s: up to date", folder)
        return hand_over(folder, to.out)
    output.guard()
    for source, folder in inputs.items():
        verify.refuse(source.partition("/")[0], folder, verify.item_differences(folder))
    with output.lock(job.key, keep=STAGES[name].keeps_items) as partial:
        key = job.key
        if recorded_key(partial) != key or verify.differences(partial, items=True):
            work = job.workspace(partial, accept_code_change)
            job.do(body, work, track)
            record = job.record(work)
            key = record["key"]
            # Before stage.json, with which all is there: a killed run goes on after it.
            write_json(circumstances_of(to.folder(name, key)), job.circumstances(work, key))
            write_json(partial / "stage.json", record)
        folder = to.folder(name, key)
        if to.store and recorded_key(folder) == key and _is_intact(folder):
            shutil.rmtree(partial)  # ingest has read the same data as an earlier run
        else:
            output.publish(folder)
    return hand_over(folder, to.out)


def _is_final(folder: Path) -> bool:
    """Return whether nothing of a finished output should be tried again, and log if it should."""
    again = read_json(folder / "stage.json").get("provisional", 0)
    if again:
        LOGGER.info("%s: items that could not be made before are tried again (%s)", folder, again)
    return not again


def _is_intact(folder: Path) -> bool:
    """Return whether a finished output is what was written, and log how it is not."""
    changed = verify.differences(folder, items=True)
    if changed:
        LOGGER.warning("%s: %s; it is made again", folder, "; ".join(changed[: verify.SHOWN]))
    return not changed


def read_record(stage: str, folder: Path) -> dict[str, Any]:
    """Read stage.json of an output of ``stage``. Raises UsageError and DataError."""
    path = folder / "stage.json"
    if not path.exists():
        # No stage replaces a folder that does not say whose it is.
        first = f"Move {folder} elsewhere, then make it" if names_of(folder) else "Make it first"
        raise UsageError(
            f"{folder}: no finished output of '{stage}' (stage.json is missing). "
            f"{first}; `neurofoundry {stage} --help` says from what."
        )
    try:
        record = read_json(path)
        recorded, version = record["stage"], record["schema_version"]
        if not isinstance(record["contents"], dict) or not isinstance(record["data_version"], str):
            raise ValueError("contents or data_version is not what a stage writes")
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a stage record ({error}). Bring it back with `dvc checkout --force "
            f"{folder}`, or move {folder} elsewhere and run '{stage}' again."
        ) from error
    if (recorded, version) != (stage, SCHEMA_VERSION):
        raise DataError(
            f"{path}: found the output of '{recorded}' in schema {version}, expected '{stage}' "
            f"in schema {SCHEMA_VERSION}. Give the folder that '{stage}' wrote, or run it again."
        )
    return record


@dataclass(frozen=True)
class _Job:
    """One run of a stage."""

    name: str
    to: Destination
    identity: Mapping[str, Any]
    """What the output is made from."""
    code: Mapping[str, str]
    """`deciding_code` of the stage, whose hash is in ``identity``."""
    data_version: str
    references: Mapping[str, str]
    """URIs of the hashes of earlier outputs, by the names of artifacts."""
    started: datetime

    @classmethod
    def of(
        cls,
        name: str,
        to: Destination,
        params: Mapping[str, Any],
        inputs: Mapping[str, Path],
        found_by_name: Sequence[str],
    ) -> _Job:
        """Read the records of the inputs. Raises UsageError and DataError."""
        started = datetime.now(UTC)
        records = {
            source: read_record(source.partition("/")[0], folder)
            for source, folder in inputs.items()
        }
        for source, folder in inputs.items():
            check_links(folder)  # before anything is hashed: a link may lead to a device
            verify.check(source.partition("/")[0], folder, items=False)
        code = dict(deciding_code(STAGES[name].entry, *found_by_name))
        identity = {
            "stage": RECORDED_AS.get(name, name),
            "schema_version": SCHEMA_VERSION,
            "code_sha256": hash_json(code),
            "params": json.loads(json.dumps(params, default=to_plain)),
            **({} if to.shard.whole else {"shard": str(to.shard)}),
            "inputs": {source: record["contents"] for source, record in records.items()},
        }
        data_version = next((record["data_version"] for record in records.values()), "")
        return cls(name, to, identity, code, data_version, _references(records), started)

    @property
    def key(self) -> str:
        """The hash of what the output is made from, as far as it is known before the run."""
        return hash_json(self.identity)

    def workspace(self, partial: Path, accept_code_change: bool) -> Workspace:
        """Return the workspace of the process that leads."""
        return Workspace(
            dir=partial,
            earlier=self.to.earlier(self.name),
            data_version=self.data_version,
            data_reference=self.references.get(DATASET, ""),
            shard=self.to.shard,
            accept_code_change=accept_code_change,
        )

    def do(self, body: Callable[[Workspace], None], work: Workspace, track: Experiment) -> None:
        """Do the work of the stage, and record it."""
        if not self.identity["inputs"]:
            body(work)  # only the data tell which pipeline run this is
            with self.tracked(work, track):
                return
        with self.tracked(work, track):
            body(work)
        if work.answer:
            config = {**work.answer.config, **self._circumstances(work, track)}
            with self._recorded(PIPELINE, config, work, track) as tracker:
                work.answer.record(tracker)

    @contextmanager
    def tracked(self, work: Workspace, track: Experiment) -> Iterator[None]:
        """Record the stage while its body runs."""
        params = self.identity["params"]
        config = {**params, **self._circumstances(work, track), "shard": str(work.shard)}
        method = str(params.get("method", ""))
        with self._recorded(self.name, config, work, track, method) as tracker:
            for kind, uri in self.references.items():
                tracker.used(Made(kind, kind, reference=uri))
            work.tracker = tracker
            yield
            tracker.summary(work.summary | _numbers(work.circumstances))
            if made := self._reference(work):
                tracker.produced(made)

    def _recorded(
        self,
        stage: str,
        config: Mapping[str, Any],
        work: Workspace,
        track: Experiment,
        method: str = "",
    ) -> AbstractContextManager[Tracker]:
        """Open the run of W&B. The same stage in another pipeline run is another run."""
        group = track.group(work.data_version)
        return tracking.run(
            track.params,
            stage=stage,
            method=method,
            key=hash_json([stage, self.key, group]),
            group=group,
            config=config,
            place=self.to.store / "wandb" if self.to.store else None,
        )

    def _circumstances(self, work: Workspace, track: Experiment) -> dict[str, str]:
        """Return what else decides the numbers of a run, or says where they come from."""
        return {
            "data_version": work.data_version,
            "git_commit": git_commit(),
            "image": os.environ.get("NEUROFOUNDRY_IMAGE", ""),
            "package_version": neurofoundry.__version__,
            "pipeline_run": track.group(work.data_version),
        }

    def _reference(self, work: Workspace) -> Made | None:
        """Return the output as an artifact that is not sent, if it is one."""
        if (kind := REFERENCES.get(self.name)) is None:
            return None
        own = f"neurofoundry:{self.name}/{self.key}"
        return Made(
            kind,
            kind,
            reference=work.data_reference if kind == DATASET else own,
            description=f"The output of {self.name}, by reference",
            metadata={"data_version": work.data_version, **work.summary},
        )

    def record(self, work: Workspace) -> dict[str, Any]:
        """Return what stage.json holds, which is written last of all."""
        remove_temporaries(work.dir)  # of kills
        contents = {
            file.relative_to(work.dir).as_posix(): hash_file(file)
            for pattern in STAGES[self.name].publishes
            for file in sorted(work.dir.glob(pattern))
        }
        # Without inputs only the contents say which data were read.
        key = self.key if self.identity["inputs"] else hash_json([self.key, contents])
        return {
            **self.identity,
            "code": self.code,
            "key": key,
            "accepted_code_changes": work.code_changes,
            "package_version": neurofoundry.__version__,
            "libraries": _libraries(),
            "data_version": work.data_version,
            "data_reference": work.data_reference,
            "summary": work.summary,
            **({"provisional": work.provisional} if work.provisional else {}),
            "contents": contents,
            "files": " ".join(hash_name(name) for name in names_of(work.dir) if name != ".key"),
        }

    def circumstances(self, work: Workspace, key: str) -> dict[str, Any]:
        """Return when, where and how fast the output was made, which decide nothing of it."""
        return {
            "key": key,
            "started": self.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "image": os.environ.get("NEUROFOUNDRY_IMAGE", ""),
            "tracking_run": work.tracker.name,
            "processor": platform.machine(),
            "cpus": machine.cores(),
            **work.circumstances,
        }


@cache
def _libraries() -> dict[str, str]:
    """Return the versions of Python and of ``LIBRARIES``, as on a CPU and a GPU alike."""
    versions = {name: metadata.version(name).partition("+")[0] for name in LIBRARIES}
    return {"python": platform.python_version(), **versions}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _references(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the URIs of earlier outputs, and of the raw data that they were made from."""
    found = {
        REFERENCES[stage]: f"neurofoundry:{stage}/{record.get('key', '')}"
        for stage, record in records.items()
        if stage in REFERENCES and stage != "ingest"
    }
    # Outputs of earlier versions say what the data are, and not where.
    data = (
        record.get("data_reference") or f"neurofoundry:data/{record['data_version']}"
        for record in records.values()
        if record.get("data_version")
    )
    return {DATASET: next(data, ""), **found} if records else {}
