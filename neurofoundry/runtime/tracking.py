"""Weights & Biases: the only module that calls it.

A pipeline run is a group: a run for every stage, and one, ``pipeline``, that carries the parameters
of all stages beside the headline numbers. Without an account runs are kept offline in ``wandb/``,
and `wandb sync` sends them later. Nothing about the machine or a person is recorded, and the stage
goes on whatever happens to W&B or the network.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from neurofoundry.runtime.experiment import (
    WANDB_MODES,
    Mode,
    TrackingParams,
    metric_name,
    public,
    switched,
)
from neurofoundry.runtime.files import hash_json, short
from neurofoundry.runtime.log import LOGGER

if TYPE_CHECKING:
    import pandas as pd
    import wandb

INIT_SECONDS = 30
"""How long a server may take to answer before the run is kept offline."""

FINISH_SECONDS = 60
"""How long the end of a stage waits until all is sent; `wandb sync` sends the rest."""

STOP_SECONDS = 5
"""How long W&B's own process may take to end after SIGTERM."""

PIPELINE = "pipeline"
"""The run that carries the answer of a whole pipeline run."""

MOST_FAILURES = 3
"""Failures after which the stage records nothing more."""

ENCODER = ("encoder.safetensors", "plan.json")
"""Files of an encoder's artifact; subjects.tsv and images.tsv identify persons and are not sent."""

UNREACHABLE_SECONDS = 3600
"""How long the other stages of a pipeline run spare themselves the wait for a server that has not
answered one of them."""

LINK_SECONDS = 60
"""How long a promoted model may take to arrive before it is linked to the registry."""


@dataclass(frozen=True)
class Made:
    """Something that a run makes or uses: a version of an artifact of W&B."""

    name: str
    kind: str
    folder: Path | None = None
    files: Sequence[str] = ()
    """Files of ``folder`` that are sent."""
    reference: str = ""
    """Where the content is that is not sent, as a URI of its hash."""
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    """Names of this version beside latest, the data and the commit."""
    registry: str = ""
    """The collection that it is linked to, as REGISTRY/COLLECTION."""


@dataclass
class Tracker:
    """Records the numbers, tables, pictures and artifacts of a stage; without a run, nothing."""

    _run: wandb.Run | None = None
    name: str = ""
    """Project and id, by which the run is found online or after `wandb sync`."""
    registry: str = ""
    """Where promoted models are linked."""
    aliases: Sequence[str] = ()
    """Names that every version of what this run makes has: its data and its commit."""
    _first: int = 0
    """The first step that was not recorded before a resume."""
    _steps: _Steps | None = None
    _silence: _Silence | None = None
    """Tells the other stages when the network is lost."""
    _failures: int = 0

    @property
    def records(self) -> bool:
        """Whether anything is recorded."""
        return self._run is not None

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Record values at a step, unless it was recorded before a resume."""
        if self._run and step >= self._first:
            self._do(lambda run: self._log(run, values, step))

    def _log(self, run: wandb.Run, values: Mapping[str, Any], step: int) -> None:
        if self._steps:
            # Written first, so that a kill between the two loses a step and repeats none.
            self._steps.write(step)
        run.log({metric_name(name): value for name, value in values.items()}, step=step)

    def axis(self, names: Sequence[str], axis: str) -> None:
        """Draw metrics along another, so that what was recorded one after another overlays."""
        names = [metric_name(name) for name in names]

        def define(run: wandb.Run) -> None:
            for name in names:
                run.define_metric(name, metric_name(axis))

        self._do(define)

    def pictures(self, name: str, paths: Sequence[Path], *, step: int) -> None:
        """Record the pixels of PNG files, without file names and metadata, under one name."""
        if self._run:
            import wandb

            self.log({name: [wandb.Image(_pixels(path)) for path in paths]}, step=step)

    def figure(self, name: str, svg: str, *, step: int) -> None:
        """Record a drawing (SVG)."""
        if self._run:
            import wandb

            self.log({name: wandb.Html(svg, inject=False)}, step=step)

    def table(self, name: str, table: pd.DataFrame, *, step: int) -> None:
        """Record a table; missing values become null."""
        if self._run:
            self.log({name: _table(table)}, step=step)

    def lines(
        self, name: str, table: pd.DataFrame, *, title: str, labels: tuple[str, str], step: int
    ) -> None:
        """Record a table of x, y and line as a chart of lines that W&B overlays between runs.

        ``labels`` are those of the axes.
        """
        if self._run:
            import wandb

            words = {"title": title, "x-axis-title": labels[0], "y-axis-title": labels[1]}
            fields = {"x": "x", "y": "y", "class": "line"}
            spec = "wandb/area-under-curve/v0"
            chart = wandb.plot_table(spec, _table(table[["x", "y", "line"]]), fields, words)
            self.log({name: chart}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the numbers by which runs are compared."""
        named = {metric_name(name): value for name, value in values.items()}
        self._do(lambda run: run.summary.update(named))

    def produced(self, made: Made) -> None:
        """Record what this run has produced."""
        self._do(lambda run: self._produce(run, made))

    def used(self, made: Made) -> None:
        """Record that this run uses the version of an artifact that has the same content."""
        # `run.log_artifact` and `use_artifact` wait for the server, and the latter refuses to work
        # offline. The server finds the version that another run produced by its content.
        self._do(
            lambda run: _interface(run).publish_artifact(
                run, _artifact(made), [], is_user_created=True, use_after_commit=True
            )
        )

    def _produce(self, run: wandb.Run, made: Made) -> None:
        artifact = _artifact(made)
        aliases = ["latest", *self.aliases, *made.aliases]
        if made.registry and not run.offline:
            run.log_artifact(artifact, aliases=aliases).wait(LINK_SECONDS)
            run.link_artifact(artifact, f"wandb-registry-{made.registry}")
        else:
            _interface(run).publish_artifact(run, artifact, aliases)

    def finish(self, exit_code: int) -> None:
        """Send what is left, for at most ``FINISH_SECONDS``."""
        if self._run is None:
            return
        # W&B's own limit does not hold while it repeats a request that gets no answer.
        run, stopped = self._run, Event()

        def send() -> None:
            try:
                run.finish(exit_code=exit_code)
            except Exception as error:
                if not stopped.is_set():
                    _warn(f"not all was sent: {_first_line(error)}. `wandb sync` sends the rest.")

        sending = Thread(target=send, daemon=True)
        sending.start()
        sending.join(FINISH_SECONDS + 5)
        if sending.is_alive():
            stopped.set()
            _end_service()
            if self._silence:
                self._silence.begin()
            _warn("the network is lost; `wandb sync --include-online` sends the rest.")
        self._run = None

    def _do(self, record: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            record(self._run)
        except Exception as error:
            self._failures += 1
            if self._failures == MOST_FAILURES:
                self._run = None
            lost = "not recorded" if self._run else "not recorded, nor is what follows"
            _warn(f"{lost}: {_first_line(error)}. The stage goes on.")


@dataclass(frozen=True)
class Answer:
    """What W&B is told of a pipeline run as a whole, when its last stage is done."""

    config: Mapping[str, Any]
    """The parameters of all stages."""
    record: Callable[[Tracker], None]
    """Records headline numbers, charts and tables."""


@contextmanager
def run(
    params: TrackingParams,
    *,
    stage: str,
    key: str,
    group: str,
    config: Mapping[str, Any],
    method: str = "",
    place: Path | None = None,
) -> Iterator[Tracker]:
    """Record a stage. The run's id comes from ``key``, so that a resumed stage continues its run.

    Files are kept in ``place``, or else in WANDB_DIR or the working directory. Raises UsageError
    where the environment tells W&B what it does not understand.
    """
    folder = Path(place or os.environ.get("WANDB_DIR", ".")).absolute()
    # Reports of W&B's own errors hold paths.
    private = {"WANDB_DATA_DIR": _staging(folder), "WANDB_ERROR_REPORTING": "false"}
    with _sweep() as sweep, _environment(**private):
        mode = _mode(params)
        if mode == "disabled":
            yield Tracker()
            return
        job = f"{stage}-{method}" if method else stage
        named = {"id": key[:16], "name": f"{job}-{key[:6]}", "project": params.project}
        if stage == PIPELINE:
            # An agent of a sweep waits for the run that it has named.
            named |= {"name": group, **sweep}
        named |= {"job_type": job, "group": group}
        tracker = _start(mode, named, config, folder, params.registry)
        # Not `with`: leaving it by an exception, W&B prints a traceback with paths of the machine.
        try:
            yield tracker
        except BaseException:
            tracker.finish(1)
            raise
        tracker.finish(0)


def _mode(params: TrackingParams) -> Mode:
    """Return what is done: as the parameters say, or the environment, or the settings of W&B."""
    given = switched()
    if params.mode != "auto":
        return params.mode
    if given:
        return given
    import wandb

    try:
        # Also what `wandb offline` and `wandb disabled` have left.
        mode = WANDB_MODES[wandb.setup().settings.mode]
        return "offline" if mode == "online" and not _logged_in() else mode
    except Exception as error:
        _warn(f"{_first_line(error)}. The stage is recorded offline, `wandb sync` sends it.")
        return "offline"


def _staging(folder: Path) -> str:
    """Return where files of artifacts wait to be sent; by default W&B uses the user's home.

    W&B tells the server their path, so the path must not name a folder of the machine: below the
    working directory it is relative to that. `wandb sync` finds the files from there, even after
    the folder has moved.
    """
    here = Path("/proc/self/cwd")
    if here.exists() and folder.is_relative_to(Path.cwd()):
        folder = here / folder.relative_to(Path.cwd())
    return str(folder / "wandb")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set those variables that are not set yet."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _sweep() -> Iterator[Mapping[str, str]]:
    """Take what an agent of a sweep tells, which is meant for one run, out of the environment.

    Returns the arguments of that run. The parameters that the agent has chosen come with --params;
    W&B would let nothing be added to their sections.
    """
    names = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
    told = {name: os.environ.pop(name) for name in names if name in os.environ}
    run = {"id": told.get("WANDB_RUN_ID"), "sweep_id": told.get("WANDB_SWEEP_ID")}
    run["project"] = os.environ.get("WANDB_PROJECT") if run["sweep_id"] else None
    try:
        yield {name: value for name, value in run.items() if value}
    finally:
        os.environ.update(told)


def _start(
    mode: Mode, named: Mapping[str, str], config: Mapping[str, Any], folder: Path, registry: str
) -> Tracker:
    """Begin a run, offline where the server does not answer; the stage goes on in any case."""
    import wandb

    try:
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _warn(
            f"{folder / 'wandb'}: {error.strerror}. The stage is not recorded: set WANDB_DIR to a "
            "folder that can be written to."
        )
        return Tracker()
    silence = _Silence(folder / "wandb" / ".unreachable", named["group"])
    attempts: tuple[Mode, ...] = ("online", "offline") if mode == "online" else ("offline",)
    if mode == "online" and silence.lasts():
        attempts = ("offline",)
    for attempt in attempts:
        try:
            run = wandb.init(
                project=named["project"],
                id=named["id"],
                name=named["name"],
                group=named["group"],
                job_type=named["job_type"],
                config=public(config),
                mode=attempt,
                resume="allow" if attempt == "online" else None,
                allow_val_change=True,
                dir=str(folder),
                settings=_settings(sweep_id=named.get("sweep_id")),
            )
            steps = _Steps(folder / "wandb" / f".{named['id']}.step")
        except Exception as error:
            wandb.teardown()
            online = attempt == "online"
            if online:
                silence.begin()
            fate = "recorded offline, `wandb sync` sends it" if online else "not recorded"
            _warn(f"{_first_line(error)}. The stage is {fate}.")
        else:
            first = run.step if attempt == "online" else steps.read() + 1
            aliases = _aliases(config)
            name = f"{run.project}/{run.id}"
            return Tracker(run, name, registry, aliases, first, steps, silence)
    return Tracker()


def _aliases(config: Mapping[str, Any]) -> list[str]:
    """Return the data version and the commit as names of versions of artifacts."""
    version, commit = (str(config.get(name, "")) for name in ("data_version", "git_commit"))
    changed = "-changed" * commit.endswith("+")
    return [f"data-{version[:12]}"] * bool(version) + [f"commit-{short(commit)}{changed}"] * bool(
        commit
    )


class _Silence:
    """A server that has not answered a stage is not waited for again by the next ones."""

    def __init__(self, path: Path, group: str) -> None:
        self._path = path
        self._what = f"{group} {os.environ.get('WANDB_BASE_URL', '')}"

    def begin(self) -> None:
        """Note that the server did not answer."""
        with suppress(OSError):
            self._path.write_text(self._what)

    def lasts(self) -> bool:
        """Return whether that has just been noted in the same pipeline run."""
        try:
            recent = time.time() - self._path.stat().st_mtime < UNREACHABLE_SECONDS
            return recent and self._path.read_text() == self._what
        except OSError:
            return False


def _settings(**more: Any) -> wandb.Settings:
    """Return settings that record neither code nor the machine, and leave the terminal alone."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1,  # s that a run which is killed may lose; else 15
        host="neurofoundry",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        **more,
    )


def _logged_in() -> bool:
    """Return whether there is an API key, in the environment or where `wandb login` leaves it."""
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup().settings
    return bool(settings.api_key) or wbauth.read_netrc_auth(host=settings.base_url) is not None


class _Steps:
    """The last step that was recorded, which a run that is kept offline cannot be asked for."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    def read(self) -> int:
        """Return the step; -1 if there is none."""
        return int(os.pread(self._file.fileno(), 20, 0) or -1)

    def write(self, step: int) -> None:
        """Replace the step."""
        os.pwrite(self._file.fileno(), b"%020d" % step, 0)


def encoder_artifact(name: str, folder: Path, plan: Any = None) -> Made:
    """Return the artifact of an encoder; whoever makes it gives its ``plan``, too."""
    described = plan.model_dump(mode="json", exclude={"preprocess", "name"}) if plan else {}
    return Made(
        f"encoder-{name}",
        "encoder",
        folder,
        ENCODER,
        description="A 3D encoder of brain MRI; plan.json says how to feed it",
        metadata=described,
    )


def _artifact(made: Made) -> wandb.Artifact:
    """Return a version of an artifact, ready to be sent."""
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    artifact = wandb.Artifact(
        made.name,
        made.kind,
        description=made.description or None,
        metadata=public(dict(made.metadata)),
    )
    for file in made.files:
        assert made.folder is not None
        artifact.add_file(str(made.folder / file), name=file, skip_cache=True)
    if made.reference:
        # `add_reference` warns of a scheme that W&B cannot open; the URI is all that is needed.
        entry = ArtifactManifestEntry(
            path=made.name, ref=made.reference, digest=hash_json(made.reference)
        )
        artifact.manifest.add_entry(entry)
    artifact.finalize()
    return artifact


def _interface(run: wandb.Run) -> Any:
    assert run._interface is not None
    return run._interface


def _table(table: pd.DataFrame) -> wandb.Table:
    """Return a table in which missing values are null."""
    import wandb

    columns: list[str | int] = [str(column) for column in table.columns]
    rows: list[Any] = table.astype(object).where(table.notna(), None).values.tolist()
    return wandb.Table(columns, rows, allow_mixed_types=True)


def _pixels(path: Path) -> Any:
    """Return a picture without the name and the metadata of its file."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB")


def _end_service() -> None:
    """End W&B's own process, which would wait for the network forever; its data are on disk."""
    import wandb

    service = wandb.setup().ensure_service()
    assert service._proc is not None
    process = service._proc._process
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:  # sometimes it waits for the network all the same
        process.kill()
    # Else the exit of the command would wait for it.
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _warn(message: str) -> None:
    LOGGER.warning("W&B: %s", message)
